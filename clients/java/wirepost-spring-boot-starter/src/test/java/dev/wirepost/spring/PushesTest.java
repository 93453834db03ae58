package dev.wirepost.spring;

import static dev.wirepost.spring.Rabbit.until;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.GetResponse;
import dev.wirepost.client.Message;
import dev.wirepost.client.Outgoing;
import dev.wirepost.client.RejectedException;
import dev.wirepost.client.State;
import dev.wirepost.client.TokenRefusedException;
import dev.wirepost.client.WirepostClient;
import io.micrometer.core.instrument.binder.MeterBinder;
import io.micrometer.core.instrument.observation.DefaultMeterObservationHandler;
import io.micrometer.core.instrument.simple.SimpleMeterRegistry;
import io.micrometer.observation.Observation;
import io.micrometer.observation.ObservationHandler;
import io.micrometer.observation.ObservationRegistry;
import io.micrometer.observation.transport.ReceiverContext;
import io.micrometer.observation.transport.SenderContext;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.springframework.boot.WebApplicationType;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.boot.health.contributor.HealthIndicator;
import org.springframework.boot.health.contributor.Status;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.context.support.GenericApplicationContext;
import org.springframework.http.ResponseEntity;
import tools.jackson.databind.JsonNode;

/** Pushes, credentials and what is carried along, against a real RabbitMQ and {@code wirepost dev}. */
class PushesTest extends ServiceSetup {
    @Test
    void credentialsAreReadAgain(@TempDir Path root) throws Exception {
        Path folder = Files.createDirectory(root.resolve("shop"));
        Files.writeString(folder.resolve("provider"), "wirepost\n");
        Files.writeString(folder.resolve("push-exchange"), "wirepost.shop.push\n");
        Files.writeString(folder.resolve("queue.orders"), "wirepost.shop.q.orders\n");
        Files.writeString(folder.resolve("uri"), RABBIT.amqp.replace("guest:guest", "guest:old"));
        Map<String, String> properties = Map.of("SERVICE_BINDING_ROOT", root.toString(), "wirepost.push-timeout", "30s");
        ListenersTest.Waiting listeners = new ListenersTest.Waiting();
        ConfigurableApplicationContext context = new SpringApplicationBuilder(WirepostAutoConfiguration.class)
                .web(WebApplicationType.NONE)
                .initializers(made -> register((GenericApplicationContext) made, listeners))
                .run(arguments(properties));
        opened.add(context);
        CompletableFuture<String> push = context.getBean(WirepostTemplate.class)
                .pushAsync(Outgoing.of("payment.completed", Map.of()).to("nobody"));
        HealthIndicator health = context.getBean(HealthIndicator.class);
        assertEquals(Status.DOWN, health.health().getStatus());
        Files.writeString(folder.resolve("uri"), RABBIT.amqp);
        push.get(30, TimeUnit.SECONDS);
        until("it consumes", () -> health.health().getStatus() == Status.UP);
    }

    @Test
    void pushesFailWithAType() throws Exception {
        WirepostTemplate shop = pusher(Map.of());
        Outgoing nobody = Outgoing.of("payment.completed", Map.of());
        assertThrows(PushException.Invalid.class, () -> shop.push(nobody));
        assertThrows(PushException.Invalid.class, () -> shop.push(nobody.toTags("")));
        Outgoing push = nobody.to("alice");
        WirepostTemplate other = pusher(Map.of("wirepost.business", "no-such-business"));
        PushException refused = assertThrows(PushException.Refused.class, () -> other.push(push));
        assertTrue(refused.retryable() && !refused.mayHaveArrived());
        assertEquals(push.id(), refused.messageId());
        List<PushResult> all = other.pushAll(List.of(push, push.withId("b"), push.withId("c")));
        assertTrue(all.stream().allMatch(one -> one.failure() instanceof PushException.Refused), all.toString());
        WirepostTemplate away =
                pusher(Map.of("wirepost.amqp", "amqp://guest:guest@127.0.0.1:1/x", "wirepost.push-timeout", "500ms"));
        assertThrows(PushException.Unavailable.class, () -> away.push(push));
    }

