package dev.wirepost.spring;

import dev.wirepost.client.Envelopes;
import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.binder.MeterBinder;
import io.micrometer.observation.ObservationRegistry;
import java.security.NoSuchAlgorithmException;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLContext;
import org.springframework.amqp.rabbit.connection.CachingConnectionFactory;
import org.springframework.beans.factory.DisposableBean;
import org.springframework.beans.factory.ObjectProvider;
import org.springframework.boot.autoconfigure.AutoConfiguration;
import org.springframework.boot.autoconfigure.condition.ConditionalOnClass;
import org.springframework.boot.context.properties.EnableConfigurationProperties;
import org.springframework.boot.health.contributor.Health;
import org.springframework.boot.health.contributor.HealthIndicator;
import org.springframework.boot.ssl.SslBundles;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.core.env.Environment;
import org.springframework.scheduling.concurrent.CustomizableThreadFactory;
import tools.jackson.databind.json.JsonMapper;

/** The beans of this starter: {@link WirepostTemplate}, {@link WirepostTokens}, and what serves the listeners. */
@AutoConfiguration(afterName = "org.springframework.boot.jackson.autoconfigure.JacksonAutoConfiguration")
@EnableConfigurationProperties(WirepostProperties.class)
public class WirepostAutoConfiguration {
    /** For Spring. */
    public WirepostAutoConfiguration() {}

    @Bean
    static ListenerMethods wirepostListenerMethods() {
        return new ListenerMethods();
    }

    @Bean
    Bindings wirepostBindings(WirepostProperties settings, Environment environment) {
        return new Bindings(settings, environment.getProperty("SERVICE_BINDING_ROOT"));
    }

    @Bean
    Broker wirepostBroker(Bindings bindings, WirepostProperties settings, ObjectProvider<SslBundles> bundles)
            throws NoSuchAlgorithmException {
        SSLContext authorities = settings.sslBundle() == null
                ? SSLContext.getDefault()
                : bundles.getObject().getBundle(settings.sslBundle()).createSslContext();
        return new Broker(bindings, authorities);
    }

    @Bean
    WirepostTemplate wirepostTemplate(Bindings bindings, Broker broker, WirepostProperties settings,
            ObjectProvider<JsonMapper> mapper, ObjectProvider<ObservationRegistry> observations) {
        return new WirepostTemplate(bindings, broker.publisher, envelopes(mapper),
                observations.getIfUnique(() -> ObservationRegistry.NOOP), settings.pushTimeout());
    }

    @Bean
    WirepostTokens wirepostTokens(Bindings bindings) {
        return new WirepostTokens(bindings);
    }

    @Bean
    Consumers wirepostConsumers(Bindings bindings, ListenerMethods methods, Broker broker,
            ObjectProvider<Dedupe> dedupe, ObjectProvider<JsonMapper> mapper,
            ObjectProvider<ObservationRegistry> observations, WirepostProperties settings) {
        return new Consumers(bindings, methods, broker.connections, dedupe.getIfUnique(), envelopes(mapper),
                observations.getIfUnique(() -> ObservationRegistry.NOOP), broker.calls, broker.scheduler,
                settings);
    }

    private static Envelopes envelopes(ObjectProvider<JsonMapper> mapper) {
        JsonMapper own = mapper.getIfUnique();
        return own == null ? Envelopes.standard() : new Envelopes(own);
    }

    /** Connections and threads, hidden from the application's own broker: no bean has Spring AMQP's types. */
    static final class Broker implements DisposableBean {
        /** Listeners run here: as many threads as there are consumers. */
        final ExecutorService calls = new ThreadPoolExecutor(0, Integer.MAX_VALUE, 30, TimeUnit.SECONDS,
                new SynchronousQueue<>(), new CustomizableThreadFactory("wirepost-"));
        final ScheduledExecutorService scheduler = scheduler();
        final CachingConnectionFactory connections;
        final Publisher publisher;

        Broker(Bindings bindings, SSLContext authorities) {
            connections = Connections.caching(bindings::read, authorities, calls);
            publisher = new Publisher(connections.getPublisherConnectionFactory(), calls, scheduler);
        }

        private static ScheduledExecutorService scheduler() {
            CustomizableThreadFactory threads = new CustomizableThreadFactory("wirepost-timer-");
            threads.setDaemon(true);
            ScheduledThreadPoolExecutor scheduler = new ScheduledThreadPoolExecutor(1, threads);
            scheduler.setRemoveOnCancelPolicy(true);
            return scheduler;
        }

        @Override
        public void destroy() {
            publisher.stop();
            connections.destroy();
            scheduler.shutdownNow();
            calls.shutdownNow();
        }
    }

    @Configuration(proxyBeanMethods = false)
    @ConditionalOnClass(HealthIndicator.class)
    static class HealthConfiguration {
        /** For readiness, not for liveness: a restart does not mend a broker. */
        @Bean
        HealthIndicator wirepostHealthIndicator(Consumers consumers) {
            return () -> {
                Map<String, Boolean> queues = consumers.consuming();
                boolean up = consumers.isRunning() && queues.values().stream().allMatch(consuming -> consuming);
                return (up ? Health.up() : Health.down()).withDetail("consuming", queues).build();
            };
        }
    }

    @Configuration(proxyBeanMethods = false)
    @ConditionalOnClass(MeterBinder.class)
    static class MetricsConfiguration {
        @Bean
        MeterBinder wirepostMetrics(Broker broker, Consumers consumers) {
            return registry -> {
                Gauge.builder("wirepost.push.waiting", broker.publisher, Publisher::waiting)
                        .description("Pushes without a confirm")
                        .register(registry);
                Gauge.builder("wirepost.queues.missing", consumers,
                                all -> all.consuming().values().stream().filter(consuming -> !consuming).count())
                        .description("Queues with listeners that the broker sends no messages of")
                        .register(registry);
            };
        }
    }
}
