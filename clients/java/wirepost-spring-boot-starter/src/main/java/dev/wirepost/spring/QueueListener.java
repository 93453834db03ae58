package dev.wirepost.spring;

import com.rabbitmq.client.AlreadyClosedException;
import com.rabbitmq.client.Channel;
import dev.wirepost.client.Envelopes;
import dev.wirepost.client.Message;
import dev.wirepost.client.Patterns;
import io.micrometer.observation.Observation;
import io.micrometer.observation.ObservationRegistry;
import io.micrometer.observation.transport.ReceiverContext;
import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.amqp.rabbit.connection.ChannelProxy;
import org.springframework.amqp.rabbit.listener.api.ChannelAwareMessageListener;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;

/** One queue: deliveries to listeners, and what becomes of them. */
final class QueueListener implements ChannelAwareMessageListener {
    private static final long RETRY_FIRST_MILLIS = 200;
    private static final long RETRY_MAX_MILLIS = 30_000;
    private static final Logger LOG = LoggerFactory.getLogger("wirepost");

    /** What becomes of a delivery. */
    private enum Outcome {
        DONE("acknowledged"),
        REPEAT("handled before, and acknowledged"),
        FAILED("failed; it is delivered again, and after `deliveryLimit` failures it moves to the dead letters"),
        DEAD("moved to the dead letters");

        final String text;

        Outcome(String text) {
            this.text = text;
        }
    }

    private record Key(String sender, String messageId) {}

    /** A checked exception of a listener on its way through {@link Dedupe}. */
    private static final class Failure extends RuntimeException {
        private static final long serialVersionUID = 1;

        Failure(Throwable cause) {
            super(cause);
        }
    }

    private final String queue;
    private final List<ListenerMethods.Listener> listeners;
    private final Dedupe dedupe;
    private final Envelopes envelopes;
    private final ObservationRegistry observations;
    private final ScheduledExecutorService scheduler;
    /** Messages that are being handled: a redelivery of one waits for its end. */
    private final Map<Key, CompletableFuture<Void>> busy = new ConcurrentHashMap<>();
    /** Failed ones that wait for their return. */
    private final Set<Retry> retries = ConcurrentHashMap.newKeySet();
    private volatile boolean stopping;

    private final class Retry implements Runnable {
        final Channel channel;
        final long tag;

        Retry(Channel channel, long tag) {
            this.channel = channel;
            this.tag = tag;
        }

        @Override
        public void run() {
            if (retries.remove(this)) {
                answer(channel, () -> channel.basicReject(tag, true)); // the broker counts this one as a failure
            }
        }
    }

    private interface Answer {
        void send() throws IOException;
    }

    QueueListener(String queue, List<ListenerMethods.Listener> listeners, Dedupe dedupe, Envelopes envelopes,
            ObservationRegistry observations, ScheduledExecutorService scheduler) {
        this.queue = queue;
        this.listeners = listeners;
        this.dedupe = dedupe;
        this.envelopes = envelopes;
        this.observations = observations;
        this.scheduler = scheduler;
    }

    /** From now on what was fetched is given back, and what waits for its return returns. */
    void stop() {
        stopping = true;
        List.copyOf(retries).forEach(Retry::run);
    }

    boolean stopping() {
        return stopping;
    }

    @Override
    public void onMessage(org.springframework.amqp.core.Message delivery, Channel given) {
        // Spring's proxy would send an answer that is late over the channel that replaced this one.
        Channel channel = given instanceof ChannelProxy proxy ? proxy.getTargetChannel() : given;
        long tag = delivery.getMessageProperties().getDeliveryTag();
        if (stopping) {
            answer(channel, () -> channel.basicNack(tag, false, true)); // the broker does not count this one
            return;
        }
        switch (observed(delivery)) {
            case DONE, REPEAT -> answer(channel, () -> channel.basicAck(tag, false));
            case DEAD -> answer(channel, () -> channel.basicReject(tag, false));
            case FAILED -> later(new Retry(channel, tag), delivery);
        }
    }

