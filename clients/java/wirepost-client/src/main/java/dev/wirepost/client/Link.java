package dev.wirepost.client;

import java.lang.System.Logger.Level;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpResponse;
import java.net.http.WebSocket;
import java.net.http.WebSocketHandshakeException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.Future;
import java.util.function.Supplier;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;

/**
 * One WebSocket connection to an edge: opening it, its frames, and whether it is still alive. Belongs to the loop, but
 * for its {@link Listener}, which the HTTP client calls.
 */
final class Link {
    private static final System.Logger LOG = System.getLogger("wirepost");
    private static final String SUBPROTOCOL = "wirepost.v1";
    private static final String TOKEN_PROTOCOL = "wirepost.token.";
    /** Above the largest {@code pushBytes} that a business may declare. A larger frame ends the connection. */
    private static final int MESSAGE_MAX = 8 * 1024 * 1024;
    /** Control frames that wait for the socket; further ones are dropped. */
    private static final int CONTROLS_MAX = 1024;
    private static final int NORMAL = 1000;

    /** What its owner learns, on the loop. Either {@link #failed} or {@link #over} is called, and that once. */
    interface Owner {
        /** It has its welcome. */
        void opened(Link link);

        /** It never had one. */
        void failed(Link link, NotOpened why);

        /** A frame after the welcome; {@code text} is what was parsed. */
        void frame(Link link, JsonNode frame, String text);

        /** Whether there is room for one more frame. If not, nothing is read until {@link Link#read()}. */
        boolean hasRoom();

        /** It can take another message. */
        void writable();

        /** It has ended after its welcome. */
        void over(Link link, int code);
    }

    private enum Phase {
        CONNECTING, GREETING, LIVE, OVER
    }

    /** What was sent here and has no answer, in order. */
    final Map<String, Pending> unanswered = new LinkedHashMap<>();
    /** Another link has taken over: only answers to what was sent here still count. */
    boolean retired;
    /** The edge asked to leave. */
    boolean draining;
    /** It began before the newest position, so that messages come again whose receipts have no answer. */
    boolean again;
    /** Receipts that waited for their messages when it began, if it began before those. */
    List<String> awaited = List.of();
    /** The welcome said that something is missing; a {@code gap} that follows is its reason. */
    boolean gapTold;
    boolean hadMessage;
    boolean silentDeath;
    JsonNode welcome;
    long opened;
    /** Known from the welcome on. */
    Pace pace;

    private final Loop loop;
    private final Owner owner;
    private final Timing timing;
    private final Pulse pulse;
    private final ArrayDeque<String> controls = new ArrayDeque<>();
    private Phase phase = Phase.CONNECTING;
    private WebSocket socket;
    private Future<?> timer;
    private boolean writing;
    private boolean stalled;
    private Runnable closed;

    private boolean pinging;

    Link(Loop loop, Owner owner, Timing timing, Supplier<Duration> patience) {
        this.loop = loop;
        this.owner = owner;
        this.timing = timing;
        this.pulse = new Pulse(loop, timing, patience, this::ping, this::dead);
    }

    // ---- opening ----

    /** Connects and waits for {@code welcome}. */
    void open(HttpClient http, String url, String token, String cursor) {
        timer = loop.after(timing.connectWithin(),
                () -> fail(NotOpened.broken("not open within " + timing.connectWithin())));
        try {
            String query = cursor == null ? "" : "?cursor=" + URLEncoder.encode(cursor, StandardCharsets.UTF_8);
            http.newWebSocketBuilder()
                    // Not in the URL, which proxies log.
                    .subprotocols(SUBPROTOCOL, TOKEN_PROTOCOL + token)
                    .connectTimeout(timing.connectWithin())
                    .buildAsync(URI.create(url + query), new Listener())
                    .whenComplete((socket, error) -> {
                        if (error != null) {
                            loop.execute(() -> fail(why(error)));
                        }
                    });
        } catch (IllegalArgumentException malformed) {
            fail(NotOpened.noUrl());
        }
    }

    private void connected(WebSocket socket) {
        if (phase != Phase.CONNECTING) {
            socket.abort();
            return;
        }
        this.socket = socket;
        phase = Phase.GREETING;
        Loop.cancel(timer);
        timer = loop.after(timing.connectWithin(),
                () -> fail(NotOpened.broken("no welcome within " + timing.connectWithin())));
    }

    private static NotOpened why(Throwable error) {
        Throwable cause = error;
        while (cause != null && !(cause instanceof WebSocketHandshakeException)) {
            cause = cause.getCause();
        }
        HttpResponse<?> answer = cause == null ? null : ((WebSocketHandshakeException) cause).getResponse();
        if (answer == null) {
            return NotOpened.broken("connecting failed: " + error);
        }
        String retryAfter = answer.headers().firstValue("retry-after").orElse(null);
        return NotOpened.upgrade(answer.statusCode(), HttpToken.seconds(retryAfter));
    }

    private void fail(NotOpened why) {
        if (phase == Phase.LIVE) {
            end(why.code());
        } else if (phase != Phase.OVER) {
            finish();
            owner.failed(this, why);
        }
    }

    private void finish() {
        phase = Phase.OVER;
        retired = true;
        Loop.cancel(timer);
        pulse.end();
        controls.clear();
        if (socket != null) {
            socket.abort();
        }
    }

    // ---- frames ----

