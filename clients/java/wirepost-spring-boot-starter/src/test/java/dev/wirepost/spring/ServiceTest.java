package dev.wirepost.spring;

import static dev.wirepost.spring.Rabbit.until;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
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
import dev.wirepost.test.WirepostDev;
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
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.api.io.TempDir;
import org.springframework.boot.WebApplicationType;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.boot.health.contributor.HealthIndicator;
import org.springframework.boot.health.contributor.Status;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.context.support.GenericApplicationContext;
import org.springframework.http.ResponseEntity;
import tools.jackson.databind.JsonNode;

/** The service side, against a real RabbitMQ and {@code wirepost dev}. */
@Timeout(120)
class ServiceTest {
    private static final Rabbit RABBIT = new Rabbit();

    @RegisterExtension
    static final WirepostDev DEV =
            WirepostDev.with("src/test/resources/shop.yaml").withEnvironment(RABBIT.environment());

    private final List<AutoCloseable> opened = new ArrayList<>();

    record QrRefresh(String qrId) {}

    record Number(int n) {}

    @AfterAll
    static void gone() {
        RABBIT.close();
    }

    @AfterEach
    void end() throws Exception {
        opened.removeIf(one -> one instanceof WirepostClient client && close(client));
        for (int i = opened.size() - 1; i >= 0; i--) {
            opened.get(i).close();
        }
    }

    private static boolean close(WirepostClient client) {
        client.close();
        return true;
    }

    @BeforeEach
    void nothingOfOthers() {
        RABBIT.purge("wirepost.shop.q.orders");
        RABBIT.purge("wirepost.shop.q.qr-refresh");
    }

    /** An application with this bean of listeners, once it consumes. */
    private <T> ConfigurableApplicationContext service(Map<String, String> more, T listeners) throws Exception {
        return service(more, listeners, made -> { });
    }

    private <T> ConfigurableApplicationContext service(
            Map<String, String> more, T listeners, Consumer<GenericApplicationContext> beans) throws Exception {
        Map<String, String> properties = new HashMap<>(DEV.properties("shop", "qr-refresh", "orders"));
        properties.putAll(more);
        ConfigurableApplicationContext context = new SpringApplicationBuilder(WirepostAutoConfiguration.class)
                .web(WebApplicationType.NONE)
                .bannerMode(org.springframework.boot.Banner.Mode.OFF)
                .logStartupInfo(false)
                .initializers(made -> register((GenericApplicationContext) made, listeners))
                .initializers(made -> beans.accept((GenericApplicationContext) made))
                .run(arguments(properties));
        opened.add(context);
        until("it consumes", () -> context.getBean(Consumers.class).consuming().values().stream().allMatch(c -> c));
        return context;
    }

    /** They count more than the environment. */
    private static String[] arguments(Map<String, String> properties) {
        return properties.entrySet().stream().map(one -> "--" + one.getKey() + "=" + one.getValue())
                .toArray(String[]::new);
    }

    @SuppressWarnings("unchecked")
    private static <T> void register(GenericApplicationContext context, T bean) {
        if (bean != null) {
            context.registerBean((Class<T>) bean.getClass(), () -> bean);
        }
    }

    private WirepostTemplate pusher(Map<String, String> more) throws Exception {
        return service(more, null).getBean(WirepostTemplate.class);
    }

    private WirepostClient client(String uniqueId) throws Exception {
        WirepostClient client = WirepostClient.builder(DEV.token("shop", uniqueId, "app")).build();
        opened.add(client);
        return client;
    }

    private WirepostClient connected(String uniqueId) throws Exception {
        WirepostClient client = client(uniqueId).start();
        until("a connection", () -> client.state() == State.OPEN);
        return client;
    }

    private static void send(WirepostClient client, String type, Object content, String id) {
        client.send(Outgoing.of(type, content).withId(id)).join();
    }

    /** Answers. */
    static class Refreshing {
        WirepostTemplate wirepost;

        @WirepostListener(value = "qr.refresh", queue = "qr-refresh")
        void refresh(Message<QrRefresh> message) {
            wirepost.reply(message, "qr.refreshed",
                    Map.of("for", message.content().qrId(), "by", message.fromUniqueId()));
        }
    }

    @Test
    void aRequestIsHandledAndAnswered() throws Exception {
        Refreshing listeners = new Refreshing();
        listeners.wirepost = service(Map.of(), listeners).getBean(WirepostTemplate.class);
        JsonNode answer = connected("alice").request("qr.refresh", Map.of("qrId", "q-1")).join().content();
        assertEquals("q-1 alice", answer.path("for").asString() + " " + answer.path("by").asString());
    }

