package dev.wirepost.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import tools.jackson.databind.JsonNode;

class PartsTest {
    private static final Envelopes ENVELOPES = Envelopes.standard();

    private static Message<JsonNode> read(String text) {
        return ENVELOPES.read(text.getBytes(StandardCharsets.UTF_8));
    }

    @ParameterizedTest
    @CsvSource({
        "a.b, a.b, true", "a.b, a.c, false", "a.*, a.b, true", "a.*, a.b.c, false", "a.*, a, false", "#, a.b.c, true",
        "a.#, a, true", "a.#, a.b.c, true", "a.#.z, a.z, true", "a.#.z, a.b.c.z, true", "a.#.z, a.b, false",
        "#.b.#, a.b.c, true", "*.#, a, true", "#.*, a.b, true", "a, a.b, false"
    })
    void patternsAreThoseOfAmqp(String pattern, String messageType, boolean matches) {
        assertEquals(matches, Patterns.matches(pattern, messageType));
    }

    @Test
    void contentKeepsItsNumbersAndUnknownFieldsStayInTheEnvelope() {
        String text = "\uFEFF{\"id\":\"1\",\"messageType\":\"a\",\"content\":{\"amount\":12.50},\"later\":7,\"tags\":[\"x\",3]}";
        Message<JsonNode> message = read(text);
        assertEquals("{\"amount\":12.50}", message.content().toString());
        assertEquals(List.of("x"), message.tags());
        assertTrue(message.envelope().contains("\"later\":7"));
        assertNull(message.fromUniqueId());
    }

    @Test
    void whatIsNoEnvelopeIsRefused() {
        for (String text : List.of("", "[]", "{}", "{\"id\":\"1\"}", "{\"messageType\":\"a\"}", "{", "[".repeat(100_000))) {
            assertThrows(IllegalArgumentException.class, () -> read(text), text.length() < 50 ? text : "deep");
        }
    }

    @Test
    void anEnvelopeHasWhatWasGiven() {
        Outgoing message = Outgoing.of("a.b", Map.of("n", 1)).withId("m").to("alice").toTags("x", "").toClientType("app")
                .answering("q").expiresAt(Instant.ofEpochMilli(7));
        assertEquals("{\"id\":\"m\",\"messageType\":\"a.b\",\"toUniqueId\":\"alice\",\"toClientType\":\"app\",\"tags\":[\"x\"],"
                + "\"correlationId\":\"q\",\"expiresAt\":7,\"content\":{\"n\":1}}", ENVELOPES.write(message));
        assertEquals("a.b m", message.toString());
    }

    @Test
    void halfOfASurrogatePairIsWrittenAsAnEscape() {
        String text = ENVELOPES.write(Outgoing.of("a", "\uD83D").withId("m"));
        assertTrue(text.toLowerCase(java.util.Locale.ROOT).contains("\\ud83d"), text);
    }

    @Test
    void contentThatIsNoJsonIsRefused() {
        assertThrows(IllegalArgumentException.class, () -> ENVELOPES.write(Outgoing.of("a", new Object() {
            @SuppressWarnings("unused")
            public Object getSelf() {
                return this;
            }
        })));
    }

    @Test
    void aConnectionUrlIsSplitAtItsTicket() {
        assertArrayEquals(new String[] {"wss://ws.example:1/x/socket/", "abc"}, Session.split("wss://ws.example:1/x/socket/abc"));
        for (String url : new String[] {null, "", "http://ws.example/socket/abc", "wss://ws.example/socket/", "wss:abc", "::"}) {
            assertNull(Session.split(url));
        }
    }

    @Test
    void aCursorFileSurvivesAndIsReplaced(@TempDir Path folder) throws Exception {
        CursorStore store = CursorStore.file(folder.resolve("cursor"));
        assertNull(store.load());
        store.save("c1");
        store.save("c2");
        assertEquals("c2", CursorStore.file(folder.resolve("cursor")).load());
        try (Stream<Path> files = Files.list(folder)) {
            assertEquals(1, files.count());
        }
    }

    /** A jump of the clock changes nothing, since nothing looks at it. The suite's driver relies on this. */
    @Test
    void theLibraryReadsNoWallClock() throws IOException {
        Pattern clock = Pattern.compile("currentTimeMillis|Instant\\.now|Clock\\.|new Date\\(|LocalDateTime|ZonedDateTime");
        try (Stream<Path> files = Files.walk(Path.of("src/main"))) {
            for (Path file : files.filter(path -> path.toString().endsWith(".java")).toList()) {
                assertFalse(clock.matcher(Files.readString(file)).find(), file.toString());
            }
        }
    }
}