    private void arrived(JsonNode frame, String text) {
        if (phase == Phase.GREETING && frame != null && "welcome".equals(Envelopes.text(frame, "op"))) {
            greet(frame);
        } else if (phase == Phase.LIVE && frame != null) {
            owner.frame(this, frame, text);
        }
        if (phase == Phase.OVER) {
            return;
        }
        if (phase == Phase.LIVE && !owner.hasRoom()) {
            stalled = true;
            pulse.hold(true);
        } else {
            socket.request(1);
        }
    }

    private void greet(JsonNode frame) {
        Loop.cancel(timer);
        phase = Phase.LIVE;
        welcome = frame;
        opened = loop.now();
        pace = new Pace(frame.path("limits"), opened);
        owner.opened(this);
        pulse.begin();
    }

    /** There is room again. */
    void read() {
        if (stalled && phase == Phase.LIVE) {
            stalled = false;
            pulse.hold(false);
            socket.request(1);
        }
    }

    /** Whether a text frame is being written. */
    boolean busy() {
        return writing || phase != Phase.LIVE;
    }

    /** Writes a message; only when it is not {@link #busy()}. */
    void send(String text) {
        writing = true;
        socket.sendText(text, true).whenComplete((sent, error) -> loop.execute(() -> written(error)));
    }

    /** Writes a control frame, before further messages. */
    void control(String text) {
        if (!busy()) {
            send(text);
        } else if (phase == Phase.LIVE && controls.size() < CONTROLS_MAX) {
            controls.add(text);
        }
    }

    private void written(Throwable error) {
        writing = false;
        if (error != null) {
            end(NotOpened.BROKEN);
        } else if (phase == Phase.LIVE) {
            String control = controls.poll();
            if (control != null) {
                send(control);
            } else {
                owner.writable();
            }
        }
    }

    // ---- life ----

    /** Tests it now: it is abandoned unless something arrives soon. */
    void probe() {
        if (phase == Phase.LIVE) {
            pulse.probe();
        }
    }

    private void dead() {
        silentDeath = true;
        end(NotOpened.BROKEN);
    }

    private void ping() {
        if (!pinging) {
            pinging = true;
            socket.sendPing(ByteBuffer.allocate(0))
                    .whenComplete((sent, error) -> loop.execute(() -> pinging = false));
        }
    }

    /** Ends it without a farewell, which a dead network would not carry. Its owner is not told. */
    void abandon() {
        if (phase != Phase.OVER) {
            finish();
        }
    }

    /** Says goodbye; {@code then} is called when the edge has answered, or after a second. */
    void close(Runnable then) {
        if (phase != Phase.LIVE) {
            abandon();
            then.run();
            return;
        }
        if (closed != null) {
            return;
        }
        closed = then;
        if (stalled) {
            stalled = false;
            socket.request(1); // the answer is behind what was not read
        }
        socket.sendClose(NORMAL, "");
        pulse.end();
        timer = loop.after(Duration.ofSeconds(1), () -> end(NORMAL));
    }

    private void end(int code) {
        if (phase == Phase.GREETING || phase == Phase.CONNECTING) {
            fail(NotOpened.closed(code));
        } else if (phase == Phase.LIVE) {
            finish();
            Runnable then = closed;
            owner.over(this, code);
            if (then != null) {
                then.run();
            }
        }
    }

    /** What the HTTP client calls, one call at a time. Nothing is read unless it is asked for. */
    private final class Listener implements WebSocket.Listener {
        private StringBuilder parts = new StringBuilder();

        @Override
        public void onOpen(WebSocket socket) {
            if (!loop.execute(() -> connected(socket))) {
                socket.abort(); // the client was closed meanwhile, and nobody else knows of this socket
                return;
            }
            socket.request(1);
        }

        @Override
        public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean last) {
            pulse.beat();
            if (parts.length() + data.length() > MESSAGE_MAX) {
                LOG.log(Level.WARNING, "wirepost: a frame of more than {0} characters ended the connection",
                        MESSAGE_MAX);
                loop.execute(() -> end(NotOpened.BROKEN));
                return null;
            }
            parts.append(data);
            if (!last) {
                socket.request(1);
                return null;
            }
            String text = parts.toString();
            if (parts.capacity() > 64 * 1024) {
                parts = new StringBuilder();
            }
            parts.setLength(0);
            JsonNode frame = parse(text);
            loop.execute(() -> arrived(frame, text));
            return null;
        }

        private static JsonNode parse(String text) {
            try {
                JsonNode frame = Envelopes.STANDARD.mapper().readTree(text);
                return frame.isObject() ? frame : null;
            } catch (JacksonException notJson) {
                return null;
            }
        }

        @Override
        public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer data, boolean last) {
            return alive(socket);
        }

        @Override
        public CompletionStage<?> onPing(WebSocket socket, ByteBuffer message) {
            return alive(socket);
        }

        @Override
        public CompletionStage<?> onPong(WebSocket socket, ByteBuffer message) {
            return alive(socket);
        }

        private CompletionStage<?> alive(WebSocket socket) {
            pulse.beat();
            socket.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
            loop.execute(() -> end(code));
            return null; // the HTTP client answers it
        }

        @Override
        public void onError(WebSocket socket, Throwable error) {
            loop.execute(() -> end(NotOpened.BROKEN));
        }
    }
}
