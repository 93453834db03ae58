package dev.wirepost.client;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;

/** Waits between attempts, with jitter: the clients of a dead edge do not return in step. For one thread. */
final class Waits {
    static final Duration PATIENCE_MAX = Duration.ofSeconds(60);
    private static final Duration RETRY_AFTER_MAX = Duration.ofMinutes(15);
    private static final Duration HANDLER_FIRST = Duration.ofMillis(500);
    private static final Duration HANDLER_MAX = Duration.ofSeconds(5);

    private final Timing timing;
    private int failures;
    private int slow;

    Waits(Timing timing) {
        this.timing = timing;
    }

    /** A connection was open for so long. */
    void lasted(long nanos) {
        if (nanos >= timing.stableAfter().toNanos()) {
            failures = 0;
            slow = 0;
        }
    }

    /** Until the next attempt to connect; {@code retryAfter} may be null. */
    Duration next(boolean slowly, Duration retryAfter) {
        Duration wait;
        if (slowly) {
            wait = between(0.5, doubled(timing.slowFirst(), timing.slowMax(), slow++));
        } else {
            wait = between(0, doubled(timing.fastFirst(), timing.fastMax(), failures++));
        }
        if (retryAfter == null || retryAfter.isNegative()) {
            return wait;
        }
        return wait.plus(retryAfter.compareTo(RETRY_AFTER_MAX) < 0 ? retryAfter : RETRY_AFTER_MAX);
    }

    /** Until a message that was refused so many times is repeated. */
    Duration nack(int refusals) {
        return between(0.5, doubled(timing.nackFirst(), timing.nackMax(), refusals - 1));
    }

    /** Until a handler that failed so many times with a message is called again. */
    static Duration handler(int failures) {
        return between(0.5, doubled(HANDLER_FIRST, HANDLER_MAX, failures - 1));
    }

    private static Duration doubled(Duration first, Duration most, int times) {
        double nanos = first.toNanos() * Math.pow(2, Math.min(times, 60));
        return nanos >= most.toNanos() ? most : Duration.ofNanos((long) nanos);
    }

    /** Random, from a share of it to all of it. */
    static Duration between(double least, Duration most) {
        double share = least + ThreadLocalRandom.current().nextDouble() * (1 - least);
        return Duration.ofNanos((long) (most.toNanos() * share));
    }
}
