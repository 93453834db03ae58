package dev.wirepost.client;

import java.util.List;

/**
 * A message that arrived. What is absent is null; tags are then empty. Times are milliseconds since the Unix epoch.
 *
 * @param <T> the content: a {@code JsonNode}, or the type that a handler asked for
 * @param id names the message: a repeat has the same
 * @param messageType what happened, such as {@code payment.completed}
 * @param content the business's data; a {@code JsonNode} is shared by all handlers, so do not change it
 * @param sendType {@code ClientToServer}, {@code ServerToClient} or {@code ClientToClient}
 * @param businessType whose message it is: another business's where that sends to the clients of several
 * @param fromUniqueId who sent it; on clients' messages from their token, and not to be forged
 * @param fromClientType the sender's client type
 * @param toUniqueId the identity that it addresses
 * @param toClientType the client type that it addresses
 * @param tags the tags that it addresses
 * @param timestamp when it was created, by its sender's clock
 * @param expiresAt when it is no longer delivered
 * @param correlationId the id of the message that this one answers
 * @param cursor the position of a delivered push
 * @param envelope the whole JSON text as it arrived, with the fields that this version does not know
 */
public record Message<T>(
        String id,
        String messageType,
        T content,
        String sendType,
        String businessType,
        String fromUniqueId,
        String fromClientType,
        String toUniqueId,
        String toClientType,
        List<String> tags,
        Long timestamp,
        Long expiresAt,
        String correlationId,
        String cursor,
        String envelope) {

    /** Copies the tags. */
    public Message {
        tags = List.copyOf(tags);
    }

    /** The same message with other content. */
    public <U> Message<U> withContent(U other) {
        return new Message<>(id, messageType, other, sendType, businessType, fromUniqueId, fromClientType, toUniqueId,
                toClientType, tags, timestamp, expiresAt, correlationId, cursor, envelope);
    }

    /** For logs: without the content. */
    @Override
    public String toString() {
        return messageType + " " + id;
    }
}
