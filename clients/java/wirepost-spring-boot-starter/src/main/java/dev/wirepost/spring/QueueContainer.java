package dev.wirepost.spring;

import com.rabbitmq.client.Channel;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import org.springframework.amqp.core.AcknowledgeMode;
import org.springframework.amqp.core.Message;
import org.springframework.amqp.rabbit.connection.ConnectionFactory;
import org.springframework.amqp.rabbit.listener.DirectMessageListenerContainer;
import org.springframework.util.backoff.BackOff;
import org.springframework.util.backoff.BackOffExecution;

/** Spring AMQP's container for one queue, with the waits of this library, and a look at its consumers. */
final class QueueContainer extends DirectMessageListenerContainer {
    private static final long WAIT_FIRST_MILLIS = 500;
    private static final long WAIT_MAX_MILLIS = 15_000;

    private final QueueListener listener;

    QueueContainer(ConnectionFactory connections, String queue, QueueListener listener, WirepostProperties settings) {
        super(connections);
        this.listener = listener;
        setQueueNames(queue);
        setMessageListener(listener);
        setAcknowledgeMode(AcknowledgeMode.MANUAL);
        setConsumersPerQueue(settings.concurrency());
        setPrefetchCount(Math.max(1, settings.prefetch() / settings.concurrency()));
        setShutdownTimeout(settings.grace().toMillis());
        setListenerId("wirepost-" + queue);
        setAutoStartup(false); // Consumers starts it
        // Consumers that ended are made again once in this time, which differs between replicas.
        long interval = ThreadLocalRandom.current().nextLong(500, 1500);
        setMonitorInterval(interval);
        setFailedDeclarationRetryInterval(interval);
        setRecoveryBackOff(jitter());
    }

    /** After the stop Spring would leave what was fetched to the end of the channel, which counts as a failure. */
    @Override
    protected void executeListener(Channel channel, Object data) {
        if (listener.stopping() && data instanceof Message message) {
            listener.onMessage(message, channel);
        } else {
            super.executeListener(channel, data);
        }
    }

    /** Whether the broker sends messages. Spring holds the lock while it waits for a broker that is away. */
    boolean consuming() {
        try {
            if (!consumersLock.tryLock(100, TimeUnit.MILLISECONDS)) {
                return false;
            }
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            return false;
        }
        try {
            return isRunning() && consumers.stream().anyMatch(consumer -> consumer.getChannel().isOpen());
        } finally {
            consumersLock.unlock();
        }
    }

    private static BackOff jitter() {
        return () -> new BackOffExecution() {
            private int failures;

            @Override
            public long nextBackOff() {
                long most = Math.min(WAIT_MAX_MILLIS, WAIT_FIRST_MILLIS << Math.min(failures++, 10));
                return ThreadLocalRandom.current().nextLong(most / 10, most + 1);
            }
        };
    }
}
