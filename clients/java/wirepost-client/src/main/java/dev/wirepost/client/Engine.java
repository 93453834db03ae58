package dev.wirepost.client;

import java.lang.System.Logger.Level;
import java.net.http.HttpClient;
import java.time.Duration;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Future;
import java.util.function.Consumer;
import tools.jackson.databind.JsonNode;

/**
 * Keeps a connection: makes it, moves to another one when its edge drains, and makes it again when it ends. Belongs to
 * the loop.
 */
final class Engine implements Link.Owner {
    private static final System.Logger LOG = System.getLogger("wirepost");
    /** For the answers to what was sent on a connection that another one has replaced. */
    private static final Duration SETTLE = Duration.ofSeconds(10);

    private final Loop loop;
    private final Timing timing;
    private final HttpClient http;
    private final Waits waits;
    private final Session session;
    private final Outbox outbox;
    private final Inbox inbox;
    private final Requests requests;
    private final Receipts receipts;
    private final Consumer<State> onState;

    private State state;
    private String cursor;
    private boolean started;
    private boolean wasOpen;
    private boolean closing;
    /** The connection that counts. */
    private Link current;
    /** Connections that were replaced, and settle what was sent on them. */
    private final Set<Link> leaving = new HashSet<>();
    private Attempt attempt;
    /** The wait until the next attempt. */
    private Future<?> timer;
    private Duration patience;
    private int deaths;
    private volatile long heard;
    private volatile boolean everHeard;

    /** One way to a connection: a token call where one is needed, then a link. */
    private static final class Attempt {
        final Session.Call call = new Session.Call();
        Link link;
        String given;

        void end() {
            call.end();
            if (link != null) {
                link.abandon();
            }
        }
    }

    Engine(Loop loop, Timing timing, HttpClient http, Session session, Outbox outbox, Inbox inbox, Requests requests,
            Receipts receipts, Consumer<State> onState) {
        this.loop = loop;
        this.timing = timing;
        this.http = http;
        this.waits = new Waits(timing);
        this.session = session;
        this.outbox = outbox;
        this.inbox = inbox;
        this.requests = requests;
        this.receipts = receipts;
        this.onState = onState;
        this.patience = timing.pongWithin();
    }

    // ---- what the user asks for ----

    /** Begins with this position. */
    void start(String from) {
        if (!closing) {
            started = true;
            cursor = from;
            connect();
        }
    }

    /** Ends a wait, and the stop after 4009. */
    void reconnect() {
        if (started && !closing && current == null && attempt == null) {
            connect();
        }
    }

    /** The same, and tests an open connection. */
    void check() {
        reconnect();
        if (current != null) {
            current.probe();
        }
    }

    void received(List<String> ids) {
        if (!closing) {
            receipts.give(ids, current);
        }
    }

    /** Nanoseconds since the last frame of the edge; -1 before the first one. Any thread. */
    long silence() {
        return everHeard ? loop.now() - heard : -1;
    }

    /** Says goodbye and settles everything; {@code then} is called when the connection has ended. */
    void close(Runnable then) {
        closing = true;
        Loop.cancel(timer);
        if (attempt != null) {
            attempt.end();
            attempt = null;
        }
        outbox.close();
        requests.close();
        inbox.stop();
        leaving.forEach(Link::abandon);
        leaving.clear();
        Link last = current;
        current = null;
        if (last == null) {
            then.run();
        } else {
            last.close(then);
        }
    }

    /** The last state. */
    void closed() {
        to(State.CLOSED);
    }

    // ---- the connection ----

    private void connect() {
        Loop.cancel(timer);
        timer = null;
        if (current == null) {
            to(State.CONNECTING);
        }
        Attempt made = new Attempt();
        attempt = made;
        session.target(made.call, (url, token) -> {
            String before = receipts.cursor();
            made.given = before != null ? before : cursor;
            made.link = new Link(loop, this, timing, () -> patience);
            made.link.again = before != null && !before.equals(cursor);
            made.link.awaited = before != null ? receipts.waiting() : List.of();
            made.link.open(http, url, token, made.given);
        }, why -> failed(null, why));
    }

