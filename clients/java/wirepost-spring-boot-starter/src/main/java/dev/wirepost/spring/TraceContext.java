package dev.wirepost.spring;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.List;
import java.util.function.Function;

/**
 * The W3C trace context of what a thread does, carried into the pushes that it makes. A listener has that of its
 * message. Where the application traces with Micrometer, the span that it is in counts instead.
 */
public final class TraceContext {
    private static final List<String> HEADERS = List.of("traceparent", "tracestate");
    private static final ThreadLocal<Map<String, String>> CURRENT = ThreadLocal.withInitial(Map::of);

    private TraceContext() {}

    /** {@code traceparent} and {@code tracestate}, where there are any. */
    public static Map<String, String> current() {
        return CURRENT.get();
    }

    /**
     * Runs something as a part of the trace that these headers name, such as those of an HTTP request.
     *
     * @param header gives a header's value, or null
     */
    public static void carry(Function<String, ?> header, Runnable work) {
        Map<String, String> found = new LinkedHashMap<>();
        for (String name : HEADERS) {
            if (header.apply(name) instanceof String value) {
                found.put(name, value);
            }
        }
        Map<String, String> before = CURRENT.get();
        CURRENT.set(Map.copyOf(found));
        try {
            work.run();
        } finally {
            if (before.isEmpty()) {
                CURRENT.remove();
            } else {
                CURRENT.set(before);
            }
        }
    }
}
