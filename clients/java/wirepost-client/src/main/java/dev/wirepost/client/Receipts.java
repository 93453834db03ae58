package dev.wirepost.client;

import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import tools.jackson.databind.JsonNode;

/**
 * Gives receipts, each until it is answered. A receipt counts on a link that delivered its message. So if that ends
 * without an answer, the next one begins before that message, and the receipt is given when it comes again. Belongs to
 * the loop.
 */
final class Receipts {
    /** Ids in one {@code received}, see the protocol. */
    private static final int IN_A_FRAME = 256;
    /** In which receipts that are given again wait for each other. */
    private static final Duration TOGETHER = Duration.ofMillis(20);

    private final Loop loop;
    private final Waits waits;
    /** Messages that are remembered: no more than those by which repeats are dropped. */
    private final int remembered;
    /** The last messages, the oldest first. */
    private final Map<String, Delivered> messages = new LinkedHashMap<>();
    /** Receipts without an answer, by where they were given; null: their messages are to come again. */
    private final Map<String, Link> open = new LinkedHashMap<>();
    /** Those that are about to be given again. */
    private final Map<Link, Soon> soon = new HashMap<>();
    private int refusals;

    private static final class Delivered {
        /** The position before it. */
        String before;
        /** The link that brought it last, if it lives. */
        Link link;

        Delivered(String before, Link link) {
            this.before = before;
            this.link = link;
        }
    }

    private static final class Soon {
        final List<String> ids = new ArrayList<>();
        Future<?> timer;
    }

    Receipts(Loop loop, Waits waits, int remembered) {
        this.loop = loop;
        this.waits = waits;
        this.remembered = remembered;
    }

    /** Where to continue so that messages come again whose receipts are open; null: nothing has to come again. */
    String cursor() {
        for (Map.Entry<String, Delivered> message : messages.entrySet()) {
            String before = message.getValue().before;
            if (before != null && waitsForItsMessage(message.getKey())) {
                return before;
            }
        }
        return null;
    }

    /** Receipts that wait for their messages to come again. */
    List<String> waiting() {
        return open.keySet().stream().filter(this::waitsForItsMessage).toList();
    }

    private boolean waitsForItsMessage(String id) {
        return open.containsKey(id) && open.get(id) == null;
    }

    /** A message has come. Returns whether it came before. */
    boolean delivered(String id, String before, Link link) {
        Delivered known = messages.get(id);
        if (known != null) {
            known.link = link;
        } else {
            messages.put(id, new Delivered(before, link));
            // It is behind all that could come again: what has not, as it expired or lost its tag, never will.
            link.awaited.stream().filter(this::waitsForItsMessage).forEach(open::remove);
            link.awaited = List.of();
        }
        if (messages.size() > remembered) {
            String oldest = messages.keySet().iterator().next();
            messages.remove(oldest);
            if (waitsForItsMessage(oldest)) {
                open.remove(oldest);
            }
        }
        if (waitsForItsMessage(id)) {
            giveSoon(List.of(id), link, TOGETHER);
        }
        return known != null;
    }

    /** Gives receipts; {@code current} (or null) is for messages that are not remembered any more. */
    void give(List<String> ids, Link current) {
        Map<Link, List<String>> given = new LinkedHashMap<>();
        for (String id : new LinkedHashSet<>(ids)) {
            Delivered known = messages.get(id);
            Link link = known != null ? known.link : current;
            if (known == null && link == null) {
                continue;
            }
            open.put(id, link);
            if (open.size() > remembered) {
                open.remove(open.keySet().iterator().next());
            }
            if (link != null) {
                given.computeIfAbsent(link, any -> new ArrayList<>()).add(id);
            }
        }
        given.forEach(Receipts::send);
    }

    /** A {@code receipt}, or an {@code error} about {@code received}. */
    void answer(Link link, JsonNode frame) {
        List<String> answered = new ArrayList<>();
        for (JsonNode id : frame.path("ids")) {
            if (id.isString() && open.get(id.asString()) == link) {
                answered.add(id.asString());
            }
        }
        if ("receipt".equals(Envelopes.text(frame, "op"))) {
            refusals = 0;
        } else if (frame.path("retryable").asBoolean(false)) {
            if (!answered.isEmpty()) {
                giveSoon(answered, link, waits.nack(++refusals));
            }
            return;
        }
        answered.forEach(open::remove);
    }

    /** Whether a link owes answers. */
    boolean owes(Link link) {
        return open.containsValue(link);
    }

    /**
     * A link has come to a position. What it has not brought again is behind that, or never comes. An edge sends
     * positions in the middle of a repetition too, so it is not known which.
     */
    void reached(Link link, String cursor) {
        for (String id : link.awaited) {
            Delivered known = messages.get(id);
            if (known != null && waitsForItsMessage(id)) {
                known.before = cursor;
            }
        }
    }

    /** A position can't be continued: what is to come again does not. */
    void gap() {
        open.values().removeIf(link -> link == null);
    }

    /** A link has ended, or was left. */
    void lost(Link link) {
        Soon waiting = soon.remove(link);
        if (waiting != null) {
            Loop.cancel(waiting.timer);
        }
        for (Delivered message : messages.values()) {
            message.link = message.link == link ? null : message.link;
        }
        for (Iterator<Map.Entry<String, Link>> each = open.entrySet().iterator(); each.hasNext();) {
            Map.Entry<String, Link> receipt = each.next();
            if (receipt.getValue() != link) {
                continue;
            }
            if (messages.containsKey(receipt.getKey())) {
                receipt.setValue(null);
            } else {
                each.remove();
            }
        }
    }

    private void giveSoon(List<String> ids, Link link, Duration wait) {
        ids.forEach(id -> open.put(id, link));
        Soon waiting = soon.get(link);
        if (waiting == null) {
            Soon made = new Soon();
            soon.put(link, made);
            made.timer = loop.after(wait, () -> {
                soon.remove(link);
                send(link, made.ids);
            });
            waiting = made;
        }
        waiting.ids.addAll(ids);
    }

    private static void send(Link link, List<String> ids) {
        for (int from = 0; from < ids.size(); from += IN_A_FRAME) {
            List<String> some = ids.subList(from, Math.min(ids.size(), from + IN_A_FRAME));
            link.control(Envelopes.STANDARD.dump(Map.of("op", "received", "ids", some)));
        }
    }
}
