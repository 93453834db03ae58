package dev.wirepost.driver;

import dev.wirepost.client.CursorStore;
import dev.wirepost.client.Gap;
import dev.wirepost.client.HttpToken;
import dev.wirepost.client.Message;
import dev.wirepost.client.Outgoing;
import dev.wirepost.client.Pending;
import dev.wirepost.client.RejectedException;
import dev.wirepost.client.State;
import dev.wirepost.client.Timing;
import dev.wirepost.client.WirepostClient;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/** The driver by which clients/suite judges this library. Commands come from stdin, events go to stdout. */
public final class Driver {
    private static final List<String> SUPPORTS =
            List.of("timing", "request", "abort", "hints", "clock", "stats", "queue", "receipts");
    private static final JsonMapper JSON = JsonMapper.shared();
    private static final PrintStream OUT = new PrintStream(System.out, false, StandardCharsets.UTF_8);

    private final Map<String, Driven> clients = new HashMap<>();

    private Driver() {}

    /** Until the end of stdin. */
    public static void main(String[] arguments) throws IOException {
        ObjectNode ready = event("ready");
        ready.put("protocol", 1).put("name", "java");
        SUPPORTS.forEach(ready.putArray("supports")::add);
        say(ready);
        Driver driver = new Driver();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            driver.obey(JSON.readTree(line));
        }
        CompletableFuture.allOf(driver.clients.values().stream()
                .map(driven -> CompletableFuture.runAsync(driven.client::close, Driver::thread))
                .toArray(CompletableFuture[]::new)).join();
        System.exit(0);
    }

    private void obey(JsonNode command) {
        String name = command.path("client").asString("");
        Driven driven = clients.get(name);
        switch (command.path("do").asString()) {
            case "connect" -> clients.put(name, new Driven(command));
            // The library reads no wall clock (a test holds it to that), so none has to be shifted.
            case "clock" -> { }
            case "stats" -> say(event("stats").put("heapBytes", liveBytes()));
            case "close" -> thread(driven.client::close);
            case "send" -> driven.send(command);
            case "request" -> driven.request(command);
            case "abort" -> driven.abort(command.path("as").asString());
            case "handler" -> driven.handler(command);
            case "received" -> driven.received(command.path("ids"));
            case "hint" -> driven.hint(command.path("hint").asString());
            case "cursor" -> driven.cursor();
            case "reconnect" -> driven.client.reconnect();
            default -> say(event("unsupported").put("client", name).put("do", command.path("do").asString()));
        }
    }

    private static void thread(Runnable work) {
        Thread thread = new Thread(work, "driver");
        thread.setDaemon(true);
        thread.start();
    }

    private static long liveBytes() {
        long least = Long.MAX_VALUE;
        for (int i = 0; i < 3; i++) {
            System.gc();
            least = Math.min(least, ManagementFactory.getMemoryMXBean().getHeapMemoryUsage().getUsed());
        }
        return least;
    }

    static ObjectNode event(String name) {
        return JSON.createObjectNode().put("event", name);
    }

    static void say(JsonNode event) {
        String line = JSON.writeValueAsString(event);
        synchronized (OUT) {
            OUT.print(line + "\n");
            OUT.flush();
        }
    }

    /** One client, and how its handler behaves. */
    private static final class Driven {
        private final String name;
        private final CursorStore store;
        private final WirepostClient client;
        private final Map<String, Runnable> running = new ConcurrentHashMap<>();
        private volatile String mode = "ok";
        private volatile long millis;
        private final AtomicInteger times = new AtomicInteger();

        Driven(JsonNode command) {
            name = command.path("client").asString();
            store = CursorStore.memory(command.path("cursor").asString(null));
            WirepostClient.Builder builder =
                    WirepostClient.builder(new HttpToken(URI.create(command.path("tokenUrl").asString())))
                            .cursorStore(store)
                            .timing(timing(command.path("timing")))
                            .onState(this::state);
            if (command.has("queueLimit")) {
                builder.queueLimit(command.path("queueLimit").intValue());
            }
            client = builder.build();
            client.on("#", this::handle);
            client.onGap(this::gap);
            client.start();
        }

        private ObjectNode say(String event) {
            return event(event).put("client", name);
        }

        private void state(State state) {
            Driver.say(say("state").put("state", state.name().toLowerCase(Locale.ROOT)));
        }

        private void gap(Gap gap) {
            Driver.say(say("gap"));
        }

        private void handle(Message<JsonNode> message) throws InterruptedException {
            Driver.say(say("message").set("message", JSON.readTree(message.envelope())));
            switch (mode) {
                case "delay" -> Thread.sleep(millis);
                case "hang" -> new CountDownLatch(1).await();
                case "fail" -> {
                    if (times.getAndDecrement() > 0) {
                        throw new IllegalStateException("as told by the suite");
                    }
                }
                default -> { }
            }
        }

        void handler(JsonNode command) {
            millis = command.path("ms").asLong(0);
            times.set(command.path("times").asInt(1));
            mode = command.path("mode").asString();
        }

        void send(JsonNode command) {
            String as = command.path("as").asString();
            Pending pending = client.submit(outgoing(command.path("message")));
            running.put(as, pending::cancel);
            pending.result().whenComplete((id, error) -> {
                running.remove(as);
                ObjectNode event = say("sent").put("as", as);
                Driver.say(error == null ? event.put("result", "ack") : rejected(event, error));
            });
        }

        void request(JsonNode command) {
            String as = command.path("as").asString();
            Duration timeout = Duration.ofMillis(command.path("timeoutMs").longValue());
            CompletableFuture<Message<JsonNode>> answer = client.request(outgoing(command.path("message")), timeout);
            running.put(as, () -> answer.cancel(true));
            answer.whenComplete((message, error) -> {
                running.remove(as);
                ObjectNode event = say("answered").put("as", as);
                if (error == null) {
                    event.put("result", "answer").set("message", JSON.readTree(message.envelope()));
                    Driver.say(event);
                } else {
                    Driver.say(rejected(event, error));
                }
            });
        }

        private static ObjectNode rejected(ObjectNode event, Throwable error) {
            Throwable cause = error instanceof CompletionException ? error.getCause() : error;
            if (cause instanceof RejectedException rejected) {
                return event.put("result", "rejected")
                        .put("code", rejected.code())
                        .put("retryable", rejected.retryable())
                        .put("mayHaveArrived", rejected.mayHaveArrived());
            }
            return event.put("result", "rejected").put("code", "aborted").put("mayHaveArrived", true);
        }

        void abort(String as) {
            Runnable abort = running.get(as);
            if (abort != null) {
                abort.run();
            }
        }

        void hint(String hint) {
            switch (hint) {
                case "online" -> client.check();
                case "visible", "resume" -> client.reconnect();
                default -> { }
            }
        }

        void received(JsonNode ids) {
            client.received(ids.valueStream().map(JsonNode::asString).toArray(String[]::new));
        }

        void cursor() {
            try {
                Driver.say(say("cursor").put("cursor", store.load()));
            } catch (Exception impossible) {
                throw new IllegalStateException(impossible);
            }
        }

        private static Outgoing outgoing(JsonNode message) {
            Outgoing outgoing = Outgoing.of(message.path("messageType").asString(), message.get("content"));
            if (message.has("toUniqueId")) {
                outgoing = outgoing.to(message.path("toUniqueId").asString());
            }
            if (message.has("tags")) {
                outgoing = outgoing.toTags(JSON.treeToValue(message.get("tags"), String[].class));
            }
            return outgoing;
        }

        private static Timing timing(JsonNode waits) {
            Timing standard = Timing.standard();
            return new Timing(wait(waits, "pingAfter", standard.pingAfter()),
                    wait(waits, "pongWithin", standard.pongWithin()),
                    wait(waits, "hintPongWithin", standard.hintPongWithin()),
                    wait(waits, "connectWithin", standard.connectWithin()),
                    wait(waits, "stableAfter", standard.stableAfter()),
                    wait(waits, "fastFirst", standard.fastFirst()), wait(waits, "fastMax", standard.fastMax()),
                    wait(waits, "slowFirst", standard.slowFirst()), wait(waits, "slowMax", standard.slowMax()),
                    wait(waits, "nackFirst", standard.nackFirst()), wait(waits, "nackMax", standard.nackMax()));
        }

        private static Duration wait(JsonNode waits, String name, Duration standard) {
            return waits.has(name) ? Duration.ofMillis(waits.path(name).longValue()) : standard;
        }
    }
}
