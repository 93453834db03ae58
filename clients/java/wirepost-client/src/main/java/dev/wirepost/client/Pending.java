package dev.wirepost.client;

import java.util.concurrent.CompletableFuture;

/** A message without a final answer. */
public final class Pending {
    final String text;
    final int size;
    private final String id;
    private final CompletableFuture<String> future = new CompletableFuture<>();
    private final Outbox outbox;

    // All that follows belongs to the loop, but for what is volatile.
    long number;
    int refusals;
    boolean done;
    /** Whether the receiver may have it: it was on the wire, and no answer said that it did not arrive. */
    volatile boolean mayHaveArrived;
    /** The same before the latest attempt. */
    boolean lostBefore;

    Pending(Outbox outbox, String id, String text, int size) {
        this.outbox = outbox;
        this.id = id;
        this.text = text;
        this.size = size;
    }

    /** The id of the message. */
    public String id() {
        return id;
    }

    /**
     * Completes with the id when the edge has acknowledged the message, or with a {@link RejectedException}. What
     * depends on it runs on a thread of the library, and may block.
     */
    public CompletableFuture<String> result() {
        return future.copy();
    }

    /** Takes it back: it is not sent any more; if it is on the wire already, it may still arrive. */
    public void cancel() {
        outbox.cancel(this);
    }

    /** For this library: the one future, whose completion is seen first. */
    CompletableFuture<String> future() {
        return future;
    }
}
