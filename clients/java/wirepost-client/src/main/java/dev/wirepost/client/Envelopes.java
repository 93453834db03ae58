package dev.wirepost.client;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import tools.jackson.core.JacksonException;
import tools.jackson.core.json.JsonWriteFeature;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.cfg.JsonNodeFeature;
import tools.jackson.databind.json.JsonMapper;

/** Reads and writes envelopes, see the protocol. Immutable. */
public final class Envelopes {
    /** Numbers keep all their digits. */
    static final Envelopes STANDARD = new Envelopes(JsonMapper.builder()
            .enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS)
            .disable(JsonNodeFeature.STRIP_TRAILING_BIGDECIMAL_ZEROES)
            .build());

    private final JsonMapper mapper;

    /** With a mapper of your own: its modules read and write the content. */
    public Envelopes(JsonMapper mapper) {
        this.mapper = mapper;
    }

    /** The mapper that this library uses unless it is given one. */
    public static Envelopes standard() {
        return STANDARD;
    }

    /** What reads and writes the content. */
    public JsonMapper mapper() {
        return mapper;
    }

    /**
     * Reads an envelope, in a frame or in the body of an AMQP message; a byte order mark is skipped.
     *
     * @throws IllegalArgumentException if it is no JSON object in UTF-8, or lacks {@code id} or {@code messageType}
     */
    public Message<JsonNode> read(byte[] body) {
        int skipped = body.length >= 3 && body[0] == (byte) 0xEF && body[1] == (byte) 0xBB && body[2] == (byte) 0xBF
                ? 3
                : 0;
        String text = new String(body, skipped, body.length - skipped, StandardCharsets.UTF_8);
        try {
            return read(mapper.readTree(text), text);
        } catch (JacksonException error) {
            throw new IllegalArgumentException("it is no JSON: " + error.getOriginalMessage(), error);
        }
    }

    /** The same of what is parsed already. */
    Message<JsonNode> read(JsonNode root, String text) {
        if (!root.isObject()) {
            throw new IllegalArgumentException("it is no JSON object");
        }
        String id = text(root, "id");
        String messageType = text(root, "messageType");
        if (id == null) {
            throw new IllegalArgumentException("it has no id");
        }
        if (messageType == null) {
            throw new IllegalArgumentException("it has no messageType");
        }
        List<String> tags = new ArrayList<>();
        for (JsonNode tag : root.path("tags")) {
            if (tag.isString()) {
                tags.add(tag.stringValue());
            }
        }
        JsonNode content = root.get("content");
        return new Message<>(id, messageType, content == null ? mapper.nullNode() : content, text(root, "sendType"),
                text(root, "businessType"), text(root, "fromUniqueId"), text(root, "fromClientType"),
                text(root, "toUniqueId"), text(root, "toClientType"), tags, integer(root, "timestamp"),
                integer(root, "expiresAt"), text(root, "correlationId"), text(root, "cursor"), text);
    }

    /**
     * Writes an envelope.
     *
     * @throws IllegalArgumentException if the content can't be written as JSON
     */
    public String write(Outgoing message) {
        Map<String, Object> envelope = new LinkedHashMap<>();
        envelope.put("id", message.id());
        envelope.put("messageType", message.messageType());
        optional(envelope, "toUniqueId", message.to());
        optional(envelope, "toClientType", message.toClientType());
        if (!message.tags().isEmpty()) {
            envelope.put("tags", message.tags());
        }
        if (!message.businesses().isEmpty()) {
            envelope.put("businesses", message.businesses());
        }
        optional(envelope, "correlationId", message.correlationId());
        if (message.expiresAt() != null) {
            envelope.put("expiresAt", message.expiresAt().toEpochMilli());
        }
        envelope.put("content", message.content());
        try {
            return dump(envelope);
        } catch (JacksonException error) {
            throw new IllegalArgumentException("the content can't be written as JSON: " + error.getOriginalMessage(),
                    error);
        }
    }

    /** JSON that UTF-8 can encode: half of a surrogate pair is written as an escape. */
    String dump(Object value) {
        String text = mapper.writeValueAsString(value);
        return StandardCharsets.UTF_8.newEncoder().canEncode(text)
                ? text
                : mapper.writer().with(JsonWriteFeature.ESCAPE_NON_ASCII).writeValueAsString(value);
    }

    private static void optional(Map<String, Object> envelope, String name, String value) {
        if (value != null && !value.isEmpty()) {
            envelope.put(name, value);
        }
    }

    /** A text field; null if it is absent, empty or something else. */
    static String text(JsonNode root, String name) {
        JsonNode value = root.get(name);
        return value != null && value.isString() && !value.stringValue().isEmpty() ? value.stringValue() : null;
    }

    /** An integer field; null if it is absent or something else. */
    static Long integer(JsonNode root, String name) {
        JsonNode value = root.get(name);
        return value != null && value.isIntegralNumber() && value.canConvertToLong() ? value.longValue() : null;
    }

    /** A number above zero, or what counts instead. */
    static double positive(JsonNode root, String name, double otherwise) {
        JsonNode value = root.get(name);
        return value != null && value.isNumber() && value.doubleValue() > 0 ? value.doubleValue() : otherwise;
    }
}