    @Test
    void aTransientPushThatNoEdgeReadsIsReturned() throws Exception {
        WirepostTemplate board = pusher(Map.of("wirepost.business", "board", "wirepost.queues", ""));
        Outgoing price = Outgoing.of("price", Map.of()).toEveryone();
        until("returned", () -> board.pushAll(List.of(price)).get(0).failure() instanceof PushException.Unroutable);
        WirepostClient tess = WirepostClient.builder(DEV.token("board", "tess", "app")).build().start();
        opened.add(tess);
        until("taken", () -> board.pushAll(List.of(price)).get(0).confirmed());
    }

    @Test
    void aPushReachesTheClientsOfSeveralBusinesses() throws Exception {
        WirepostTemplate shop = pusher(Map.of());
        List<String> got = new CopyOnWriteArrayList<>();
        for (String business : List.of("shop", "desk")) {
            WirepostClient lena = WirepostClient.builder(DEV.token(business, "lena", "app")).build();
            opened.add(lena);
            lena.on("payment.completed", message -> got.add(business + " " + message.id() + " " + message.businessType()));
            lena.start();
            until("a connection", () -> lena.state() == State.OPEN);
        }
        Outgoing push = Outgoing.of("payment.completed", Map.of()).to("lena");
        shop.push(push.withId("both").toBusinesses("shop", "desk"));
        shop.push(push.withId("there").toBusinesses("desk"));
        shop.push(push.withId("here").toBusinesses("shop"));
        shop.push(push.withId("last"));
        until("its end", () -> got.contains("shop last shop") && got.contains("desk there shop"));
        assertEquals(List.of("desk both shop", "desk there shop", "shop both shop", "shop here shop", "shop last shop"),
                got.stream().sorted().toList());
    }

    @Test
    void manyPushesArriveInOrderAndEachFailureIsTold() throws Exception {
        List<Integer> got = new CopyOnWriteArrayList<>();
        WirepostTemplate shop = pusher(Map.of());
        WirepostClient heidi = connected("heidi");
        heidi.on("payment.completed", Number.class, message -> got.add(message.content().n()));
        List<Outgoing> pushes = new ArrayList<>(IntStream.range(0, 300)
                .mapToObj(n -> Outgoing.of("payment.completed", new Number(n)).to("heidi").withId("heidi-" + n))
                .toList());
        pushes.set(150, pushes.get(150).to(""));
        List<PushResult> results = shop.pushAll(pushes);
        assertInstanceOf(PushException.Invalid.class, results.get(150).failure());
        assertEquals(new PushResult("heidi-151", null), results.get(151));
        until("the last one", () -> got.contains(299));
        assertEquals(IntStream.range(0, 300).filter(n -> n != 150).boxed().toList(), got);
    }

    /** Looks. */
    static class Tracing {
        final List<Map<String, String>> seen = new CopyOnWriteArrayList<>();
        volatile WirepostTemplate wirepost;

        @WirepostListener(value = "order.#", queue = "orders")
        void placed(Message<JsonNode> message) {
            seen.add(TraceContext.current());
            wirepost.push(Outgoing.of("payment.completed", Map.of()).to("ivan").withId("traced"));
        }
    }

    @Test
    void theTraceOfAMessageIsCarriedIntoItsPushes() throws Exception {
        String parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        Tracing listeners = new Tracing();
        listeners.wirepost = service(Map.of(), listeners).getBean(WirepostTemplate.class);
        try (Connection connection = RABBIT.connect(); Channel channel = connection.createChannel()) {
            channel.queueDeclare("wirepost.shop.events.spy", false, true, true, null);
            channel.queueBind("wirepost.shop.events.spy", "wirepost.shop.push", "");
            AMQP.BasicProperties headers = new AMQP.BasicProperties.Builder()
                    .headers(Map.of("traceparent", parent, "other", "x")).build();
            channel.basicPublish("", "wirepost.shop.q.orders", headers,
                    "{\"id\":\"t-1\",\"messageType\":\"order.placed\"}".getBytes(StandardCharsets.UTF_8));
            GetResponse[] push = new GetResponse[1];
            until("the push", () -> {
                push[0] = channel.basicGet("wirepost.shop.events.spy", true);
                return push[0] != null && "traced".equals(push[0].getProps().getMessageId());
            });
            AMQP.BasicProperties properties = push[0].getProps();
            assertEquals(parent, properties.getHeaders().get("traceparent").toString());
            assertEquals(1, properties.getHeaders().size());
            assertEquals(2, properties.getDeliveryMode());
        }
        assertEquals(List.of(Map.of("traceparent", parent)), listeners.seen);
        assertEquals(Map.of(), TraceContext.current());
    }

