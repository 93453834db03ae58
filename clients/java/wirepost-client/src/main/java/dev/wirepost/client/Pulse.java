package dev.wirepost.client;

import java.time.Duration;
import java.util.concurrent.Future;
import java.util.function.Supplier;

/**
 * Whether a connection is still alive: pings after silence, and gives up when nothing comes. Belongs to the loop, but for
 * {@link #beat()}.
 */
final class Pulse {
    private static final long SHORTEST_WAIT = 5_000_000;

    private final Loop loop;
    private final Timing timing;
    private final Supplier<Duration> patience;
    private final Runnable ping;
    private final Runnable dead;
    private Future<?> timer;
    private boolean held;
    private boolean ended;
    private volatile long heard;
    private long pinged;
    /** A ping is out, and nothing has come since. */
    private boolean suspected;
    private long deadline;

    /** {@code patience} is what a ping is given; {@code dead} is called once. */
    Pulse(Loop loop, Timing timing, Supplier<Duration> patience, Runnable ping, Runnable dead) {
        this.loop = loop;
        this.timing = timing;
        this.patience = patience;
        this.ping = ping;
        this.dead = dead;
    }

    /** Something arrived: part of a large message on a slow line counts too. Any thread. */
    void beat() {
        heard = loop.now();
    }

    void begin() {
        beat();
        pinged = heard - 1;
        look(false);
    }

    /** Tests it now: nothing may have arrived for a long time. */
    void probe() {
        look(true);
    }

    /** This side does not read, or reads again: meanwhile nothing can arrive. */
    void hold(boolean now) {
        held = now;
        beat();
    }

    void end() {
        ended = true;
        Loop.cancel(timer);
    }

    private void look(boolean probed) {
        if (ended) {
            return;
        }
        Loop.cancel(timer);
        long now = loop.now();
        if (held) {
            heard = now;
        }
        long last = heard;
        if (last - pinged > 0) {
            suspected = false;
        }
        if (probed || (!suspected && now - last >= timing.pingAfter().toNanos())) {
            long until = now + (probed ? timing.hintPongWithin() : patience.get()).toNanos();
            deadline = suspected && deadline - until < 0 ? deadline : until;
            suspected = true;
            pinged = now;
            ping.run();
        }
        if (suspected && now - deadline >= 0) {
            ended = true;
            dead.run();
            return;
        }
        long due = suspected ? deadline : last + timing.pingAfter().toNanos();
        timer = loop.after(Duration.ofNanos(Math.max(SHORTEST_WAIT, due - now)), () -> look(false));
    }
}
