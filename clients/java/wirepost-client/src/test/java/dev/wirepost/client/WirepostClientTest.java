package dev.wirepost.client;

import static dev.wirepost.client.FakeEdge.until;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import tools.jackson.databind.node.ObjectNode;

/** What the suite does not judge, since it is this library's own: its calls, its handlers, its ends. */
@Timeout(60)
class WirepostClientTest {
    private FakeEdge edge;
    private WirepostClient client;

    record Paid(int n) {}

    @BeforeEach
    void begin() throws IOException {
        edge = new FakeEdge();
    }

    @AfterEach
    void end() throws IOException {
        if (client != null) {
            client.close();
        }
        edge.close();
    }

    private WirepostClient.Builder builder() {
        Timing standard = Timing.standard();
        return WirepostClient.builder(edge::token).timing(new Timing(standard.pingAfter(), standard.pongWithin(),
                standard.hintPongWithin(), standard.connectWithin(), standard.stableAfter(), Duration.ofMillis(20),
                Duration.ofMillis(100), Duration.ofSeconds(5), Duration.ofSeconds(5), Duration.ofMillis(20),
                Duration.ofMillis(100)));
    }

    private RejectedException rejected(CompletableFuture<?> result) {
        return (RejectedException) assertThrows(CompletionException.class, result::join).getCause();
    }

    @Test
    void handlersGetWhatTheirPatternsAcceptAsTheirType() {
        List<String> got = new CopyOnWriteArrayList<>();
        client = builder().build();
        client.on("payment.*", Paid.class, message -> got.add("paid " + message.content().n()));
        Runnable end = client.on("#", message -> got.add("all " + message.id()));
        client.start();
        edge.connection(0).push(1);
        edge.connection(0).push(2, Map.of("messageType", "qr.refreshed"));
        until("two messages", () -> got.contains("all p2"));
        end.run();
        edge.connection(0).push(3);
        until("the third", () -> got.contains("paid 3"));
        assertEquals(List.of("paid 1", "all p1", "all p2", "paid 3"), got);
    }

    @Test
    void aHandlerThatAlwaysFailsIsGivenUpAndReported() throws Exception {
        List<String> got = new CopyOnWriteArrayList<>();
        List<String> failed = new CopyOnWriteArrayList<>();
        CursorStore store = CursorStore.memory();
        client = builder().cursorStore(store).handlerAttempts(2)
                .onError((error, message) -> failed.add(error.getMessage() + " " + message.id())).build();
        client.on("#", message -> {
            got.add(message.id());
            if (message.id().equals("p1")) {
                throw new IllegalStateException("poison");
            }
        });
        client.start();
        edge.connection(0).push(1);
        edge.connection(0).push(2);
        until("the cursor", () -> "c2".equals(store.load()));
        assertEquals(List.of("p1", "p1", "p2"), got);
        assertEquals(List.of("poison p1", "poison p1"), failed);
    }

    @Test
    void aConnectionThatOpensAfterTheEndIsNotLeftOpen() {
        CountDownLatch open = new CountDownLatch(1);
        edge.upgrading = open::await;
        client = builder().build().start();
        until("a request for a connection", () -> edge.upgrades.get() == 1);
        client.close();
        open.countDown();
        until("its end", () -> edge.ended.get() == 1);
    }

    @Test
    void aCancelledSendIsTakenBack() {
        edge.answer = frame -> null;
        client = builder().build().start();
        CompletableFuture<String> send = client.send("order.placed", Map.of("n", 1));
        until("the message on the wire", () -> !edge.connection(0).messages().isEmpty());
        send.cancel(true);
        assertThrows(CancellationException.class, send::join);
        edge.answer = FakeEdge::ack;
        edge.connection(0).close(1011);
        client.send("order.placed", Map.of("n", 2)).join();
        List<Integer> sent = edge.connection(1).messages().stream().map(f -> f.at("/content/n").intValue()).toList();
        assertEquals(List.of(2), sent, "a message that was taken back was repeated");
    }

    @Test
    void twoMessagesWithOneIdAtTheSameTimeAreAMistake() {
        edge.answer = frame -> null;
        client = builder().build().start();
        Outgoing message = Outgoing.of("order.placed", Map.of()).withId("m");
        Pending first = client.submit(message);
        assertThrows(IllegalArgumentException.class, () -> client.submit(message));
        first.cancel();
        assertEquals("aborted", rejected(first.result()).code());
        client.submit(message);
    }

