package dev.wirepost.spring;

import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** A vhost of its own on the broker of WIREPOST_TEST_*, gone after the tests; and a way to it that can be cut. */
final class Rabbit implements AutoCloseable {
    private static final AtomicInteger COUNT = new AtomicInteger();

    final String amqp;
    private final String vhost = "java-" + ProcessHandle.current().pid() + "-" + COUNT.incrementAndGet();
    private final URI management = URI.create(variable("MANAGEMENT"));
    private final HttpClient http = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    Rabbit() {
        amqp = variable("AMQP").replaceAll("/+$", "") + "/" + vhost;
        call("PUT", "/vhosts/" + vhost, "");
    }

    private static String variable(String name) {
        String value = System.getenv("WIREPOST_TEST_" + name);
        if (value == null) {
            throw new IllegalStateException("WIREPOST_TEST_" + name
                    + " is not set: run the tests as `make clients-java` does, under scripts/with-broker");
        }
        return value;
    }

    Map<String, String> environment() {
        return Map.of("WIREPOST_AMQP", amqp, "WIREPOST_MANAGEMENT", management.toString(),
                "WIREPOST_STREAM", variable("STREAM").replaceAll("^.*[@/]", ""));
    }

    private String call(String method, String path, String body) {
        String user = management.getUserInfo() == null ? "guest:guest" : management.getUserInfo();
        URI url = URI.create("http://" + management.getHost() + ":" + management.getPort() + "/api" + path);
        HttpRequest request = HttpRequest.newBuilder(url)
                .header("Authorization", "Basic "
                        + Base64.getEncoder().encodeToString(user.getBytes(StandardCharsets.UTF_8)))
                .header("Content-Type", "application/json")
                .method(method, HttpRequest.BodyPublishers.ofString(body))
                .build();
        try {
            HttpResponse<String> answer = http.send(request, HttpResponse.BodyHandlers.ofString());
            if (answer.statusCode() >= 300) {
                throw new IllegalStateException(method + " " + path + ": " + answer.statusCode() + answer.body());
            }
            return answer.body();
        } catch (IOException | InterruptedException error) {
            throw new IllegalStateException(error);
        }
    }

    /** What a queue contains, without taking it. */
    List<JsonNode> messages(String queue) {
        String path = "/queues/" + vhost + "/" + URLEncoder.encode(queue, StandardCharsets.UTF_8) + "/get";
        String body = "{\"count\":100,\"ackmode\":\"ack_requeue_true\",\"encoding\":\"auto\"}";
        List<JsonNode> found = new ArrayList<>();
        JsonMapper.shared().readTree(call("POST", path, body)).forEach(found::add);
        return found;
    }

    void purge(String queue) {
        call("DELETE", "/queues/" + vhost + "/" + queue + "/contents", "");
    }

    boolean dead(String id) {
        return messages("wirepost.shop.dead").stream()
                .anyMatch(message -> message.at("/properties/message_id").asString("").equals(id));
    }

    Connection connect() throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(amqp);
        return factory.newConnection("test");
    }

    @Override
    public void close() {
        call("DELETE", "/vhosts/" + vhost, "");
    }

    /** Waits for a condition. */
    static void until(String what, Callable<Boolean> check) throws Exception {
        long deadline = System.nanoTime() + 30_000_000_000L;
        while (!check.call()) {
            if (System.nanoTime() - deadline > 0) {
                throw new AssertionError("not within 30 s: " + what);
            }
            Thread.sleep(10);
        }
    }

    /** Carries connections to the broker, and cuts them. */
    static final class Wire implements AutoCloseable {
        final String amqp;
        private final URI broker;
        private final ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        private final List<Socket> open = new CopyOnWriteArrayList<>();

        Wire(String to) throws IOException {
            broker = URI.create(to);
            amqp = to.replace(broker.getHost() + ":" + broker.getPort(), "127.0.0.1:" + server.getLocalPort());
            thread(() -> {
                while (true) {
                    Socket from = server.accept();
                    Socket there = new Socket(broker.getHost(), broker.getPort());
                    open.add(from);
                    open.add(there);
                    thread(() -> copy(from, there));
                    thread(() -> copy(there, from));
                }
            });
        }

        private interface Work {
            void run() throws IOException;
        }

        private static void thread(Work work) {
            Thread thread = new Thread(() -> {
                try {
                    work.run();
                } catch (IOException ended) {
                    // cut, or closed
                }
            }, "wire");
            thread.setDaemon(true);
            thread.start();
        }

        private static void copy(Socket from, Socket to) throws IOException {
            try (from; to) {
                InputStream in = from.getInputStream();
                OutputStream out = to.getOutputStream();
                byte[] buffer = new byte[65536];
                for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
                    out.write(buffer, 0, n);
                }
            }
        }

        /** How many ends were cut. */
        int cut() throws IOException {
            int count = 0;
            for (Socket socket : open) {
                if (!socket.isClosed()) {
                    socket.close();
                    count++;
                }
            }
            open.clear();
            return count;
        }

        @Override
        public void close() throws IOException {
            server.close();
            cut();
        }
    }
}
