package dev.wirepost.spring;

import dev.wirepost.client.Envelopes;
import io.micrometer.observation.ObservationRegistry;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executor;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.springframework.amqp.rabbit.connection.ConnectionFactory;
import org.springframework.context.SmartLifecycle;

/**
 * Consumes the queues that have listeners. Starts last and stops first: what listeners need is there while they run.
 */
final class Consumers implements SmartLifecycle {
    private final Bindings bindings;
    private final ListenerMethods methods;
    private final ConnectionFactory connections;
    private final Dedupe dedupe;
    private final Envelopes envelopes;
    private final ObservationRegistry observations;
    private final Executor calls;
    private final ScheduledExecutorService scheduler;
    private final WirepostProperties settings;
    private final Map<String, QueueConsumer> consumers = new ConcurrentHashMap<>();
    private volatile boolean running;

    /** {@code dedupe} may be null: a memory for each set of listeners. */
    Consumers(Bindings bindings, ListenerMethods methods, ConnectionFactory connections, Dedupe dedupe,
            Envelopes envelopes, ObservationRegistry observations, Executor calls, ScheduledExecutorService scheduler,
            WirepostProperties settings) {
        this.bindings = bindings;
        this.methods = methods;
        this.connections = connections;
        this.dedupe = dedupe;
        this.envelopes = envelopes;
        this.observations = observations;
        this.calls = calls;
        this.scheduler = scheduler;
        this.settings = settings;
    }

    @Override
    public void start() {
        // A message for two queues has one id. Where both have the same listeners it is handled once, else in each.
        Map<List<ListenerMethods.Listener>, Dedupe> memories = new HashMap<>();
        queues().forEach((queue, those) -> {
            Dedupe own = dedupe != null ? dedupe : memories.computeIfAbsent(those, same -> new MemoryDedupe());
            QueueListener listener = new QueueListener(queue, those, own, envelopes, observations, scheduler);
            QueueConsumer consumer = new QueueConsumer(queue, listener, connections, calls, scheduler, settings);
            consumers.put(queue, consumer);
            consumer.start();
        });
        running = true;
    }

    /** Each queue, and its listeners. */
    private Map<String, List<ListenerMethods.Listener>> queues() {
        Map<String, List<ListenerMethods.Listener>> queues = new LinkedHashMap<>();
        for (ListenerMethods.Listener listener : methods.all()) {
            Binding binding = bindings.get();
            Collection<String> names = listener.queue().isEmpty()
                    ? binding.queues().values()
                    : List.of(binding.queue(listener.queue()));
            if (names.isEmpty()) {
                throw new BindingException(binding.business() + " has no queue for "
                        + listener.method().toGenericString() + ": name it in the annotation, or by wirepost.queues");
            }
            names.forEach(name -> queues.computeIfAbsent(name, same -> new ArrayList<>()).add(listener));
        }
        return queues;
    }

    /** In order: no new messages, what has not begun goes back to its queue, running listeners end. */
    @Override
    public void stop() {
        CountDownLatch stopped = new CountDownLatch(consumers.size());
        consumers.values().forEach(consumer -> consumer.stop(stopped::countDown));
        try {
            stopped.await(settings.grace().toMillis() + 5000, TimeUnit.MILLISECONDS);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
        consumers.values().forEach(QueueConsumer::destroy);
        consumers.clear();
        running = false;
    }

    @Override
    public boolean isRunning() {
        return running;
    }

    /** Each queue, and whether the broker sends its messages. */
    Map<String, Boolean> consuming() {
        Map<String, Boolean> queues = new LinkedHashMap<>();
        consumers.forEach((queue, consumer) -> queues.put(queue, consumer.consuming()));
        return queues;
    }
}
