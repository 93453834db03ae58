package dev.wirepost.spring;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * The names and credentials of one business.
 *
 * @param business the business type
 * @param amqp {@code amqp://user:password@host:port/vhost}
 * @param queues short name, as declared, to full name
 * @param endpoint the edges' HTTP interface for this business, {@code https://ws.example/payments/websocket}; or null
 * @param apiKey for the token call; or null
 */
record Binding(String business, String amqp, Map<String, String> queues, String endpoint, String apiKey) {
    private static final String QUEUE = "queue.";

    Binding {
        queues = Map.copyOf(queues);
    }

    /** Without a directory; {@code edge} is the edges' public address. */
    static Binding of(String business, String amqp, List<String> queues, String edge, String apiKey) {
        Map<String, String> full = queues.stream().collect(Collectors.toMap(name -> name, name -> full(business, name)));
        String endpoint = edge == null ? null : edge.replaceAll("/+$", "") + "/" + business + "/websocket";
        return new Binding(business, amqp, full, endpoint, apiKey);
    }

    String pushExchange() {
        return "wirepost." + business + ".push";
    }

    /** For pushes to the clients of several businesses. */
    String shareExchange() {
        return "wirepost." + business + ".share";
    }

    /** The full name of a declared queue; a full name stays as it is. */
    String queue(String name) {
        if (queues.containsKey(name)) {
            return queues.get(name);
        }
        return name.startsWith("wirepost.") || queues.containsValue(name) ? name : full(business, name);
    }

    private static String full(String business, String queue) {
        return "wirepost." + business + ".q." + queue;
    }

    /**
     * Reads the one binding of wirepost below a folder, or the one of this name (its folder, or its business); or the
     * folder of a mounted Secret itself.
     *
     * @throws BindingException if there is none, or several
     */
    static Binding read(Path root, String name) {
        if (!Files.isDirectory(root)) {
            throw new BindingException(root + " is no directory. Mount the business's Secret below it");
        }
        if (Files.isRegularFile(root.resolve("push-exchange"))) {
            return read(root);
        }
        Map<String, Binding> found = new TreeMap<>();
        for (Path folder : entries(root)) {
            if ("wirepost".equals(text(folder, "provider"))) {
                found.put(folder.getFileName().toString(), read(folder));
            }
        }
        List<Binding> chosen = found.entrySet().stream()
                .filter(one -> name == null || name.equals(one.getKey()) || name.equals(one.getValue().business))
                .map(Map.Entry::getValue)
                .toList();
        if (chosen.size() == 1) {
            return chosen.get(0);
        }
        String names = found.isEmpty() ? "none" : String.join(", ", found.keySet());
        if (name != null) {
            throw new BindingException(
                    root + " has no binding of wirepost called " + name + "; there are: " + names);
        }
        if (found.isEmpty()) {
            throw new BindingException(
                    root + " has no binding with the provider `wirepost`. Is the Secret mounted below it?");
        }
        throw new BindingException(root + " has several bindings of wirepost (" + names
                + "): name the one that is meant by wirepost.binding");
    }

    private static Binding read(Path folder) {
        String exchange = needed(folder, "push-exchange");
        String[] words = exchange.split("\\.", -1);
        if (words.length != 3 || !words[0].equals("wirepost") || !words[2].equals("push")) {
            throw new BindingException(folder.resolve("push-exchange") + " names " + exchange
                    + ", not wirepost.<business>.push");
        }
        Map<String, String> queues = new TreeMap<>();
        for (Path file : entries(folder)) {
            String key = file.getFileName().toString();
            if (key.startsWith(QUEUE)) {
                queues.put(key.substring(QUEUE.length()), needed(folder, key));
            }
        }
        return new Binding(words[1], needed(folder, "uri"), queues, text(folder, "endpoint"), text(folder, "api-key"));
    }

    private static List<Path> entries(Path folder) {
        try (Stream<Path> paths = Files.list(folder)) {
            return new ArrayList<>(paths.sorted().toList());
        } catch (IOException error) {
            throw new BindingException(folder + " can't be read: " + error);
        }
    }

    private static String text(Path folder, String key) {
        try {
            String value = Files.readString(folder.resolve(key)).trim();
            return value.isEmpty() ? null : value;
        } catch (IOException absent) {
            return null;
        }
    }

    private static String needed(Path folder, String key) {
        String value = text(folder, key);
        if (value == null) {
            throw new BindingException(
                    folder.resolve(key) + " is missing or empty. Is this the Secret of a WsBusiness?");
        }
        return value;
    }

    /** Without credentials. */
    @Override
    public String toString() {
        return "Binding of " + business;
    }
}