    @Test
    void rateLimitedMessagesKeepTheirOrder() {
        Set<String> refused = new HashSet<>();
        List<Integer> taken = new CopyOnWriteArrayList<>();
        edge.answer = frame -> {
            if (refused.add(frame.path("id").asString())) {
                return FakeEdge.nack(frame, "rate_limited", true);
            }
            taken.add(frame.at("/content/n").intValue());
            return FakeEdge.ack(frame);
        };
        client = builder().build().start();
        IntStream.range(0, 5).mapToObj(n -> client.send("order.placed", Map.of("n", n))).toList()
                .forEach(CompletableFuture::join);
        assertEquals(List.of(0, 1, 2, 3, 4), taken);
    }

    @Test
    void anAnswerReachesTheRequestAndNotTheHandlersWhichMayWaitForOne() {
        List<String> got = new CopyOnWriteArrayList<>();
        client = builder().build();
        client.on("#", message -> {
            got.add(message.id());
            if (message.id().equals("p1")) {
                Outgoing request = Outgoing.of("qr.refresh", Map.of()).withId("r");
                got.add("answer " + client.request(request, Duration.ofSeconds(20), Paid.class).join().content().n());
            }
        });
        client.start();
        edge.connection(0).push(1);
        until("the request", () -> !edge.connection(0).messages().isEmpty());
        edge.connection(0).push(2, Map.of("correlationId", "r"));
        edge.connection(0).push(3, Map.of("correlationId", "r"));
        until("a late copy", () -> got.contains("p3"));
        assertEquals(List.of("p1", "answer 2", "p3"), got);
    }

    @Test
    void closeSettlesARequestThatWasAcknowledged() {
        client = builder().build().start();
        CompletableFuture<?> answer = client.request("qr.refresh", Map.of());
        until("the request", () -> !edge.connection(0).messages().isEmpty());
        client.close();
        RejectedException error = rejected(answer);
        assertEquals("closed", error.code());
        assertTrue(error.mayHaveArrived());
        assertEquals("closed", rejected(client.send("order.placed", 1)).code());
        assertEquals(State.CLOSED, client.state());
    }

    @Test
    void aHandlerMayCloseTheClient() throws Exception {
        CountDownLatch ended = new CountDownLatch(1);
        client = builder().build();
        client.on("#", message -> {
            client.close();
            ended.countDown();
        });
        client.start();
        edge.connection(0).push(1);
        ended.await();
        assertEquals(State.CLOSED, client.state());
    }

    @Test
    void closeCode1009RejectsTheLargestAndRepeatsTheOthers() {
        edge.answer = frame -> null;
        client = builder().build().start();
        Pending small = client.submit(Outgoing.of("a", 1));
        Pending large = client.submit(Outgoing.of("a", "x".repeat(500)));
        until("both on the wire", () -> edge.connection(0).messages().size() == 2);
        edge.answer = FakeEdge::ack;
        edge.connection(0).close(1009);
        RejectedException error = rejected(large.result());
        assertEquals("too_large", error.code());
        assertFalse(error.mayHaveArrived());
        small.result().join();
        assertEquals(1, edge.connection(1).messages().size());
    }

    @Test
    void aRefusalAfterALostAttemptMayHaveArrived() {
        edge.answer = frame -> null;
        client = builder().build().start();
        CompletableFuture<String> send = client.send("a", 1);
        until("the message", () -> !edge.connection(0).messages().isEmpty());
        edge.answer = frame -> FakeEdge.nack(frame, "unknown_route", false);
        edge.connection(0).close(1011);
        assertTrue(rejected(send).mayHaveArrived());
    }

    @Test
    void aConnectionThatWasToldToLeaveIsReplacedAlsoAfter4009() {
        List<State> states = new CopyOnWriteArrayList<>();
        client = builder().onState(states::add).build().start();
        edge.connection(0).say(Map.of("op", "drain", "reconnectWithinMs", 60_000));
        edge.connection(0).say(Map.of("op", "pong"));
        edge.connection(0).close(4009);
        edge.connection(1);
        until("open again", () -> client.state() == State.OPEN);
        assertFalse(states.contains(State.STOPPED));
    }