    /** Stands for Micrometer Tracing: gives each push the context of its span, and sees that of each message. */
    static class Spans implements ObservationHandler<Observation.Context> {
        final List<String> received = new CopyOnWriteArrayList<>();

        @Override
        @SuppressWarnings("unchecked")
        public void onStart(Observation.Context context) {
            if (context instanceof SenderContext<?> sender) {
                ((SenderContext<Object>) sender).getSetter().set(sender.getCarrier(), "traceparent", "of the span");
            } else if (context instanceof ReceiverContext<?> receiver) {
                received.add(((ReceiverContext<Object>) receiver).getGetter().get(receiver.getCarrier(), "traceparent"));
            }
        }

        @Override
        public boolean supportsContext(Observation.Context context) {
            return true;
        }
    }

    @Test
    void whatIsHandledAndPushedIsObserved() throws Exception {
        Spans spans = new Spans();
        SimpleMeterRegistry meters = new SimpleMeterRegistry();
        ObservationRegistry observations = ObservationRegistry.create();
        observations.observationConfig().observationHandler(spans)
                .observationHandler(new DefaultMeterObservationHandler(meters));
        Tracing listeners = new Tracing();
        ConfigurableApplicationContext context = service(Map.of(), listeners, made ->
                made.registerBean(ObservationRegistry.class, () -> observations));
        listeners.wirepost = context.getBean(WirepostTemplate.class);
        context.getBean(MeterBinder.class).bindTo(meters);
        try (Connection connection = RABBIT.connect(); Channel channel = connection.createChannel()) {
            channel.queueDeclare("wirepost.shop.events.spans", false, true, true, null);
            channel.queueBind("wirepost.shop.events.spans", "wirepost.shop.push", "");
            AMQP.BasicProperties headers = new AMQP.BasicProperties.Builder()
                    .headers(Map.of("traceparent", "of the message")).build();
            channel.basicPublish("", "wirepost.shop.q.orders", headers,
                    "{\"id\":\"o-1\",\"messageType\":\"order.placed\"}".getBytes(StandardCharsets.UTF_8));
            GetResponse[] push = new GetResponse[1];
            until("the push", () -> {
                push[0] = channel.basicGet("wirepost.shop.events.spans", true);
                return push[0] != null;
            });
            assertEquals("of the span", push[0].getProps().getHeaders().get("traceparent").toString());
        }
        assertEquals(List.of("of the message"), spans.received);
        until("the timers", () -> meters.find("wirepost.receive").tag("queue", "wirepost.shop.q.orders")
                .tag("outcome", "done").timer() != null);
        assertEquals(1, meters.get("wirepost.push").tag("outcome", "confirmed").timer().count());
        assertEquals(0, meters.get("wirepost.push.waiting").gauge().value());
        assertEquals(0, meters.get("wirepost.queues.missing").gauge().value());
    }

    @Test
    void tokensComeFromTheEdgeAndRefusalsAreTyped() throws Exception {
        WirepostTokens tokens = service(Map.of(), null).getBean(WirepostTokens.class);
        String url = tokens.connectionUrl(new Identity("judy", "app", List.of("vip", "ü")));
        assertTrue(url.startsWith(DEV.url().replace("http", "ws") + "/socket/"), "no connection URL");
        TokenRefusedException refused = assertThrows(TokenRefusedException.class,
                () -> tokens.connectionUrl(new Identity("judy", "fridge")));
        assertEquals(400, refused.status());
        assertEquals(40008, refused.result());
        ResponseEntity<Map<String, Object>> answer = TokenResponse.of(tokens, new Identity("judy", "app"));
        assertEquals(200, answer.getStatusCode().value());
        assertEquals("no-store", answer.getHeaders().getCacheControl());
        assertTrue(answer.getBody().containsKey("data"));
        assertEquals(401, TokenResponse.of(tokens, null).getStatusCode().value());
        assertEquals(502, TokenResponse.of(tokens, new Identity("judy", "fridge")).getStatusCode().value(),
                "a mistake of the service is none of the user's");
    }

    @Test
    void aClientsRefusalIsTyped() throws Exception {
        CompletableFuture<String> send = connected("kim").send("no.such", Map.of());
        Throwable error = assertThrows(java.util.concurrent.CompletionException.class, send::join).getCause();
        assertEquals("unknown_route", ((RejectedException) error).code());
    }
}
