package dev.wirepost.client;

import java.util.Arrays;

/** AMQP topic patterns: {@code *} is one word, {@code #} any number of words, including none. */
public final class Patterns {
    private Patterns() {}

    /** Whether a pattern accepts a message type. Takes time in proportion to the product of their lengths. */
    public static boolean matches(String pattern, String messageType) {
        String[] words = messageType.split("\\.", -1);
        // reachable[i]: the pattern so far can have used up the first i words.
        boolean[] reachable = new boolean[words.length + 1];
        reachable[0] = true;
        for (String part : pattern.split("\\.", -1)) {
            boolean[] next = new boolean[words.length + 1];
            if (part.equals("#")) {
                int first = 0;
                while (first <= words.length && !reachable[first]) {
                    first++;
                }
                Arrays.fill(next, Math.min(first, next.length), next.length, true);
            } else {
                for (int i = 0; i < words.length; i++) {
                    next[i + 1] = reachable[i] && (part.equals("*") || part.equals(words[i]));
                }
            }
            reachable = next;
        }
        return reachable[words.length];
    }
}
