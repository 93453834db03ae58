package dev.wirepost.client;

import java.time.Instant;
import java.util.List;
import java.util.UUID;

/**
 * A message to be sent: by a client to its business or to other clients, or by a service to clients.
 *
 * <pre>{@code
 * Outgoing.of("payment.completed", new Paid("o-1")).to("alice")
 * }</pre>
 *
 * @param messageType what happened: words separated by dots
 * @param content written as JSON: a record, a map, a {@code JsonNode}; or null
 * @param id names the message, at most 64 bytes. A repeat has the same, so that it counts once
 * @param to one identity, or {@link #EVERYONE}
 * @param toClientType narrows the audience to a client type
 * @param tags addresses the connections that have one of them
 * @param correlationId the id of the message that this one answers
 * @param expiresAt when it is no longer delivered
 * @param businesses whose clients it is for, of those businesses that accept it; empty: the sender's own
 */
public record Outgoing(
        String messageType,
        Object content,
        String id,
        String to,
        String toClientType,
        List<String> tags,
        String correlationId,
        Instant expiresAt,
        List<String> businesses) {

    /** As {@code to}: every connection, on a route with {@code audience: Everyone}. */
    public static final String EVERYONE = "*";

    /** Copies the lists. */
    public Outgoing {
        if (messageType == null || messageType.isEmpty()) {
            throw new IllegalArgumentException("a message needs a messageType");
        }
        if (id == null || id.isEmpty()) {
            throw new IllegalArgumentException("a message needs an id");
        }
        tags = tags == null ? List.of() : tags.stream().filter(tag -> tag != null && !tag.isEmpty()).toList();
        businesses = businesses == null ? List.of() : List.copyOf(businesses);
    }

    /** With an id of its own, and without an audience. */
    public static Outgoing of(String messageType, Object content) {
        String id = UUID.randomUUID().toString();
        return new Outgoing(messageType, content, id, null, null, List.of(), null, null, List.of());
    }

    /** With this id, for a repeat or one that is made from your data. */
    public Outgoing withId(String other) {
        return new Outgoing(messageType, content, other, to, toClientType, tags, correlationId, expiresAt, businesses);
    }

    /** To one identity, on all its devices. */
    public Outgoing to(String uniqueId) {
        return new Outgoing(messageType, content, id, uniqueId, toClientType, tags, correlationId, expiresAt, businesses);
    }

    /** To every connection. */
    public Outgoing toEveryone() {
        return to(EVERYONE);
    }

    /** To the connections that have one of these tags; with {@link #to(String)}, to those of the identity. */
    public Outgoing toTags(String... these) {
        return new Outgoing(messageType, content, id, to, toClientType, List.of(these), correlationId, expiresAt, businesses);
    }

    /** Only to clients of this type. */
    public Outgoing toClientType(String clientType) {
        return new Outgoing(messageType, content, id, to, clientType, tags, correlationId, expiresAt, businesses);
    }

    /**
     * To the clients of exactly these businesses, of those that accept it. What one does not take is reported by the
     * event {@code rejected} to a service, and by a {@link RejectedException} to a client.
     */
    public Outgoing toBusinesses(String... these) {
        return new Outgoing(messageType, content, id, to, toClientType, tags, correlationId, expiresAt,
                List.of(these));
    }

    /** As the answer to the message with this id. */
    public Outgoing answering(String messageId) {
        return new Outgoing(messageType, content, id, to, toClientType, tags, messageId, expiresAt, businesses);
    }

    /** Not delivered from then on. */
    public Outgoing expiresAt(Instant end) {
        return new Outgoing(messageType, content, id, to, toClientType, tags, correlationId, end, businesses);
    }

    /** For logs: without the content. */
    @Override
    public String toString() {
        return messageType + " " + id;
    }
}