    /** Fails. */
    static class Failing {
        final List<String> tries = new CopyOnWriteArrayList<>();

        @WirepostListener(value = "qr.#", queue = "qr-refresh")
        void refresh(Message<QrRefresh> message) throws Exception {
            tries.add(message.content().qrId());
            if (message.content().qrId().equals("poison") || tries.stream().filter("flaky"::equals).count() == 1) {
                throw new Exception("not today");
            }
        }

        long tries(String id) {
            return tries.stream().filter(id::equals).count();
        }
    }

    @Test
    void aFailedMessageComesAgainAndThenMovesToTheDeadLetters() throws Exception {
        Failing listeners = new Failing();
        service(Map.of(), listeners);
        WirepostClient bob = connected("bob");
        send(bob, "qr.refresh", Map.of("qrId", "flaky"), "flaky-1");
        until("the second attempt", () -> listeners.tries("flaky") == 2);
        send(bob, "qr.refresh", Map.of("qrId", "poison"), "poison-1");
        until("the dead letter", () -> RABBIT.dead("poison-1"));
        assertEquals(3, listeners.tries("poison"), "deliveryLimit 2: the first attempt and two more");
        assertFalse(RABBIT.dead("flaky-1"));
    }

    /** Takes numbers only. */
    static class Rejecting {
        final List<String> tries = new CopyOnWriteArrayList<>();

        @WirepostListener(value = "order.placed", queue = "orders")
        void placed(Message<Number> message) {
            tries.add(message.id());
            throw new DeadLetterException("no such article");
        }
    }

    @Test
    void whatCanNeverWorkMovesToTheDeadLettersImmediately() throws Exception {
        Rejecting listeners = new Rejecting();
        service(Map.of(), listeners);
        WirepostClient carol = connected("carol");
        send(carol, "order.placed", Map.of("n", 1), "reject-1");
        send(carol, "order.unknown", Map.of(), "no-listener-1");
        send(carol, "order.placed", Map.of("n", "many"), "no-number-1");
        try (Connection connection = RABBIT.connect(); Channel channel = connection.createChannel()) {
            for (String body : List.of("[]", "{}", "{")) {
                AMQP.BasicProperties id = new AMQP.BasicProperties.Builder().messageId("strange " + body).build();
                channel.basicPublish("", "wirepost.shop.q.orders", id, body.getBytes(StandardCharsets.UTF_8));
            }
        }
        for (String id : List.of("reject-1", "no-listener-1", "no-number-1", "strange []", "strange {}", "strange {")) {
            until(id + " in the dead letters", () -> RABBIT.dead(id));
        }
        assertEquals(List.of("reject-1"), listeners.tries);
    }

    /** Takes a moment. */
    static class Counting {
        final List<String> handled = new CopyOnWriteArrayList<>();

        @WirepostListener("order.#")
        void placed(Message<JsonNode> message) throws Exception {
            Thread.sleep(50); // both copies are here at the same time
            handled.add(message.fromUniqueId() + " " + message.id());
        }

        @WirepostListener(value = "qr.refresh", queue = "qr-refresh")
        void other(Message<?> message) {}
    }

    @Test
    void whatComesTwiceIsHandledOnce() throws Exception {
        Counting listeners = new Counting();
        service(Map.of(), listeners);
        WirepostClient dave = connected("dave");
        send(dave, "order.placed", Map.of(), "same");
        send(dave, "order.placed", Map.of(), "same");
        send(connected("erin"), "order.placed", Map.of(), "same");
        send(dave, "order.placed", Map.of(), "end");
        until("three", () -> listeners.handled.size() >= 3 && listeners.handled.contains("dave end"));
        until("an empty queue", () -> RABBIT.messages("wirepost.shop.q.orders").isEmpty());
        assertEquals(List.of("dave end", "dave same", "erin same"), listeners.handled.stream().sorted().toList());
    }

    /** Waits. */
    static class Waiting {
        final CountDownLatch gate = new CountDownLatch(1);
        final List<String> done = new CopyOnWriteArrayList<>();

        @WirepostListener(value = "order.#", queue = "orders")
        void placed(Message<JsonNode> message) throws Exception {
            gate.await();
            done.add(message.id());
        }
    }