    @Test
    void receiptsGoToTheOpenConnection() {
        client = builder().build().start();
        until("open", () -> client.state() == State.OPEN);
        client.received(IntStream.range(0, 300).mapToObj(n -> "p" + n).toArray(String[]::new));
        until("two receipts", () -> edge.connection(0).frames.size() == 2);
        assertEquals(List.of(256, 44), edge.connection(0).frames.stream().map(f -> f.path("ids").size()).toList());
    }

    @Test
    void aReceiptWithoutAnAnswerMakesItsMessageComeAgainAndIsGivenAgain() {
        List<String> got = new CopyOnWriteArrayList<>();
        client = builder().build();
        client.on("#", message -> got.add(message.id()));
        client.start();
        IntStream.of(1, 2, 3).forEach(edge.connection(0)::push);
        until("three messages", () -> got.size() == 3);
        client.received("p1", "p2", "p3");
        until("the receipts", () -> edge.connection(0).frames.size() == 1);
        edge.connection(0).say(Map.of("op", "receipt", "ids", List.of("p1")));
        edge.connection(0).say(Map.of("op", "error", "about", "received", "ids", List.of("p3"), "retryable", false));
        edge.connection(0).close(1012);
        assertTrue(edge.connection(1).path.endsWith("cursor=c1"), edge.connection(1).path);
        IntStream.of(2, 3).forEach(edge.connection(1)::push);
        until("its receipt", () -> edge.connection(1).frames.size() == 1);
        assertEquals("[\"p2\"]", edge.connection(1).frames.get(0).path("ids").toString());
        edge.connection(1).say(Map.of("op", "receipt", "ids", List.of("p2")));
        edge.connection(1).close(1012);
        assertTrue(edge.connection(2).path.endsWith("cursor=c3"), "what came again moved the position back");
        assertEquals(List.of("p1", "p2", "p3"), got);
    }

    private final List<String> got = new CopyOnWriteArrayList<>();
    private final List<String> gaps = new CopyOnWriteArrayList<>();

    /** Three messages, the second with a receipt that is lost, and the next connection, which begins before it. */
    private void loseAReceipt() {
        client = builder().build();
        client.on("#", message -> got.add(message.id()));
        client.onGap(gap -> gaps.add(gap.reason()));
        client.start();
        IntStream.of(1, 2, 3).forEach(edge.connection(0)::push);
        until("three messages", () -> got.size() == 3);
        client.received("p2");
        until("the receipt", () -> edge.connection(0).frames.size() == 1);
        cut(0, "c1");
    }

    private void cut(int number, String next) {
        edge.connection(number).close(1012);
        beginsAt(number + 1, next);
    }

    private void beginsAt(int number, String cursor) {
        String path = edge.connection(number).path;
        assertTrue(path.endsWith("cursor=" + cursor), path);
    }

    private static void end(ObjectNode welcome) {
        welcome.put("resumed", false).put("cursor", "end");
    }

    private static void unknown(ObjectNode welcome) {
        welcome.remove(List.of("resumed", "cursor"));
    }

    private void tellEnd(int number) {
        edge.connection(number).say(Map.of("op", "gap", "reason", "retention"));
        edge.connection(number).say(Map.of("op", "position", "cursor", "end"));
        edge.connection(number).push(9);
    }

    @Test
    void aMessageThatDoesNotComeAgainTakesItsReceiptWithIt() {
        loseAReceipt();
        edge.connection(1).push(3);
        until("open", () -> client.state() == State.OPEN);
        client.received("p1");
        edge.connection(1).push(4);
        until("a new message", () -> got.size() == 4);
        cut(1, "c0"); // a receipt that was given since then still waits
        edge.connection(2).push(5);
        until("a new message", () -> got.size() == 5);
        cut(2, "c5");
    }

    @Test
    void afterAPositionInARepetitionWhatHasNotComeAgainMayBeBehindIt() {
        // As where the broker was away: this position is where the repetition begins.
        edge.welcoming = (number, welcome) -> {
            if (number == 1) {
                unknown(welcome);
            }
        };
        loseAReceipt();
        edge.connection(1).say(Map.of("op", "position", "cursor", "p"));
        cut(1, "p");
        edge.connection(2).push(2);
        until("its receipt", () -> edge.connection(2).frames.size() == 1);
        assertEquals("[\"p2\"]", edge.connection(2).frames.get(0).path("ids").toString());
    }

