package dev.wirepost.client;

import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Future;
import tools.jackson.databind.JsonNode;

/** Messages that wait for the one that answers them. Belongs to the loop. */
final class Requests {
    private final Loop loop;
    private final Map<String, Request> waiting = new HashMap<>();

    private record Request(Pending pending, CompletableFuture<Message<JsonNode>> answer, Future<?> timer) {}

    Requests(Loop loop) {
        this.loop = loop;
    }

    /** Completes {@code answer} with what answers this message, or with a {@link RejectedException}. */
    void add(Pending pending, Duration timeout, CompletableFuture<Message<JsonNode>> answer) {
        Future<?> timer = loop.after(timeout, () -> {
            boolean arrived = pending.mayHaveArrived;
            fail(pending.id(), new RejectedException("no_answer", "none within " + timeout, false, arrived));
        });
        waiting.put(pending.id(), new Request(pending, answer, timer));
        answer.whenComplete((message, error) -> loop.execute(() -> end(pending.id())));
        pending.future().whenComplete((id, error) -> {
            if (error != null) {
                Throwable cause = error instanceof CompletionException ? error.getCause() : error;
                loop.execute(() -> fail(pending.id(), cause));
            }
        });
    }

    /** Whether somebody waited for it. */
    boolean answer(Message<JsonNode> message) {
        Request request = message.correlationId() == null ? null : end(message.correlationId());
        if (request == null || request.answer.isDone()) {
            return false;
        }
        Threads.POOL.execute(() -> request.answer.complete(message));
        return true;
    }

    private void fail(String id, Throwable error) {
        Request request = end(id);
        if (request != null) {
            Threads.POOL.execute(() -> request.answer.completeExceptionally(error));
        }
    }

    private Request end(String id) {
        Request request = waiting.remove(id);
        if (request != null) {
            Loop.cancel(request.timer);
            request.pending.cancel();
        }
        return request;
    }

    void close() {
        for (String id : List.copyOf(waiting.keySet())) {
            boolean arrived = waiting.get(id).pending.mayHaveArrived;
            fail(id, new RejectedException("closed", "the client was closed", false, arrived));
        }
    }
}