    @Override
    public void opened(Link link) {
        Attempt made = attempt;
        attempt = null;
        heard = loop.now();
        everHeard = true;
        session.take(link.welcome);
        if (link.again && notResumed(link)) {
            fromNewest(link);
            retire(link);
            return;
        }
        Link old = current;
        current = link;
        welcomed(link, made.given);
        if (old != null) {
            retire(old);
        }
        to(State.OPEN);
        outbox.attach(link);
    }

    private static boolean notResumed(Link link) {
        return link.welcome.path("resumed").isBoolean() && !link.welcome.path("resumed").booleanValue();
    }

    /**
     * The position before a message without a receipt can't be continued. The newest one perhaps can, so there is no
     * gap yet: the next link begins there, without the receipts that wait. Nothing more that this one brings counts:
     * that would be behind what may be missing.
     */
    private void fromNewest(Link link) {
        link.retired = true;
        link.draining = true; // so its end with 4009 does not mean "stay away"
        receipts.gap();
        if (attempt == null) {
            connect();
        }
    }

    /** What the welcome says about messages that were missed. */
    private void welcomed(Link link, String given) {
        String from = Envelopes.text(link.welcome, "cursor");
        Gap gap = null;
        if (given == null) {
            // Without a cursor nothing tells what came between two connections.
            gap = wasOpen ? new Gap("restart") : null;
        } else if (notResumed(link)) {
            gap = new Gap("resume");
            link.gapTold = true;
            receipts.gap();
            cursor = null; // it is of no use any more
        }
        wasOpen = true;
        if (link.again) {
            return; // its position is behind what has come already
        }
        cursor = from != null ? from : cursor;
        if (gap != null || from != null) {
            inbox.put(null, gap, from, 0);
        }
    }

    @Override
    public void failed(Link link, NotOpened why) {
        attempt = null;
        if (closing) {
            return;
        }
        LOG.log(Level.INFO, "wirepost: {0}", why.reason());
        if (why.forgetToken()) {
            session.forget();
        }
        if (current == null && why.code() == 4009) {
            to(State.STOPPED);
        } else {
            again(why.slowly(), why.retryAfter());
        }
    }

    private void again(boolean slowly, Duration retryAfter) {
        if (current == null) {
            to(State.WAITING);
        }
        timer = loop.after(waits.next(slowly, retryAfter), this::connect);
    }

    @Override
    public void over(Link link, int code) {
        count(link);
        List<Pending> unanswered = outbox.lost(link);
        receipts.lost(link);
        if (code == 1009 && !unanswered.isEmpty()) {
            // One of them was too large for the edge or something before it: never again.
            Pending largest = unanswered.stream().max(Comparator.comparingInt(one -> one.size)).get();
            outbox.reject(largest, "too_large", "the connection was closed with 1009", false, largest.lostBefore);
        }
        leaving.remove(link);
        if (link != current) {
            return;
        }
        current = null;
        waits.lasted(loop.now() - link.opened);
        if (code == 3000) {
            session.forget();
        }
        if (attempt != null) {
            to(State.CONNECTING); // its replacement is on the way
            return;
        }
        Loop.cancel(timer);
        // On a connection that was told to leave, 4009 does not mean "stay away".
        if (code == 4009 && !link.draining) {
            to(State.STOPPED);
        } else {
            again(code == 3003 || code == 4010, null);
        }
    }

    /** A line that is silent twice may be slow: its pings get more time. */
    private void count(Link link) {
        if (link.hadMessage) {
            deaths = 0;
        }
        deaths = link.silentDeath ? deaths + 1 : 0;
        if (deaths >= 2) {
            Duration twice = patience.multipliedBy(2);
            patience = twice.compareTo(Waits.PATIENCE_MAX) < 0 ? twice : Waits.PATIENCE_MAX;
        }
    }