    private void continuesAtTheNewest() {
        beginsAt(2, "c3");
        edge.connection(2).push(4);
        until("a new message", () -> got.size() == 4);
        assertEquals(List.of("p1", "p2", "p3", "p4"), got);
        assertEquals(List.of(), gaps);
        client.send("order.placed", Map.of()).join();
    }

    @Test
    void anOldPositionThatIsGoneIsNoGapWhileTheNewestOneIsNot() {
        edge.welcoming = (number, welcome) -> {
            if (number == 1) {
                end(welcome);
            }
        };
        loseAReceipt();
        tellEnd(1);
        continuesAtTheNewest();
    }

    @Test
    void norIsItWhereAGapTellsIt() {
        edge.welcoming = (number, welcome) -> {
            if (number == 1) {
                unknown(welcome);
            }
        };
        loseAReceipt();
        tellEnd(1);
        continuesAtTheNewest();
    }

    @Test
    void norIsItInTheMiddleOfARepetition() {
        loseAReceipt();
        edge.connection(1).push(2);
        tellEnd(1);
        continuesAtTheNewest();
    }

    @Test
    void anOldAndTheNewestPositionThatAreGoneAreOneGap() {
        edge.welcoming = (number, welcome) -> {
            if (number > 0) {
                end(welcome);
            }
        };
        loseAReceipt();
        until("the gap", () -> !gaps.isEmpty());
        edge.connection(2).say(Map.of("op", "gap", "reason", "retention"));
        client.send("order.placed", Map.of()).join();
        assertEquals(List.of("resume"), gaps);
        assertEquals(3, edge.connections.size());
    }

    /** The backlog is bounded: what is above it stays in the socket. That is no silence of the edge. */
    @Test
    void aSlowHandlerHoldsTheEdgeUpWithoutLosingTheConnection() throws Exception {
        CountDownLatch gate = new CountDownLatch(1);
        List<String> got = new CopyOnWriteArrayList<>();
        Timing fast = Timing.standard();
        client = builder().timing(new Timing(Duration.ofMillis(200), Duration.ofMillis(300), fast.hintPongWithin(),
                fast.connectWithin(), fast.stableAfter(), fast.fastFirst(), fast.fastMax(), fast.slowFirst(),
                fast.slowMax(), fast.nackFirst(), fast.nackMax())).build();
        client.on("#", message -> {
            gate.await();
            got.add(message.id());
        });
        client.start();
        IntStream.range(0, 1500).forEach(n -> edge.connection(0).push(n));
        Thread.sleep(1500);
        gate.countDown();
        until("all messages", () -> got.size() == 1500);
        assertEquals(IntStream.range(0, 1500).mapToObj(n -> "p" + n).toList(), got);
        assertEquals(1, edge.connections.size());
    }

    @Test
    void aStoreThatFailsCostsNeitherMessagesNorTheConnection() {
        List<String> failed = new CopyOnWriteArrayList<>();
        List<String> got = new CopyOnWriteArrayList<>();
        CursorStore broken = new CursorStore() {
            @Override
            public String load() throws IOException {
                throw new IOException("no disk");
            }

            @Override
            public void save(String cursor) throws IOException {
                throw new IOException("no disk");
            }
        };
        client = builder().cursorStore(broken).onError((error, message) -> failed.add(error.getMessage())).build();
        client.on("#", message -> got.add(message.id()));
        client.start();
        edge.connection(0).push(1);
        edge.connection(0).push(2);
        until("both", () -> got.equals(List.of("p1", "p2")));
        assertTrue(failed.contains("no disk"));
    }

    @Test
    void aClosedClientLeavesNoThreadBehind() {
        Set<Thread> before = Thread.getAllStackTraces().keySet();
        client = builder().build().start();
        edge.connection(0).say(Map.of("op", "drain", "reconnectWithinMs", 1));
        edge.connection(1);
        client.close();
        client.close();
        until("its threads have ended", () -> Thread.getAllStackTraces().keySet().stream()
                .filter(thread -> !before.contains(thread))
                .noneMatch(thread -> thread.getName().matches("wirepost-(handlers-)?\\d+")));
    }
}
