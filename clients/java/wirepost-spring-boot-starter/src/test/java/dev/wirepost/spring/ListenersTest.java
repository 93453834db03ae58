package dev.wirepost.spring;

import static dev.wirepost.spring.Rabbit.until;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import dev.wirepost.client.Message;
import dev.wirepost.client.Outgoing;
import dev.wirepost.client.WirepostClient;
import java.nio.charset.StandardCharsets;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.springframework.context.ConfigurableApplicationContext;
import tools.jackson.databind.JsonNode;

/** Clients' messages, against a real RabbitMQ and {@code wirepost dev}. */
class ListenersTest extends ServiceSetup {
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

    /** Takes what comes late. */
    static class Late {
        final List<String> got = new CopyOnWriteArrayList<>();

        @WirepostListener(value = "#", queue = "wirepost.shop.events.later")
        void any(Message<JsonNode> message) {
            got.add(message.id());
        }
    }

    @Test
    void aQueueThatComesLaterOrAgainIsConsumedThen() throws Exception {
        Late listeners = new Late();
        ConfigurableApplicationContext context = start(Map.of(), listeners, made -> { });
        Consumers consumers = context.getBean(Consumers.class);
        assertEquals(Map.of("wirepost.shop.events.later", false), consumers.consuming());
        try (Connection connection = RABBIT.connect(); Channel channel = connection.createChannel()) {
            for (String id : List.of("first", "second")) {
                channel.queueDeclare("wirepost.shop.events.later", true, false, false, Map.of("x-queue-type", "quorum"));
                channel.basicPublish("", "wirepost.shop.events.later", null,
                        ("{\"id\":\"" + id + "\",\"messageType\":\"a\"}").getBytes(StandardCharsets.UTF_8));
                until(id, () -> listeners.got.contains(id));
                until("no message without an answer", () -> channel.messageCount("wirepost.shop.events.later") == 0);
                channel.queueDelete("wirepost.shop.events.later");
                until("it is missed", () -> !consumers.consuming().get("wirepost.shop.events.later"));
            }
        }
        assertEquals(List.of("first", "second"), listeners.got);
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
}
