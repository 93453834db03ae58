package dev.wirepost.spring;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.AlreadyClosedException;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.NavigableMap;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedDeque;
import java.util.concurrent.Executor;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.amqp.rabbit.connection.ConnectionFactory;

/**
 * Pushes to the broker: persistent, mandatory, confirmed; repeated with the same id while the connection fails.
 *
 * <p>On a channel of its own. {@code RabbitTemplate} reports a refusal of the broker and a lost channel alike, told apart
 * only by a text; here the one fails a push, and the other repeats it.
 */
final class Publisher {
    /** Pushes without a confirm at the same time; more wait. */
    private static final int WINDOW = 256;
    /** Pushes that wait; more fail. */
    private static final int QUEUE = 10_000;
    private static final long WAIT_FIRST_MILLIS = 200;
    private static final long WAIT_MAX_MILLIS = 2000;
    private static final Logger LOG = LoggerFactory.getLogger("wirepost");

    private final ConnectionFactory connections;
    private final Executor calls;
    private final ScheduledExecutorService scheduler;
    private final Thread thread = new Thread(this::work, "wirepost-publisher");

    private final ConcurrentLinkedDeque<Push> queue = new ConcurrentLinkedDeque<>();
    private final AtomicInteger waiting = new AtomicInteger();
    /** Guards what follows, and {@code Wire.unconfirmed}. */
    private final Object lock = new Object();
    private Wire wire;
    private boolean stopped;
    /** Pushes that were in flight when the broker refused one of them: they are repeated one at a time. */
    private int suspects;

    private static final class Push {
        final String id;
        final String exchange;
        final byte[] body;
        final Map<String, Object> headers;
        final CompletableFuture<String> result = new CompletableFuture<>();
        ScheduledFuture<?> timeout;
        volatile boolean onWire;
        boolean returned;
        boolean suspect;

        Push(String id, String exchange, byte[] body, Map<String, Object> headers) {
            this.id = id;
            this.exchange = exchange;
            this.body = body;
            this.headers = headers;
        }
    }

    /** A channel, and what it has not confirmed. */
    private static final class Wire {
        final Channel channel;
        final NavigableMap<Long, Push> unconfirmed = new TreeMap<>();
        boolean ended;

        Wire(Channel channel) {
            this.channel = channel;
        }
    }

    Publisher(ConnectionFactory connections, Executor calls, ScheduledExecutorService scheduler) {
        this.connections = connections;
        this.calls = calls;
        this.scheduler = scheduler;
        thread.setDaemon(true);
        thread.start();
    }

    /** Pushes that have no final answer. */
    int waiting() {
        return waiting.get();
    }

    /** Completes with the id, or a {@link PushException}. */
    CompletableFuture<String> publish(
            String id, String exchange, byte[] body, Map<String, Object> headers, Duration timeout) {
        Push push = new Push(id, exchange, body, headers);
        if (waiting.incrementAndGet() > QUEUE) {
            waiting.decrementAndGet();
            return CompletableFuture.failedFuture(new PushException.Unavailable(id, QUEUE + " pushes wait already"));
        }
        push.result.whenComplete((done, error) -> waiting.decrementAndGet());
        push.timeout = scheduler.schedule(() -> late(push, timeout), timeout.toNanos(), TimeUnit.NANOSECONDS);
        queue.addLast(push);
        synchronized (lock) {
            lock.notifyAll();
        }
        return push.result;
    }

    private void late(Push push, Duration timeout) {
        fail(push, push.onWire
                ? new PushException.Unconfirmed(push.id, "no confirm within " + timeout + ": it may have arrived")
                : new PushException.Unavailable(push.id, "no connection to the broker within " + timeout));
    }

    private void fail(Push push, PushException error) {
        push.timeout.cancel(false);
        push.result.completeExceptionally(error);
    }

    /** What waits fails when its time is over. */
    void stop() {
        Wire last;
        synchronized (lock) {
            stopped = true;
            last = wire;
            lock.notifyAll();
        }
        thread.interrupt();
        if (last != null) {
            close(last.channel);
        }
    }

    // ---- the thread ----

    private void work() {
        int failures = 0;
        try {
            while (true) {
                Push push = next();
                if (push == null) {
                    return;
                }
                Wire on = open();
                if (on != null) {
                    failures = 0;
                    send(push, on);
                } else {
                    queue.addFirst(push);
                    long most = Math.min(WAIT_MAX_MILLIS, WAIT_FIRST_MILLIS << Math.min(failures++, 10));
                    Thread.sleep(ThreadLocalRandom.current().nextLong(most / 2, most + 1));
                }
            }
        } catch (InterruptedException stop) {
            LOG.debug("wirepost: pushes have ended");
        }
    }

