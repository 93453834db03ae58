package dev.wirepost.test;

import dev.wirepost.client.Envelopes;
import dev.wirepost.client.HttpToken;
import dev.wirepost.client.Outgoing;
import dev.wirepost.client.TokenSource;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.extension.BeforeAllCallback;
import org.junit.jupiter.api.extension.ExtensionContext;

/**
 * A running {@code wirepost dev}, on free ports. It is started before the first test that uses it, and ended after the
 * last test of all:
 *
 * <pre>{@code
 * @RegisterExtension
 * static final WirepostDev WIREPOST = WirepostDev.with("deploy/payments.yaml");
 * }</pre>
 *
 * <p>The program is {@code wirepost} in the PATH, or what the environment variable {@code WIREPOST} names. Its broker is
 * inside the process and has no AMQP, which is enough for clients. To test a service, give it a RabbitMQ 4: set
 * {@code WIREPOST_AMQP} (and, where they differ from the defaults, {@code WIREPOST_STREAM} and
 * {@code WIREPOST_MANAGEMENT}), see {@code wirepost dev --help}.
 */
public final class WirepostDev implements BeforeAllCallback, AutoCloseable {
    private static final Duration START = Duration.ofSeconds(60);
    private static final int LOG_LINES = 1000;
    private static final Pattern GREETING = Pattern.compile("listens on (\\S+) \\(admin: ([^)\\s]+)\\)");
    private static final ExtensionContext.Namespace STORE = ExtensionContext.Namespace.create(WirepostDev.class);

    private final List<String> declarations;
    private final Map<String, String> environment;
    private final HttpClient http = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private final ArrayDeque<String> log = new ArrayDeque<>();
    private Process process;
    private String url;
    private String admin;

    private WirepostDev(List<String> declarations, Map<String, String> environment) {
        this.declarations = declarations;
        this.environment = environment;
    }

    /** With these files and folders of declarations. */
    public static WirepostDev with(String... declarations) {
        return new WirepostDev(List.of(declarations), Map.of());
    }

    /** The same, with variables that are added to this process's environment. */
    public WirepostDev withEnvironment(Map<String, String> variables) {
        return new WirepostDev(declarations, Map.copyOf(variables));
    }

    @Override
    public void beforeAll(ExtensionContext context) {
        context.getRoot().getStore(STORE).computeIfAbsent(this, same -> start());
    }

    /**
     * Starts it, without JUnit's help; {@link #close()} ends it.
     *
     * @throws IllegalStateException if it does not start within a minute, with what it printed
     */
    public synchronized WirepostDev start() {
        if (process != null) {
            return this;
        }
        String program = System.getenv().getOrDefault("WIREPOST", "wirepost");
        List<String> command = new ArrayList<>(
                List.of(program, "dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"));
        command.addAll(declarations);
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
        builder.environment().putAll(environment);
        CompletableFuture<Matcher> greeting = new CompletableFuture<>();
        try {
            process = builder.start();
        } catch (IOException error) {
            throw new IllegalStateException("the program `" + program
                    + "` can't be started: install it, or name it by the variable WIREPOST", error);
        }
        Thread reader = new Thread(() -> read(process, greeting), "wirepost dev");
        reader.setDaemon(true);
        reader.start();
        Runtime.getRuntime().addShutdownHook(new Thread(process::destroy));
        try {
            Matcher found = greeting.get(START.toSeconds(), TimeUnit.SECONDS);
            url = found.group(1);
            admin = found.group(2);
            awaitReady();
            return this;
        } catch (ExecutionException | TimeoutException error) {
            close();
            throw new IllegalStateException("`wirepost dev` did not start:\n" + log(), error);
        } catch (InterruptedException error) {
            close();
            Thread.currentThread().interrupt();
            throw new IllegalStateException("interrupted while `wirepost dev` started", error);
        }
    }

