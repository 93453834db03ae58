package dev.wirepost.client;

import java.time.Duration;
import tools.jackson.databind.JsonNode;

/** What an edge admits on one connection: how many messages, and how long. Belongs to the loop. */
final class Pace {
    /** Below what the edge admits: a network delivers in clusters what was sent evenly. */
    private static final double MARGIN = 0.8;

    private final double messageBytes;
    private final double rate;
    private final double burst;
    private double tokens;
    private long refilled;

    /** Of the {@code limits} of a welcome. */
    Pace(JsonNode limits, long now) {
        messageBytes = Envelopes.positive(limits, "messageBytes", Double.MAX_VALUE);
        rate = Envelopes.positive(limits, "messagesPerSecond", Double.MAX_VALUE) * MARGIN;
        burst = Math.max(1, Envelopes.positive(limits, "burst", Double.MAX_VALUE) * MARGIN);
        tokens = burst;
        refilled = now;
    }

    /** The longest message. */
    double messageBytes() {
        return messageBytes;
    }

    /** How long until one more message is within the rate; zero uses up one. */
    Duration pause(long now) {
        tokens = Math.min(burst, tokens + (now - refilled) / 1e9 * rate);
        refilled = now;
        if (tokens >= 1) {
            tokens--;
            return Duration.ZERO;
        }
        return Duration.ofNanos((long) Math.max(1e6, (1 - tokens) / rate * 1e9));
    }
}