    /** The others go on meanwhile. */
    private void later(Retry retry, org.springframework.amqp.core.Message delivery) {
        Object count = delivery.getMessageProperties().getHeaders().get("x-delivery-count");
        int failures = count instanceof Number number ? Math.min(number.intValue(), 20) : 0;
        long most = Math.min(RETRY_MAX_MILLIS, RETRY_FIRST_MILLIS << failures);
        retries.add(retry);
        if (!stopping) {
            scheduler.schedule(retry, ThreadLocalRandom.current().nextLong(most / 2, most + 1), TimeUnit.MILLISECONDS);
        }
        if (stopping) {
            retry.run();
        }
    }

    private void answer(Channel channel, Answer answer) {
        try {
            answer.send();
        } catch (IOException | AlreadyClosedException error) {
            LOG.info("wirepost: {}: the channel ended before a message was answered: it comes again", queue);
        }
    }

    private Outcome observed(org.springframework.amqp.core.Message delivery) {
        Map<String, Object> headers = delivery.getMessageProperties().getHeaders();
        ReceiverContext<Map<String, Object>> context = new ReceiverContext<>((carrier, name) ->
                carrier.get(name) instanceof String value ? value : null);
        context.setCarrier(headers);
        Observation observation = Observation.createNotStarted("wirepost.receive", () -> context, observations)
                .contextualName("receive " + queue)
                .lowCardinalityKeyValue("queue", queue)
                .start();
        Outcome outcome = Outcome.FAILED;
        try (Observation.Scope scope = observation.openScope()) {
            Outcome[] result = {Outcome.FAILED};
            TraceContext.carry(headers::get, () -> result[0] = read(delivery));
            outcome = result[0];
            return outcome;
        } finally {
            observation.lowCardinalityKeyValue("outcome", outcome.name().toLowerCase(java.util.Locale.ROOT));
            observation.stop();
        }
    }

    private Outcome read(org.springframework.amqp.core.Message delivery) {
        Message<JsonNode> message;
        try {
            message = envelopes.read(delivery.getBody());
        } catch (IllegalArgumentException error) {
            LOG.error("wirepost: {}: {} is no envelope ({}); {}", queue,
                    delivery.getMessageProperties().getMessageId(), error.getMessage(), Outcome.DEAD.text);
            return Outcome.DEAD;
        }
        Key key = new Key(message.fromUniqueId() == null ? "" : message.fromUniqueId(), message.id());
        CompletableFuture<Void> mine = new CompletableFuture<>();
        for (CompletableFuture<Void> other = busy.putIfAbsent(key, mine); other != null;
                other = busy.putIfAbsent(key, mine)) {
            other.join();
        }
        try {
            return handle(message, key);
        } finally {
            busy.remove(key);
            mine.complete(null);
        }
    }

    private Outcome handle(Message<JsonNode> message, Key key) {
        List<ListenerMethods.Listener> those = listeners.stream()
                .filter(one -> one.patterns().stream()
                        .anyMatch(pattern -> Patterns.matches(pattern, message.messageType())))
                .toList();
        if (those.isEmpty()) {
            LOG.error("wirepost: {}: no listener for {}; {}", queue, message, Outcome.DEAD.text);
            return Outcome.DEAD;
        }
        try {
            boolean ran = dedupe.once(key.sender(), key.messageId(), () -> those.forEach(one -> call(one, message)));
            return ran ? Outcome.DONE : Outcome.REPEAT;
        } catch (Exception | Error error) {
            Throwable cause = error instanceof Failure ? error.getCause() : error;
            if (cause instanceof DeadLetterException) {
                LOG.error("wirepost: {}: {}: {}; {}", queue, message, cause.getMessage(), Outcome.DEAD.text);
                return Outcome.DEAD;
            }
            LOG.error("wirepost: {}: {} {}", queue, message, Outcome.FAILED.text, cause);
            return Outcome.FAILED;
        }
    }

    private void call(ListenerMethods.Listener listener, Message<JsonNode> message) {
        Object content;
        try {
            content = listener.content() == JsonNode.class
                    ? message.content()
                    : envelopes.mapper().treeToValue(message.content(),
                            envelopes.mapper().constructType(listener.content()));
        } catch (JacksonException error) {
            throw new DeadLetterException("its content does not fit " + listener.content().getTypeName() + ": "
                    + error.getOriginalMessage(), error);
        }
        try {
            listener.call(message.withContent(content));
        } catch (RuntimeException | Error error) {
            throw error;
        } catch (Throwable error) {
            throw new Failure(error);
        }
    }
}
