package dev.wirepost.spring;

import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.util.concurrent.Executor;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.amqp.AmqpException;
import org.springframework.amqp.rabbit.connection.ConnectionFactory;
import org.springframework.amqp.rabbit.connection.RabbitUtils;
import org.springframework.amqp.rabbit.listener.MissingQueueEvent;

/**
 * Consumes one queue as soon and as long as it exists. Spring's container would ask for a missing queue with each of its
 * consumers every second, and log each time; here one question is asked, and one line written.
 */
final class QueueConsumer {
    private static final long WAIT_FIRST_MILLIS = 500;
    private static final long WAIT_MAX_MILLIS = 15_000;
    private static final Logger LOG = LoggerFactory.getLogger("wirepost");

    private final String queue;
    private final QueueListener listener;
    private final QueueContainer container;
    private final ConnectionFactory connections;
    private final Executor calls;
    private final ScheduledExecutorService scheduler;
    /** Whether the queue is looked for, instead of consumed. */
    private final AtomicBoolean looking = new AtomicBoolean(true);
    private int absences;
    private boolean stopped;

    QueueConsumer(String queue, QueueListener listener, ConnectionFactory connections, Executor calls,
            ScheduledExecutorService scheduler, WirepostProperties settings) {
        this.queue = queue;
        this.listener = listener;
        this.connections = connections;
        this.calls = calls;
        this.scheduler = scheduler;
        container = new QueueContainer(connections, queue, listener, settings);
        container.setApplicationEventPublisher(event -> {
            if (event instanceof MissingQueueEvent && looking.compareAndSet(false, true)) {
                calls.execute(this::gone);
            }
        });
        container.afterPropertiesSet();
    }

    void start() {
        calls.execute(this::look);
    }

    private void gone() {
        container.stop();
        look();
    }

    private void look() {
        boolean missing = missing();
        synchronized (this) {
            if (stopped) {
                return;
            }
            if (!missing) {
                absences = 0;
                looking.set(false);
                container.start();
                return;
            }
            if (absences == 0) {
                LOG.warn("wirepost: there is no queue {}; it is consumed as soon as there is", queue);
            }
            long most = Math.min(WAIT_MAX_MILLIS, WAIT_FIRST_MILLIS << Math.min(absences++, 10));
            scheduler.schedule(() -> calls.execute(this::look),
                    ThreadLocalRandom.current().nextLong(most / 2, most + 1), TimeUnit.MILLISECONDS);
        }
    }

    /** What else may be wrong is for the container to mend. */
    private boolean missing() {
        try {
            Channel channel = connections.createConnection().createChannel(false);
            try {
                channel.queueDeclarePassive(queue);
                return false;
            } catch (IOException error) {
                return error.getCause() instanceof ShutdownSignalException cause
                        && RabbitUtils.isPassiveDeclarationChannelClose(cause);
            } finally {
                RabbitUtils.closeChannel(channel);
            }
        } catch (AmqpException | ShutdownSignalException away) {
            return false;
        }
    }

    /** In order, see {@link Consumers#stop()}; {@code then} is called at the end. */
    void stop(Runnable then) {
        listener.stop();
        synchronized (this) {
            stopped = true;
        }
        container.stop(then);
    }

    void destroy() {
        container.destroy();
    }

    /** Whether the broker sends messages. */
    boolean consuming() {
        return !looking.get() && container.consuming();
    }
}
