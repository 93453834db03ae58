package dev.wirepost.client;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.PriorityQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Future;
import tools.jackson.databind.JsonNode;

/**
 * Messages on their way to the edge: waiting, in flight, to be repeated. At most {@code limit} wait, and 64 are without
 * an answer. Belongs to the loop, but for {@link #take}, {@link #submit} and {@link #cancel}.
 */
final class Outbox {
    /** Messages without an answer, see the protocol. */
    private static final int WINDOW = 64;

    private final Loop loop;
    private final Waits waits;
    private final int limit;
    /** All that have no final answer. */
    private final Map<String, Pending> known = new ConcurrentHashMap<>();
    /** In the order in which they were first sent, also those that are repeated. Settled ones are skipped. */
    private final PriorityQueue<Pending> waiting = new PriorityQueue<>(Comparator.comparingLong(one -> one.number));
    private long numbers;
    private int flying;
    private int unsent;
    private long pausedUntil;
    private boolean paused;
    private Future<?> timer;
    private Link link;
    private volatile boolean closed;

    Outbox(Loop loop, Waits waits, int limit) {
        this.loop = loop;
        this.waits = waits;
        this.limit = limit;
    }

    /** A message that is not on its way yet; any thread. */
    Pending take(String id, String text) {
        Pending pending = new Pending(this, id, text, text.getBytes(StandardCharsets.UTF_8).length);
        if (known.putIfAbsent(id, pending) != null) {
            throw new IllegalArgumentException("a message with the id " + id + " is on its way already");
        }
        return pending;
    }

    /** Puts it on its way, after {@code before}; any thread. */
    void submit(Pending pending, Runnable before) {
        boolean taken = loop.execute(() -> {
            before.run();
            add(pending);
        });
        if (!taken) {
            reject(pending, "closed", "the client is closed", false);
        }
    }

    /** Takes one back; any thread. */
    void cancel(Pending pending) {
        loop.execute(() -> reject(pending, "aborted", "cancelled", false));
    }

    private void add(Pending pending) {
        if (pending.done) {
            return;
        }
        if (closed) {
            reject(pending, "closed", "the client is closed", false);
        } else if (unsent >= limit) {
            reject(pending, "queue_full", limit + " messages wait already", true);
        } else {
            pending.number = numbers++;
            back(List.of(pending));
        }
    }

    // ---- to the wire ----

    /** From now on messages go over this link. */
    void attach(Link next) {
        link = next;
        paused = false; // it held on the link before
        pump();
    }

    /** Sends what may be sent now. */
    void pump() {
        Loop.cancel(timer);
        timer = null;
        while (link != null && !link.retired && !link.busy() && flying < WINDOW) {
            while (!waiting.isEmpty() && waiting.peek().done) {
                waiting.poll();
            }
            Pending pending = waiting.peek();
            if (pending == null) {
                return;
            }
            if (paused && pausedUntil - loop.now() > 0) {
                timer = loop.after(Duration.ofNanos(pausedUntil - loop.now()), this::pump);
                return;
            }
            paused = false;
            if (pending.size > link.pace.messageBytes()) {
                reject(pending, "too_large",
                        pending.size + " bytes, and the edge takes " + (long) link.pace.messageBytes(), false);
                continue;
            }
            Duration wait = link.pace.pause(loop.now());
            if (!wait.isZero()) {
                timer = loop.after(wait, this::pump);
                return;
            }
            waiting.poll();
            unsent--;
            fly(pending);
        }
    }

    private void fly(Pending pending) {
        link.unanswered.put(pending.id(), pending);
        flying++;
        // Before the bytes leave.
        pending.lostBefore = pending.mayHaveArrived;
        pending.mayHaveArrived = true;
        link.send(pending.text);
    }

    // ---- answers ----

    void ack(Link from, JsonNode frame) {
        Pending pending = answered(from, frame);
        if (pending != null && !pending.done) {
            settle(pending);
            Threads.POOL.execute(() -> pending.future().complete(pending.id()));
        }
        pump();
    }

    /** A refusal: final, or the message is repeated after a wait. */
    void nack(Link from, JsonNode frame) {
        Pending pending = answered(from, frame);
        if (pending == null) {
            return;
        }
        pending.mayHaveArrived = pending.lostBefore || frame.path("mayHaveArrived").asBoolean(false);
        String code = Envelopes.text(frame, "code");
        if (!frame.path("retryable").asBoolean(false)) {
            String reason = Envelopes.text(frame, "reason");
            reject(pending, code == null ? "unknown" : code, reason == null ? "" : reason, false);
            pump();
            return;
        }
        pending.refusals++;
        JsonNode hint = frame.path("retryAfterMs");
        Duration wait = hint.isNumber() && hint.doubleValue() >= 0
                ? Duration.ofNanos((long) (hint.doubleValue() * 1e6))
                : waits.nack(pending.refusals);
        // What comes after it waits too: so the order stays, and an edge or broker in trouble is left alone.
        long until = loop.now() + wait.toNanos();
        pausedUntil = paused && pausedUntil - until > 0 ? pausedUntil : until;
        paused = true;
        back(List.of(pending));
    }

    private Pending answered(Link from, JsonNode frame) {
        String id = Envelopes.text(frame, "id");
        Pending pending = id == null ? null : from.unanswered.remove(id);
        if (pending != null) {
            flying--;
        }
        return pending;
    }

    /** A link is over: what had no answer is repeated, in its order, before everything else. */
    List<Pending> lost(Link over) {
        List<Pending> unanswered = new ArrayList<>(over.unanswered.values());
        over.unanswered.clear();
        flying -= unanswered.size();
        if (link == over) {
            link = null;
        }
        back(unanswered);
        return unanswered;
    }

    private void back(Collection<Pending> pendings) {
        for (Pending pending : pendings) {
            if (!pending.done) {
                waiting.add(pending);
                unsent++;
            }
        }
        pump();
    }

    void reject(Pending pending, String code, String reason, boolean retryable) {
        reject(pending, code, reason, retryable, pending.mayHaveArrived);
    }

    void reject(Pending pending, String code, String reason, boolean retryable, boolean arrived) {
        if (pending.done) {
            return;
        }
        if (waiting.remove(pending)) {
            unsent--;
        }
        settle(pending);
        RejectedException error = new RejectedException(code, reason, retryable, arrived);
        Threads.POOL.execute(() -> pending.future().completeExceptionally(error));
    }

    private void settle(Pending pending) {
        pending.done = true;
        known.remove(pending.id(), pending);
    }

    /** Settles everything. */
    void close() {
        closed = true;
        link = null;
        Loop.cancel(timer);
        for (Pending pending : List.copyOf(known.values())) {
            reject(pending, "closed", "the client was closed", false);
        }
    }
}
