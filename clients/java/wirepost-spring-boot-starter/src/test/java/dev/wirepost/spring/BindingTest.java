package dev.wirepost.spring;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class BindingTest {
    @TempDir
    private Path root;

    private Path secret(String folder, String business) throws IOException {
        Path made = Files.createDirectories(root.resolve(folder));
        Map<String, String> keys = Map.of("provider", "wirepost\n", "push-exchange", "wirepost." + business + ".push\n",
                "uri", "amqp://user:secret@rabbit/x\n", "queue.orders", "wirepost." + business + ".q.orders\n",
                "endpoint", "https://ws.example/" + business + "/websocket", "api-key", "secret");
        for (Map.Entry<String, String> key : keys.entrySet()) {
            Files.writeString(made.resolve(key.getKey()), key.getValue());
        }
        return made;
    }

    private String refused(String name) {
        return assertThrows(BindingException.class, () -> Binding.read(root, name)).getMessage();
    }

    @Test
    void theOneBindingOfWirepostIsTaken() throws IOException {
        secret("a", "payments");
        Files.writeString(Files.createDirectories(root.resolve("database")).resolve("provider"), "postgresql");
        Binding binding = Binding.read(root, null);
        assertEquals("payments", binding.business());
        assertEquals("amqp://user:secret@rabbit/x", binding.amqp());
        assertEquals("wirepost.payments.q.orders", binding.queue("orders"));
        assertEquals("wirepost.payments.q.later", binding.queue("later"));
        assertEquals("wirepost.payments.push", binding.pushExchange());
        assertFalse(binding.toString().contains("secret"));
    }

    @Test
    void ofSeveralTheNamedOneIsTakenByFolderOrBusiness() throws IOException {
        secret("a", "payments");
        secret("b", "orders");
        assertTrue(refused(null).contains("several"));
        assertEquals("payments", Binding.read(root, "a").business());
        assertEquals("orders", Binding.read(root, "orders").business());
        assertTrue(refused("c").contains("a, b"));
    }

    @Test
    void theSecretItselfMayBeTheFolder() throws IOException {
        Path folder = secret("a", "payments");
        assertEquals("payments", Binding.read(folder, null).business());
    }

    @Test
    void whatIsMissingIsNamed() throws IOException {
        assertTrue(refused(null).contains("provider"));
        Path folder = secret("a", "payments");
        Files.delete(folder.resolve("endpoint"));
        assertNull(Binding.read(root, null).endpoint());
        Files.delete(folder.resolve("uri"));
        assertTrue(refused(null).contains("uri"));
    }

    @Test
    void settingsAreEnoughWithoutADirectory() {
        Binding binding = Binding.of("payments", "amqp://x", java.util.List.of("orders"), "https://ws.example/", "key");
        assertEquals("https://ws.example/payments/websocket", binding.endpoint());
        assertEquals("wirepost.payments.q.orders", binding.queue("orders"));
    }
}