    @Test
    void aStopFinishesWhatRunsAndGivesBackTheRest() throws Exception {
        Waiting listeners = new Waiting();
        ConfigurableApplicationContext first =
                service(Map.of("wirepost.concurrency", "1", "wirepost.prefetch", "10"), listeners);
        WirepostClient frank = connected("frank");
        for (int n = 0; n < 5; n++) {
            send(frank, "order.placed", Map.of("n", n), "stop-" + n);
        }
        try (Connection connection = RABBIT.connect(); Channel channel = connection.createChannel()) {
            until("all are fetched", () -> channel.messageCount("wirepost.shop.q.orders") == 0);
        }
        CompletableFuture<Void> stopped = CompletableFuture.runAsync(first::close);
        Thread.sleep(300);
        listeners.gate.countDown();
        stopped.get(30, TimeUnit.SECONDS);
        assertEquals(List.of("stop-0"), listeners.done);
        List<JsonNode> rest = RABBIT.messages("wirepost.shop.q.orders");
        assertEquals(List.of("stop-1", "stop-2", "stop-3", "stop-4"),
                rest.stream().map(message -> message.at("/properties/message_id").asString()).toList());
        assertTrue(rest.stream().allMatch(message ->
                message.at("/properties/headers/x-delivery-count").asInt(0) == 0), "what was given back counts as failed");
        service(Map.of(), listeners);
        until("the rest", () -> listeners.done.size() == 5);
    }

    /** Pushes. */
    static class Echoing {
        final List<Integer> handled = new CopyOnWriteArrayList<>();
        volatile WirepostTemplate wirepost;

        @WirepostListener(value = "order.#", queue = "orders")
        void placed(Message<Number> message) {
            handled.add(message.content().n());
            wirepost.push(Outgoing.of("payment.completed", message.content()).to(message.fromUniqueId()));
        }
    }

    @Test
    void aLostConnectionCostsNeitherMessagesNorPushes() throws Exception {
        List<Integer> got = new CopyOnWriteArrayList<>();
        List<Integer> all = IntStream.range(0, 400).boxed().toList();
        try (Rabbit.Wire wire = new Rabbit.Wire(RABBIT.amqp)) {
            Echoing listeners = new Echoing();
            ConfigurableApplicationContext context =
                    service(Map.of("wirepost.amqp", wire.amqp, "wirepost.push-timeout", "30s"), listeners);
            listeners.wirepost = context.getBean(WirepostTemplate.class);
            WirepostClient grace = client("grace");
            grace.on("payment.completed", Number.class, message -> got.add(message.content().n()));
            grace.start();
            List<CompletableFuture<String>> sends =
                    all.stream().map(n -> grace.send("order.placed", new Number(n))).toList();
            for (int count : List.of(40, 200)) {
                until("messages", () -> listeners.handled.size() >= count);
                assertTrue(wire.cut() > 0);
            }
            sends.forEach(CompletableFuture::join);
            until("all answers", () -> new HashSet<>(got).size() == all.size());
            assertEquals(all, listeners.handled.stream().sorted().toList(), "a listener was called again");
            assertEquals(all, got.stream().sorted().toList(), "a push was repeated with another id");
            context.close();
        }
    }

    @Test
    void credentialsAreReadAgain(@TempDir Path root) throws Exception {
        Path folder = Files.createDirectory(root.resolve("shop"));
        Files.writeString(folder.resolve("provider"), "wirepost\n");
        Files.writeString(folder.resolve("push-exchange"), "wirepost.shop.push\n");
        Files.writeString(folder.resolve("queue.orders"), "wirepost.shop.q.orders\n");
        Files.writeString(folder.resolve("uri"), RABBIT.amqp.replace("guest:guest", "guest:old"));
        Map<String, String> properties = Map.of("SERVICE_BINDING_ROOT", root.toString(), "wirepost.push-timeout", "30s");
        Waiting listeners = new Waiting();
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
    void aDedupeOfTheApplicationDecides() throws Exception {
        Counting listeners = new Counting();
        List<String> asked = new CopyOnWriteArrayList<>();
        Dedupe own = (sender, id, work) -> {
            asked.add(sender + " " + id);
            if (!id.equals("handled-before")) {
                work.run();
            }
            return !id.equals("handled-before");
        };
        service(Map.of(), listeners, made -> made.registerBean(Dedupe.class, () -> own));
        WirepostClient lena = connected("lena");
        send(lena, "order.placed", Map.of(), "handled-before");
        send(lena, "order.placed", Map.of(), "new");
        until("both", () -> asked.size() == 2 && listeners.handled.size() == 1);
        assertEquals(List.of("lena new"), listeners.handled);
        until("an empty queue", () -> RABBIT.messages("wirepost.shop.q.orders").isEmpty());
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
