package dev.wirepost.spring;

import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import java.io.IOException;
import java.net.URI;
import java.net.URISyntaxException;
import java.security.GeneralSecurityException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.TimeoutException;
import java.util.function.Supplier;
import javax.net.ssl.SSLContext;
import org.springframework.amqp.rabbit.connection.CachingConnectionFactory;

/**
 * Makes each connection with the address and credentials of that moment. Spring's own factory would keep those that it
 * began with, so after a rotation it would try a user that is gone.
 */
final class Connections extends ConnectionFactory {
    /** Without one a dead network is noticed after minutes. */
    private static final int HEARTBEAT_SECONDS = 10;
    private static final int TIMEOUT_MILLIS = 10_000;

    private final Supplier<Binding> bindings;
    private final SSLContext authorities;

    private Connections(Supplier<Binding> bindings, SSLContext authorities) {
        this.bindings = bindings;
        this.authorities = authorities;
        setAutomaticRecoveryEnabled(false); // Spring AMQP recovers
    }

    /** For listeners, and (its publisher connection factory) for pushes: a broker that blocks pushes lets acks through. */
    static CachingConnectionFactory caching(Supplier<Binding> bindings, SSLContext authorities, ExecutorService calls) {
        CachingConnectionFactory factory = new CachingConnectionFactory(new Connections(bindings, authorities));
        factory.setExecutor(calls);
        factory.setConnectionNameStrategy(same -> "wirepost-java");
        return factory;
    }

    /** Spring logs where it connects to. */
    @Override
    public String getHost() {
        return address().getHost();
    }

    @Override
    public int getPort() {
        URI address = address();
        return address.getPort() >= 0 ? address.getPort() : portOrDefault(USE_DEFAULT_PORT, isAmqps(address));
    }

    private static boolean isAmqps(URI address) {
        return "amqps".equals(address.getScheme());
    }

    private URI address() {
        try {
            return URI.create(bindings.get().amqp());
        } catch (BindingException | IllegalArgumentException unknown) {
            return URI.create("amqp://unknown:1"); // `newConnection` says what is wrong
        }
    }

    @Override
    public Connection newConnection(ExecutorService calls, String name) throws IOException, TimeoutException {
        Binding binding;
        try {
            binding = bindings.get();
        } catch (BindingException error) {
            throw new IOException(error);
        }
        ConnectionFactory now = new ConnectionFactory();
        now.setAutomaticRecoveryEnabled(false);
        now.setTopologyRecoveryEnabled(false);
        now.setRequestedHeartbeat(HEARTBEAT_SECONDS);
        now.setConnectionTimeout(TIMEOUT_MILLIS);
        now.setHandshakeTimeout(TIMEOUT_MILLIS);
        now.setChannelRpcTimeout(TIMEOUT_MILLIS);
        try {
            now.setUri(binding.amqp());
            if (now.isSSL()) {
                // By itself the library trusts every certificate.
                now.useSslProtocol(authorities);
                now.enableHostnameVerification();
            }
        } catch (URISyntaxException | GeneralSecurityException | IllegalArgumentException error) {
            // Without the cause: its message has the URI, and so the password.
            throw new IOException("the AMQP address of " + binding.business() + " is not usable ("
                    + error.getClass().getSimpleName() + ")");
        }
        return now.newConnection(calls, name + " " + binding.business());
    }
}
