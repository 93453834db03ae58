package dev.wirepost.client;

import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiConsumer;
import java.util.function.Function;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/**
 * An edge that a test plays: every connection gets a {@code welcome}, every message an {@code ack}, unless
 * {@link #answer} says otherwise. As much of RFC 6455 as that takes.
 */
final class FakeEdge implements AutoCloseable {
    static final JsonMapper JSON = JsonMapper.shared();

    /** One connection. */
    final class Connection {
        final List<JsonNode> frames = new CopyOnWriteArrayList<>();
        final String path;
        private final Socket socket;
        private final DataInputStream in;
        private final OutputStream out;

        private Connection(Socket socket) throws IOException, GeneralSecurityException {
            this.socket = socket;
            in = new DataInputStream(new java.io.BufferedInputStream(socket.getInputStream()));
            out = socket.getOutputStream();
            path = line().split(" ")[1];
            String key = "";
            for (String header = line(); !header.isEmpty(); header = line()) {
                if (header.regionMatches(true, 0, "Sec-WebSocket-Key:", 0, 18)) {
                    key = header.substring(18).trim();
                }
            }
            upgrades.incrementAndGet();
            try {
                upgrading.run();
            } catch (Exception error) {
                throw new IllegalStateException(error);
            }
            byte[] digest = MessageDigest.getInstance("SHA-1")
                    .digest((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").getBytes(StandardCharsets.US_ASCII));
            out.write(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    + "Sec-WebSocket-Protocol: wirepost.v1\r\nSec-WebSocket-Accept: "
                    + Base64.getEncoder().encodeToString(digest) + "\r\n\r\n").getBytes(StandardCharsets.US_ASCII));
        }

        private String line() throws IOException {
            StringBuilder line = new StringBuilder();
            for (int c = in.readUnsignedByte(); c != '\n'; c = in.readUnsignedByte()) {
                line.append((char) c);
            }
            return line.toString().strip();
        }

        private void read() throws IOException {
            StringBuilder text = new StringBuilder();
            while (true) {
                int first = in.readUnsignedByte();
                int second = in.readUnsignedByte();
                long length = second & 0x7F;
                length = length == 126 ? in.readUnsignedShort() : length == 127 ? in.readLong() : length;
                byte[] mask = in.readNBytes(4);
                byte[] payload = in.readNBytes((int) length);
                for (int i = 0; i < payload.length; i++) {
                    payload[i] ^= mask[i % 4];
                }
                switch (first & 0x0F) {
                    case 0, 1 -> {
                        text.append(new String(payload, StandardCharsets.UTF_8));
                        if ((first & 0x80) != 0) {
                            got(JSON.readTree(text.toString()));
                            text.setLength(0);
                        }
                    }
                    case 8 -> {
                        write(8, payload);
                        return;
                    }
                    case 9 -> write(10, payload);
                    default -> { }
                }
            }
        }

        private void got(JsonNode frame) {
            frames.add(frame);
            JsonNode said = frame.has("op") ? null : answer.apply(frame);
            if (said != null) {
                say(said);
            }
        }

        private void write(int operation, byte[] payload) {
            ByteBuffer frame = ByteBuffer.allocate(payload.length + 10).put((byte) (0x80 | operation));
            if (payload.length < 126) {
                frame.put((byte) payload.length);
            } else if (payload.length < 65536) {
                frame.put((byte) 126).putShort((short) payload.length);
            } else {
                frame.put((byte) 127).putLong(payload.length);
            }
            frame.put(payload);
            try {
                synchronized (out) {
                    out.write(frame.array(), 0, frame.position());
                    out.flush();
                }
            } catch (IOException gone) {
                // the test looks at what arrived
            }
        }

        void say(Object frame) {
            write(1, JSON.writeValueAsString(frame).getBytes(StandardCharsets.UTF_8));
        }

        void push(int n, Map<String, ?> more) {
            ObjectNode push = JSON.createObjectNode();
            push.put("id", "p" + n).put("messageType", "payment.completed").put("cursor", "c" + n);
            push.putObject("content").put("n", n);
            more.forEach((name, value) -> push.set(name, JSON.valueToTree(value)));
            say(push);
        }

        void push(int n) {
            push(n, Map.of());
        }

        void close(int code) {
            write(8, ByteBuffer.allocate(2).putShort((short) code).array());
        }

        List<JsonNode> messages() {
            return frames.stream().filter(frame -> !frame.has("op")).toList();
        }
    }

    final List<Connection> connections = new CopyOnWriteArrayList<>();
    final AtomicInteger tokenCalls = new AtomicInteger();
    /** Runs before the answer to a request for a connection. */
    volatile Work upgrading = () -> { };
    /** Requests for a connection, and connections that have ended. */
    final AtomicInteger upgrades = new AtomicInteger();
    final AtomicInteger ended = new AtomicInteger();
    volatile Function<JsonNode, JsonNode> answer = FakeEdge::ack;
    /** Changes the {@code welcome} of the connection with this number. */
    volatile BiConsumer<Integer, ObjectNode> welcoming = (number, welcome) -> { };
    private final ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());

    FakeEdge() throws IOException {
        thread(() -> {
            while (true) {
                Socket socket = server.accept();
                thread(() -> serve(socket));
            }
        });
    }

    interface Work {
        void run() throws Exception;
    }

    private static void thread(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (IOException ended) {
                // a connection, or the server
            } catch (Exception error) {
                throw new IllegalStateException(error);
            }
        }, "fake edge");
        thread.setDaemon(true);
        thread.start();
    }

    private void serve(Socket socket) throws Exception {
        try (socket) {
            Connection connection = new Connection(socket);
            int number = connections.size();
            ObjectNode welcome = JSON.createObjectNode().put("op", "welcome").put("resumeToken", "resume");
            welcome.put("resumed", number > 0).put("cursor", number == 0 ? "c0" : "c" + number * 1000);
            welcome.putObject("limits").put("messageBytes", 1000).put("messagesPerSecond", 1000).put("burst", 1000);
            welcoming.accept(number, welcome);
            connection.say(welcome);
            connections.add(connection);
            connection.read();
        } catch (EOFException gone) {
            // without a close frame
        } finally {
            ended.incrementAndGet();
        }
    }

    static JsonNode ack(JsonNode frame) {
        return JSON.createObjectNode().put("op", "ack").put("id", frame.path("id").asString());
    }

    static JsonNode nack(JsonNode frame, String code, boolean retryable) {
        return JSON.createObjectNode().put("op", "nack").put("id", frame.path("id").asString()).put("code", code)
                .put("retryable", retryable).put("mayHaveArrived", false);
    }

    String token() {
        return "ws://127.0.0.1:" + server.getLocalPort() + "/socket/ticket-" + tokenCalls.incrementAndGet();
    }

    Connection connection(int number) {
        until("connection " + number, () -> connections.size() > number);
        return connections.get(number);
    }

    /** Waits for a condition. */
    static void until(String what, Callable<Boolean> check) {
        long deadline = System.nanoTime() + 20_000_000_000L;
        try {
            while (!check.call()) {
                if (System.nanoTime() - deadline > 0) {
                    throw new AssertionError("not within 20 s: " + what);
                }
                Thread.sleep(5);
            }
        } catch (RuntimeException error) {
            throw error;
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }

    @Override
    public void close() throws IOException {
        server.close();
        for (Connection connection : connections) {
            connection.socket.close();
        }
    }
}
