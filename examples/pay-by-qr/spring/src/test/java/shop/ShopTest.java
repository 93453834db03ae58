package shop;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.wirepost.client.HttpToken;
import dev.wirepost.client.Outgoing;
import dev.wirepost.client.WirepostClient;
import dev.wirepost.test.WirepostDev;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.test.context.SpringBootTest;
import org.springframework.test.context.DynamicPropertyRegistry;
import org.springframework.test.context.DynamicPropertySource;

/** The Java client in the place of the page. Needs a RabbitMQ 4: `make clients-java` starts one. */
@SpringBootTest(webEnvironment = SpringBootTest.WebEnvironment.RANDOM_PORT)
@Timeout(120)
class ShopTest {
    private static final String AMQP = System.getenv().getOrDefault("WIREPOST_TEST_AMQP", "");

    @RegisterExtension
    static final WirepostDev WIREPOST = WirepostDev.with("../pay-by-qr.yaml").withEnvironment(Map.of(
            "WIREPOST_AMQP", AMQP,
            "WIREPOST_MANAGEMENT", System.getenv().getOrDefault("WIREPOST_TEST_MANAGEMENT", ""),
            "WIREPOST_STREAM", System.getenv().getOrDefault("WIREPOST_TEST_STREAM", "").replaceAll("^.*[@/]", "")));

    private final HttpClient http = HttpClient.newHttpClient();

    @Value("${local.server.port}")
    private int port;

    record Refreshed(String path) {}

    record Paid(String orderId) {}

    @DynamicPropertySource
    static void wirepost(DynamicPropertyRegistry registry) {
        WIREPOST.properties("pay-by-qr", "qr-refresh").forEach((name, value) -> registry.add(name, () -> value));
    }

    private URI at(String path) {
        return URI.create("http://127.0.0.1:" + port + path);
    }

    private HttpResponse<String> get(String path) throws Exception {
        return http.send(HttpRequest.newBuilder(at(path)).build(), HttpResponse.BodyHandlers.ofString());
    }

    @Test
    void aPageGetsACodeAndLearnsThatItWasPaid() throws Exception {
        assertEquals(401, get("/wirepost-token").statusCode());
        HttpResponse<String> page = get("/");
        assertTrue(page.body().contains("Checkout"));
        String cookie = page.headers().firstValue("set-cookie").orElseThrow().split(";")[0];
        BlockingQueue<Paid> paid = new ArrayBlockingQueue<>(10);
        HttpToken token = new HttpToken(at("/wirepost-token"), () -> Map.of("cookie", cookie));
        try (WirepostClient client = WirepostClient.builder(token).build()) {
            client.on("payment.completed", Paid.class, message -> paid.add(message.content()));
            client.start();
            Outgoing request = Outgoing.of("qr.refresh", Map.of("orderId", "o-1"));
            String path = client.request(request, Duration.ofSeconds(30), Refreshed.class).join().content().path();
            assertEquals(200, get(path).statusCode());
            assertEquals(new Paid("o-1"), paid.poll(30, TimeUnit.SECONDS));
            assertEquals(410, get(path).statusCode(), "a code pays once");
        }
        HttpResponse<String> ready = get("/actuator/health/readiness");
        assertEquals(200, ready.statusCode(), ready.body());
    }
}
