package dev.wirepost.spring;

import java.time.Duration;
import java.util.List;
import org.springframework.boot.context.properties.ConfigurationProperties;
import org.springframework.boot.context.properties.bind.DefaultValue;

/**
 * Settings of a service. With a mounted Secret none is needed: {@code SERVICE_BINDING_ROOT} names its folder.
 *
 * @param binding Which binding is meant, where there are several: the name of its folder, or of the business
 * @param bindingRoot The folder with all bindings, or that of a mounted Secret, instead of SERVICE_BINDING_ROOT
 * @param business The business; with it the binding is not read, and amqp is needed
 * @param amqp The broker: amqp://user:password@host:port/vhost, or amqps
 * @param queues Declared names of the queues that listeners without a queue of their own consume
 * @param edge The edges' public address, https://ws.example; for the token call
 * @param apiKey The business's API key; for the token call
 * @param sslBundle Name of an SSL bundle for amqps; without it the JVM's authorities are trusted
 * @param concurrency How many listeners run at the same time, for each queue
 * @param prefetch How many messages are fetched, for each queue
 * @param pushTimeout What one push is given
 * @param grace What running listeners are given at the end
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
