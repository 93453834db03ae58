package dev.wirepost.spring;

import java.time.Duration;
import java.util.List;
import org.springframework.boot.context.properties.ConfigurationProperties;
import org.springframework.boot.context.properties.bind.DefaultValue;

/**
 * Settings of a service. With a mounted Secret none is needed: {@code SERVICE_BINDING_ROOT} names its folder.
 *
 * @param binding which binding is meant, where there are several: the name of its folder, or of the business
 * @param bindingRoot the folder with all bindings, or that of a mounted Secret, instead of {@code SERVICE_BINDING_ROOT}
 * @param business the business; with it the binding is not read, and {@code amqp} is needed
 * @param amqp {@code amqp://user:password@host:port/vhost}, or {@code amqps}
 * @param queues declared names of the queues that listeners without a queue of their own consume
 * @param edge the edges' public address, {@code https://ws.example}; for the token call
 * @param apiKey the business's API key; for the token call
 * @param sslBundle name of an SSL bundle for {@code amqps}; without it the JVM's authorities are trusted
 * @param concurrency how many listeners run at the same time, for each queue
 * @param prefetch how many messages are fetched, for each queue
 * @param pushTimeout for one push
 * @param grace what running listeners are given at the end
 */
@ConfigurationProperties("wirepost")
public record WirepostProperties(
        String binding,
        String bindingRoot,
        String business,
        String amqp,
        @DefaultValue List<String> queues,
        String edge,
        String apiKey,
        String sslBundle,
        @DefaultValue("10") int concurrency,
        @DefaultValue("20") int prefetch,
        @DefaultValue("10s") Duration pushTimeout,
        @DefaultValue("25s") Duration grace) {

    /** Checks the numbers. */
    public WirepostProperties {
        if (concurrency < 1 || prefetch < concurrency) {
            throw new IllegalArgumentException("wirepost.concurrency must be at least 1, and wirepost.prefetch at least"
                    + " wirepost.concurrency");
        }
    }

    /** Without credentials. */
    @Override
    public String toString() {
        return "wirepost settings of " + (business == null ? "a binding" : business);
    }
}
