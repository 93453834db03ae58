package dev.wirepost.client;

import java.net.http.HttpClient;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.BiConsumer;
import java.util.function.Consumer;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * A client of an edge: keeps a connection, sends, receives, and resumes where it was.
 *
 * <pre>{@code
 * try (WirepostClient client = WirepostClient.builder(new HttpToken(URI.create("https://shop.example/wirepost-token")))
 *         .build()) {
 *     client.on("payment.completed", Paid.class, message -> show(message.content()));
 *     client.start();
 *     client.send("qr.refresh", Map.of("qrId", "q-1")).join();
 * }
 * }</pre>
 *
 * <p>Handlers are called one at a time, in the order of the messages, each message once, on a thread of the client. One
 * that throws is called again with the same message, four times in all. The cursor is stored after the handlers have
 * succeeded. Register handlers before {@link #start()}: what arrives without a handler is dropped.
 *
 * <p>All methods may be called by any thread. A client has two threads of its own, which are daemon.
 */
public final class WirepostClient implements AutoCloseable {
    private static final Duration ANSWER_WITHIN = Duration.ofSeconds(30);
    private static final long HANDLER_END_MILLIS = 1000;

    private final Loop loop = new Loop();
    private final Envelopes envelopes;
    private final CursorStore store;
    private final Outbox outbox;
    private final Inbox inbox;
    private final Requests requests;
    private final Engine engine;
    private final Threads.InOrder callbacks = new Threads.InOrder();
    private final Consumer<State> onState;
    private final AtomicBoolean started = new AtomicBoolean();
    private final AtomicBoolean closing = new AtomicBoolean();
    private final CompletableFuture<Void> closed = new CompletableFuture<>();
    private volatile State state;

    private WirepostClient(Builder settings) {
        envelopes = new Envelopes(settings.mapper);
        store = settings.store;
        onState = settings.onState;
        outbox = new Outbox(loop, new Waits(settings.timing), settings.queueLimit);
        inbox = new Inbox(store, settings.rememberedIds, settings.handlerAttempts, settings.onError, this::room);
        requests = new Requests(loop);
        Session session = new Session(settings.token, settings.timing, loop);
        HttpClient http = settings.http == null ? Threads.http() : settings.http;
        Receipts receipts = new Receipts(loop, new Waits(settings.timing), settings.rememberedIds);
        engine = new Engine(loop, settings.timing, http, session, outbox, inbox, requests, receipts, this::changed);
    }

    /** Begins to describe a client. */
    public static Builder builder(TokenSource token) {
        return new Builder(token);
    }

    // ---- receiving ----

    /**
     * Registers a handler for message types: exact, or with {@code *} (one word) and {@code #} (any number of words).
     *
     * @return ends it
     */
    public Runnable on(String pattern, Handler<Message<JsonNode>> handler) {
        Inbox.Entry entry = new Inbox.Entry(pattern, handler);
        inbox.handlers.add(entry);
        return () -> inbox.handlers.remove(entry);
    }

    /** The same, for content of this type. Content that does not fit it counts as a handler that failed. */
    public <T> Runnable on(String pattern, Class<T> type, Handler<Message<T>> handler) {
        return on(pattern, message -> handler.handle(typed(message, type)));
    }

    /**
     * Registers what fetches the state again: messages may be missing before the next one.
     *
     * @return ends it
     */
    public Runnable onGap(Handler<Gap> handler) {
        inbox.gapHandlers.add(handler);
        return () -> inbox.gapHandlers.remove(handler);
    }

    /**
     * Confirms to the business that messages were stored or shown, on a route with {@code receipts}; again until the
     * edge has answered, also by the next connection. The last messages can be told of, as many as
     * {@link Builder#rememberedIds}.
     */
    public void received(String... messageIds) {
        List<String> ids = List.of(messageIds);
        loop.execute(() -> engine.received(ids));
    }

    // ---- sending ----

    /**
     * Sends a message; waits for a connection and repeats, with the same id, until there is an answer.
     *
     * @return completes with the id when the edge has acknowledged it: the broker has it on disk. Fails with a {@link
     *     RejectedException}. Cancelling it takes the message back, though it may arrive if it is on the wire already
     * @throws IllegalArgumentException if the content can't be written as JSON
     */
    public CompletableFuture<String> send(String messageType, Object content) {
        return send(Outgoing.of(messageType, content));
    }

    /**
     * The same, with all that a message may have.
     *
     * @throws IllegalArgumentException if the content can't be written as JSON, or a message with its id is on its way
     */
    public CompletableFuture<String> send(Outgoing message) {
        Pending pending = submit(message);
        CompletableFuture<String> result = pending.result();
        result.whenComplete((id, error) -> {
            if (result.isCancelled()) {
                pending.cancel();
            }
        });
        return result;
    }

    /** The same, for who wants to know, when it is taken back, whether it may have arrived. */
    public Pending submit(Outgoing message) {
        Pending pending = outbox.take(message.id(), envelopes.write(message));
        outbox.submit(pending, () -> { });
        return pending;
    }

    /**
     * Sends a message and waits 30 s for the one that answers it, whose {@code correlationId} is its id. Handlers do
     * not get the answer.
     *
     * @return fails with a {@link RejectedException}, whose code is {@code no_answer} when none came. Cancelling it ends
     *     the wait
     */
    public CompletableFuture<Message<JsonNode>> request(String messageType, Object content) {
        return request(Outgoing.of(messageType, content), ANSWER_WITHIN);
    }

    /** The same, with all that a message may have. */
    public CompletableFuture<Message<JsonNode>> request(Outgoing message, Duration timeout) {
        Pending pending = outbox.take(message.id(), envelopes.write(message));
        CompletableFuture<Message<JsonNode>> answer = new CompletableFuture<>();
        pending.future().whenComplete((id, error) -> {
            if (error instanceof RejectedException rejected && rejected.code().equals("closed")) {
                answer.completeExceptionally(rejected); // also after the end of the loop
            }
        });
        outbox.submit(pending, () -> requests.add(pending, timeout, answer));
        return answer;
    }

    /** The same, for an answer of this type. */
    public <T> CompletableFuture<Message<T>> request(Outgoing message, Duration timeout, Class<T> type) {
        CompletableFuture<Message<JsonNode>> answer = request(message, timeout);
        CompletableFuture<Message<T>> result = answer.thenApply(found -> typed(found, type));
        result.whenComplete((found, error) -> {
            if (result.isCancelled()) {
                answer.cancel(true);
            }
        });
        return result;
    }

    private <T> Message<T> typed(Message<JsonNode> message, Class<T> type) {
        return message.withContent(envelopes.mapper().treeToValue(message.content(), type));
    }

    // ---- life ----

    /**
     * Begins to connect.
     *
     * @throws IllegalStateException when it was started before
     */
    public WirepostClient start() {
        if (!started.compareAndSet(false, true)) {
            throw new IllegalStateException("a client can be started only once");
        }
        inbox.start();
        Threads.POOL.execute(() -> {
            String cursor = load();
            loop.execute(() -> engine.start(cursor));
        });
        return this;
    }

    private String load() {
        try {
            return store.load();
        } catch (Exception error) {
            inbox.report(error, null);
            return null;
        }
    }

    /** What it does at the moment; null before {@link #start()}. */
    public State state() {
        return state;
    }

    /** Since the last frame of the edge; null before the first one. */
    public Duration lastEventAge() {
        long nanos = engine.silence();
        return nanos < 0 ? null : Duration.ofNanos(nanos);
    }

    /** Connects now: ends a wait, and the stop after 4009. Without effect on an open connection. */
    public void reconnect() {
        loop.execute(engine::reconnect);
    }

    /** Call it when the network may have changed: ends a wait, and tests an open connection. */
    public void check() {
        loop.execute(engine::check);
    }

    /**
     * Says goodbye, and settles every send ({@code closed}). A handler that runs is given a second, and then
     * interrupted. Returns when this is done. The client can't be started again.
     */
    @Override
    public void close() {
        if (closing.compareAndSet(false, true)) {
            if (started.compareAndSet(false, true)) {
                inbox.stop();
            }
            boolean inHandler = inbox.isHandlerThread();
            loop.execute(() -> engine.close(() -> Threads.POOL.execute(() -> {
                if (!inHandler) {
                    inbox.await(HANDLER_END_MILLIS);
                }
                loop.execute(() -> {
                    engine.closed();
                    loop.end();
                    closed.complete(null);
                });
            })));
        }
        try {
            closed.get(10, TimeUnit.SECONDS);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        } catch (ExecutionException | TimeoutException late) {
            System.getLogger("wirepost").log(System.Logger.Level.WARNING, "wirepost: closing takes long", late);
        }
    }

    private void room() {
        loop.execute(engine::read);
    }

    private void changed(State next) {
        state = next;
        callbacks.execute(() -> {
            try {
                onState.accept(next);
            } catch (RuntimeException error) {
                inbox.report(error, null);
            }
        });
    }

    /** Describes a client. For one thread. */
    public static final class Builder {
        private final TokenSource token;
        private CursorStore store = CursorStore.memory();
        private JsonMapper mapper = Envelopes.STANDARD.mapper();
        private HttpClient http;
        private Timing timing = Timing.standard();
        private int queueLimit = 1000;
        private int rememberedIds = 1000;
        private int handlerAttempts = 4;
        private Consumer<State> onState = state -> { };
        private BiConsumer<Throwable, Message<?>> onError = Inbox::log;

        private Builder(TokenSource token) {
            this.token = token;
        }

        /** Where it keeps its position; in memory unless it is given one. */
        public Builder cursorStore(CursorStore own) {
            store = own;
            return this;
        }

        /** What writes and reads the content. */
        public Builder mapper(JsonMapper own) {
            mapper = own;
            return this;
        }

        /** An HTTP client with a proxy, an {@code SSLContext} or an executor of your own. */
        public Builder httpClient(HttpClient own) {
            http = own;
            return this;
        }

        /** How many messages wait to be sent (1000); further ones are rejected with {@code queue_full}. */
        public Builder queueLimit(int messages) {
            queueLimit = messages;
            return this;
        }

        /** By how many ids repeats are dropped (1000). */
        public Builder rememberedIds(int ids) {
            rememberedIds = ids;
            return this;
        }

        /** How often a handler is called for one message (4). */
        public Builder handlerAttempts(int calls) {
            handlerAttempts = Math.max(1, calls);
            return this;
        }

        /** The protocol's waits; for tests. */
        public Builder timing(Timing own) {
            timing = own;
            return this;
        }

        /** Called each time that the state changes, in order. */
        public Builder onState(Consumer<State> listener) {
            onState = listener;
            return this;
        }

        /** Called for each failure of a handler (with its message) or a store (without); it is logged otherwise. */
        public Builder onError(BiConsumer<Throwable, Message<?>> listener) {
            onError = listener;
            return this;
        }

        /** The client; {@link WirepostClient#start()} connects it. */
        public WirepostClient build() {
            return new WirepostClient(this);
        }
    }
}