    /** Waits for a push and for room in the window; null at the end. */
    private Push next() throws InterruptedException {
        synchronized (lock) {
            while (!stopped) {
                int window = suspects > 0 ? 1 : WINDOW;
                boolean room = wire == null || wire.unconfirmed.size() < window;
                Push push = room ? queue.pollFirst() : null;
                if (push != null && push.result.isDone()) {
                    cleared(push);
                } else if (push != null) {
                    return push;
                } else {
                    lock.wait();
                }
            }
            return null;
        }
    }

    private Wire open() {
        synchronized (lock) {
            if (wire != null) {
                return wire;
            }
        }
        try {
            Connection connection = connections.createConnection().getDelegate();
            Channel channel = connection == null ? null : connection.createChannel();
            if (channel == null) {
                throw new IOException("no channel is left");
            }
            Wire made = new Wire(channel);
            channel.addConfirmListener((number, multiple) -> confirmed(made, number, multiple, true),
                    (number, multiple) -> confirmed(made, number, multiple, false));
            channel.addReturnListener(returned -> returned(made, returned.getProperties().getMessageId()));
            channel.confirmSelect();
            synchronized (lock) {
                wire = made;
            }
            channel.addShutdownListener(cause -> ended(made, cause)); // called at once where it has ended already
            return made;
        } catch (IOException | RuntimeException error) { // whatever it is, the thread goes on
            LOG.info("wirepost: no channel for pushes: {}", error.toString());
            return null;
        }
    }

    private void send(Push push, Wire on) {
        AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder()
                .contentType("application/json")
                .deliveryMode(2)
                .messageId(push.id)
                .headers(push.headers)
                .build();
        boolean before = push.onWire;
        synchronized (lock) {
            if (on.ended) {
                queue.addFirst(push);
                return;
            }
            push.returned = false;
            push.onWire = true;
            on.unconfirmed.put(on.channel.getNextPublishSeqNo(), push);
        }
        try {
            on.channel.basicPublish(push.exchange, "", true, properties, push.body);
        } catch (AlreadyClosedException error) {
            again(on, push);
            push.onWire = before; // nothing was written
        } catch (IOException | RuntimeException error) {
            LOG.info("wirepost: push {} is repeated: {}", push.id, error.toString());
            again(on, push);
            close(on.channel);
        }
    }

    /** Unless the end of the channel has put it back already. */
    private void again(Wire on, Push push) {
        synchronized (lock) {
            if (on.unconfirmed.values().remove(push)) {
                queue.addFirst(push);
            }
        }
    }

    private static void close(Channel channel) {
        try {
            channel.abort();
        } catch (IOException | RuntimeException error) {
            LOG.debug("wirepost: closing a channel: {}", error.toString());
        }
    }

    // ---- what the broker says ----

    private void returned(Wire on, String id) {
        synchronized (lock) {
            on.unconfirmed.values().stream()
                    .filter(push -> push.id.equals(id) && !push.returned)
                    .findFirst()
                    .ifPresent(push -> push.returned = true);
        }
    }

    private void confirmed(Wire on, long number, boolean multiple, boolean taken) {
        List<Push> done;
        synchronized (lock) {
            Map<Long, Push> these = multiple
                    ? on.unconfirmed.headMap(number, true)
                    : on.unconfirmed.subMap(number, true, number, true);
            done = new ArrayList<>(these.values());
            these.clear();
            done.forEach(this::cleared);
            lock.notifyAll();
        }
        calls.execute(() -> done.forEach(push -> settle(push, taken)));
    }

    private void settle(Push push, boolean taken) {
        if (!taken) {
            fail(push, new PushException.Refused(push.id, "the broker did not take it", null));
        } else if (push.returned) {
            fail(push, new PushException.Unroutable(push.id));
        } else {
            push.timeout.cancel(false);
            push.result.complete(push.id);
        }
    }

    private void ended(Wire on, ShutdownSignalException cause) {
        // 403, 404, 406: the broker closed the channel, and only that, because of a push.
        boolean refusal = !cause.isHardError() && cause.getReason() instanceof AMQP.Channel.Close
                && !cause.isInitiatedByApplication();
        Push refused = null;
        synchronized (lock) {
            if (on.ended) {
                return;
            }
            on.ended = true;
            if (wire == on) {
                wire = null;
            }
            List<Push> back = new ArrayList<>(on.unconfirmed.values());
            on.unconfirmed.clear();
            if (refusal && back.size() == 1) {
                refused = back.remove(0);
                cleared(refused);
            }
            for (int i = back.size() - 1; i >= 0; i--) {
                Push push = back.get(i);
                if (refusal && !push.suspect) {
                    push.suspect = true;
                    suspects++;
                }
                queue.addFirst(push);
            }
            lock.notifyAll();
        }
        if (refused != null) {
            Push push = refused;
            calls.execute(() -> fail(push,
                    new PushException.Refused(push.id, "the broker refused it: " + cause.getMessage(), cause)));
        }
    }

    /** Holding the lock. */
    private void cleared(Push push) {
        if (push.suspect) {
            push.suspect = false;
            suspects--;
        }
    }
}