    /** Leaves a link that was replaced, after the answers to what was sent on it. */
    private void retire(Link old) {
        old.retired = true;
        leaving.add(old);
        loop.after(SETTLE, () -> leave(old));
        settled(old);
    }

    private void settled(Link link) {
        if (link.retired && link.unanswered.isEmpty() && !receipts.owes(link)) {
            leave(link);
        }
    }

    private void leave(Link old) {
        if (leaving.contains(old)) {
            receipts.lost(old);
            old.close(() -> leaving.remove(old));
        }
    }

    // ---- frames ----

    @Override
    public boolean hasRoom() {
        return inbox.hasRoom();
    }

    @Override
    public void writable() {
        outbox.pump();
    }

    /** A slow handler has caught up. */
    void read() {
        if (current != null) {
            current.read();
        }
        leaving.forEach(Link::read);
    }

    @Override
    public void frame(Link link, JsonNode frame, String text) {
        if (closing) {
            return;
        }
        heard = loop.now();
        String operation = Envelopes.text(frame, "op");
        if (operation != null) {
            control(link, operation, frame);
        } else if (!link.retired) {
            envelope(link, frame, text);
        }
    }

    private void envelope(Link link, JsonNode frame, String text) {
        link.hadMessage = true;
        link.gapTold = false;
        patience = timing.pongWithin();
        Message<JsonNode> message;
        try {
            message = Envelopes.STANDARD.read(frame, text);
        } catch (IllegalArgumentException neverSent) {
            return;
        }
        // What comes again is behind the position already.
        link.again = receipts.delivered(message.id(), cursor, link) && link.again;
        String at = link.again ? null : message.cursor();
        cursor = at != null ? at : cursor;
        boolean handled = inbox.firstTime(message) && !requests.answer(message);
        if (handled) {
            inbox.put(message, null, at, text.length());
        } else if (at != null) {
            inbox.put(null, null, at, 0);
        }
    }

    private void control(Link link, String operation, JsonNode frame) {
        switch (operation) {
            case "ack" -> {
                link.hadMessage = true;
                outbox.ack(link, frame);
                settled(link);
            }
            case "nack" -> {
                link.hadMessage = true;
                outbox.nack(link, frame);
                settled(link);
            }
            case "receipt", "error" -> {
                receipts.answer(link, frame);
                settled(link);
            }
            case "drain" -> drain(link, frame);
            case "expiring" -> session.extend(link, frame);
            case "refreshed" -> session.take(frame);
            case "position" -> {
                if (!link.retired) {
                    position(link, frame);
                }
            }
            case "gap" -> {
                if (!link.retired && link.again) {
                    fromNewest(link);
                }
                // If the welcome told it, this is the reason for it.
                if (!link.retired && !link.gapTold) {
                    String reason = Envelopes.text(frame, "reason");
                    inbox.put(null, new Gap(reason == null ? "unknown" : reason), null, 0);
                }
                link.gapTold = false;
            }
            default -> { } // pong, and what later versions add
        }
    }

    private void position(Link link, JsonNode frame) {
        session.take(frame);
        link.gapTold = false;
        link.again = false;
        String at = Envelopes.text(frame, "cursor");
        if (at != null) {
            receipts.reached(link, at);
            cursor = at;
            inbox.put(null, null, at, 0);
        }
    }

    private void drain(Link link, JsonNode frame) {
        if (link != current || link.draining || attempt != null) {
            return;
        }
        link.draining = true;
        double within = Envelopes.positive(frame, "reconnectWithinMs", 0);
        timer = loop.after(Waits.between(0, Duration.ofNanos((long) (within * 1e6))), this::connect);
    }

    private void to(State next) {
        if (state != next && state != State.CLOSED) {
            state = next;
            onState.accept(next);
        }
    }
}
