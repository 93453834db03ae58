package dev.wirepost.client;

import java.lang.System.Logger.Level;
import java.util.ArrayDeque;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import java.util.function.BiConsumer;
import tools.jackson.databind.JsonNode;

/**
 * Hands messages to the handlers on a thread of its own, one after the other, and moves the stored cursor behind them.
 * The loop puts in; it never waits.
 */
final class Inbox implements Runnable {
    /** Messages that wait for a slow handler; more stay in the socket, and at last the edge waits too (4008). */
    private static final int BACKLOG = 1024;
    private static final long BACKLOG_CHARS = 8 * 1024 * 1024;
    private static final System.Logger LOG = System.getLogger("wirepost");

    /** A handler, and the message types that it wants. */
    record Entry(String pattern, Handler<Message<JsonNode>> handler) {}

    /**
     * Ids belong to their sender: another client could use the id of a message that the services are going to send.
     *
     * @param client null for the services
     */
    private record Key(String business, String client, String id) {
        static Key of(Message<?> message) {
            boolean byClient = "ClientToClient".equals(message.sendType());
            return new Key(message.businessType(), byClient ? message.fromUniqueId() : null, message.id());
        }
    }

    private static final class Item {
        final Message<JsonNode> message;
        final Gap gap;
        final int size;
        String cursor;

        Item(Message<JsonNode> message, Gap gap, String cursor, int size) {
            this.message = message;
            this.gap = gap;
            this.cursor = cursor;
            this.size = size;
        }
    }

    final List<Entry> handlers = new CopyOnWriteArrayList<>();
    final List<Handler<Gap>> gapHandlers = new CopyOnWriteArrayList<>();

    private final CursorStore store;
    private final int attempts;
    private final BiConsumer<Throwable, Message<?>> onError;
    private final Runnable onRoom;
    private final Thread thread;
    private final Map<Key, Boolean> seen;

    private final ArrayDeque<Item> items = new ArrayDeque<>();
    private long chars;
    private boolean full;
    private boolean stopped;
    private String saved;

    Inbox(CursorStore store, int remembered, int attempts, BiConsumer<Throwable, Message<?>> onError, Runnable onRoom) {
        this.store = store;
        this.attempts = attempts;
        this.onError = onError;
        this.onRoom = onRoom;
        this.thread = Threads.named("wirepost-handlers-").newThread(this);
        this.seen = new LinkedHashMap<>(64, 0.75f, true) {
            private static final long serialVersionUID = 1;

            @Override
            protected boolean removeEldestEntry(Map.Entry<Key, Boolean> eldest) {
                return size() > remembered;
            }
        };
    }

    void start() {
        thread.start();
    }

    /** Whether this id of its sender is new; remembers it. On the loop. */
    boolean firstTime(Message<?> message) {
        return seen.put(Key.of(message), true) == null;
    }

    void put(Message<JsonNode> message, Gap gap, String cursor, int size) {
        synchronized (items) {
            Item last = items.peekLast();
            if (last != null && message == null && gap == null) {
                last.cursor = cursor != null ? cursor : last.cursor; // a position alone needs no place of its own
            } else {
                items.add(new Item(message, gap, cursor, size));
                chars += size;
                items.notifyAll();
            }
        }
    }

    /** Whether one more message fits. If not, {@code onRoom} is called when one does. */
    boolean hasRoom() {
        synchronized (items) {
            full = items.size() >= BACKLOG || chars >= BACKLOG_CHARS;
            return !full;
        }
    }

    /** The handler that runs is the last one. */
    void stop() {
        synchronized (items) {
            stopped = true;
            items.notifyAll();
        }
    }

    private boolean isStopped() {
        synchronized (items) {
            return stopped;
        }
    }

    boolean isHandlerThread() {
        return Thread.currentThread() == thread;
    }

    /** After {@link #stop()}: waits for the handler that runs, and then interrupts it. */
    void await(long millis) {
        try {
            thread.join(millis);
            if (thread.isAlive()) {
                thread.interrupt();
                thread.join(millis);
            }
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
    }

    @Override
    public void run() {
        try {
            while (true) {
                Item item = next();
                if (item == null) {
                    return;
                }
                handle(item);
                String cursor = done(item);
                if (cursor != null && !cursor.equals(saved)) {
                    save(cursor);
                }
            }
        } catch (InterruptedException stop) {
            LOG.log(Level.DEBUG, "wirepost: the client was closed while a handler ran");
        }
    }

    /** It keeps its place until it is done, so that a position that arrives meanwhile waits behind it. */
    private Item next() throws InterruptedException {
        synchronized (items) {
            while (!stopped && items.isEmpty()) {
                items.wait();
            }
            return stopped ? null : items.peek();
        }
    }

    private String done(Item item) {
        String cursor;
        boolean roomNow;
        synchronized (items) {
            items.poll();
            chars -= item.size;
            cursor = item.cursor;
            roomNow = full && items.size() <= BACKLOG / 2 && chars <= BACKLOG_CHARS / 2;
            full = full && !roomNow;
        }
        if (roomNow) {
            onRoom.run();
        }
        return cursor;
    }

    private void handle(Item item) throws InterruptedException {
        if (item.gap != null) {
            for (Handler<Gap> handler : gapHandlers) {
                call(handler, item.gap, null);
            }
        }
        if (item.message != null) {
            for (Entry entry : handlers) {
                if (Patterns.matches(entry.pattern(), item.message.messageType())) {
                    call(entry.handler(), item.message, item.message);
                }
            }
        }
    }

    /** Calls a handler until it succeeds, but not for ever: one message must not hold up all others. */
    private <T> void call(Handler<T> handler, T what, Message<?> message) throws InterruptedException {
        for (int attempt = 1; attempt <= attempts; attempt++) {
            try {
                handler.handle(what);
                return;
            } catch (InterruptedException error) {
                if (isStopped()) {
                    throw error;
                }
                report(error, message);
            } catch (Exception | Error error) {
                report(error, message);
            }
            if (attempt < attempts) {
                TimeUnit.NANOSECONDS.sleep(Waits.handler(attempt).toNanos());
            }
        }
    }

    private void save(String cursor) throws InterruptedException {
        try {
            store.save(cursor);
            saved = cursor;
        } catch (InterruptedException error) {
            if (isStopped()) {
                throw error;
            }
            report(error, null);
        } catch (Exception error) { // the next one may be saved; until then a restart repeats messages
            report(error, null);
        }
    }

    void report(Throwable error, Message<?> message) {
        try {
            onError.accept(error, message);
        } catch (RuntimeException failed) {
            LOG.log(Level.ERROR, "wirepost: onError failed", failed);
        }
    }

    static void log(Throwable error, Message<?> message) {
        String about = message == null ? "a callback failed" : "a handler failed with " + message;
        LOG.log(Level.ERROR, "wirepost: " + about, error);
    }
}