    private void read(Process from, CompletableFuture<Matcher> greeting) {
        try (BufferedReader lines = from.inputReader(StandardCharsets.UTF_8)) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                synchronized (log) {
                    log.add(line);
                    if (log.size() > LOG_LINES) {
                        log.poll();
                    }
                }
                Matcher match = GREETING.matcher(line);
                if (match.find()) {
                    greeting.complete(match);
                }
            }
        } catch (IOException ended) {
            greeting.completeExceptionally(ended);
        }
        greeting.completeExceptionally(new IOException("it has ended"));
    }

    /** The businesses are loaded, and the broker has their queues. */
    private void awaitReady() throws InterruptedException, TimeoutException {
        long deadline = System.nanoTime() + START.toNanos();
        while (process.isAlive() && System.nanoTime() - deadline < 0) {
            try {
                HttpRequest ready = HttpRequest.newBuilder(URI.create(admin + "/readyz")).build();
                if (http.send(ready, HttpResponse.BodyHandlers.discarding()).statusCode() == 200) {
                    return;
                }
            } catch (IOException notYet) {
                // asked again below
            }
            Thread.sleep(50);
        }
        throw new TimeoutException("it is not ready");
    }

    /** Its public address, {@code http://127.0.0.1:PORT}. */
    public String url() {
        return url;
    }

    /** Its admin address. */
    public String admin() {
        return admin;
    }

    /** The end of what it printed: among others the messages that arrived on queues. */
    public String log() {
        synchronized (log) {
            return String.join("\n", log);
        }
    }

    /** The API key of a business. */
    public String apiKey(String business) {
        return "dev-" + business;
    }

    /** Lets a client of this identity in. */
    public TokenSource token(String business, String uniqueId, String clientType, String... tags) {
        StringBuilder query = new StringBuilder("?uniqueId=").append(URLEncoder.encode(uniqueId, StandardCharsets.UTF_8))
                .append("&clientType=").append(URLEncoder.encode(clientType, StandardCharsets.UTF_8));
        for (String tag : tags) {
            query.append("&tags=").append(URLEncoder.encode(tag, StandardCharsets.UTF_8));
        }
        URI call = URI.create(url + "/" + business + "/websocket/token" + query);
        return new HttpToken(call, () -> Map.of("X-Api-Key", apiKey(business)));
    }

    /**
     * Pushes by the HTTP call, as a service would.
     *
     * @throws IllegalArgumentException with the answer, if it was refused
     */
    public void push(String business, Outgoing message) {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url + "/" + business + "/websocket/messages"))
                .header("X-Api-Key", apiKey(business))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(Envelopes.standard().write(message)))
                .build();
        try {
            HttpResponse<String> answer = http.send(request, HttpResponse.BodyHandlers.ofString());
            if (answer.statusCode() != 200) {
                throw new IllegalArgumentException("the push was refused: " + answer.body());
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("interrupted during a push", error);
        }
    }

    /**
     * Properties of the Spring Boot starter for this business, with a broker that is not inside the process.
     *
     * <pre>{@code
     * @DynamicPropertySource
     * static void wirepost(DynamicPropertyRegistry registry) {
     *     WIREPOST.properties("payments", "qr-refresh").forEach((name, value) -> registry.add(name, () -> value));
     * }
     * }</pre>
     *
     * @throws IllegalStateException if the broker is inside the process
     */
    public Map<String, String> properties(String business, String... queues) {
        String amqp = environment.getOrDefault("WIREPOST_AMQP", System.getenv("WIREPOST_AMQP"));
        if (amqp == null) {
            throw new IllegalStateException(
                    "the broker inside `wirepost dev` has no AMQP: set WIREPOST_AMQP to a RabbitMQ 4");
        }
        Map<String, String> properties = new LinkedHashMap<>();
        properties.put("wirepost.business", business);
        properties.put("wirepost.amqp", amqp);
        properties.put("wirepost.queues", String.join(",", queues));
        properties.put("wirepost.edge", url);
        properties.put("wirepost.api-key", apiKey(business));
        return properties;
    }

    /** Ends it. */
    @Override
    public synchronized void close() {
        if (process == null) {
            return;
        }
        process.destroy();
        try {
            if (!process.waitFor(10, TimeUnit.SECONDS)) {
                process.destroyForcibly().waitFor();
            }
        } catch (InterruptedException error) {
            process.destroyForcibly();
            Thread.currentThread().interrupt();
        }
        process = null;
    }
}
