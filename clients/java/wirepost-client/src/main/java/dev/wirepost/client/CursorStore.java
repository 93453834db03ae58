package dev.wirepost.client;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;

/**
 * Where a client keeps its position, so that a restarted program continues where it was. One for each identity and
 * business. The calls of a client come one at a time.
 */
public interface CursorStore {
    /**
     * Reads what was saved last.
     *
     * @return null if there is none
     * @throws Exception the client then begins with what comes from then on
     */
    String load() throws Exception;

    /**
     * Replaces it. Called after the handlers of everything before it have succeeded.
     *
     * @throws Exception the next cursor may be saved; until then a restart repeats messages
     */
    void save(String cursor) throws Exception;

    /** Forgets with the program. */
    static CursorStore memory() {
        return memory(null);
    }

    /** Forgets with the program, and begins with this position. */
    static CursorStore memory(String cursor) {
        return new CursorStore() {
            private volatile String now = cursor;

            @Override
            public String load() {
                return now;
            }

            @Override
            public void save(String next) {
                now = next;
            }
        };
    }

    /** A small file, replaced atomically. It survives the end of the program, and a crash of it at any moment. */
    static CursorStore file(Path path) {
        return new CursorStore() {
            @Override
            public String load() throws IOException {
                try {
                    String cursor = Files.readString(path, StandardCharsets.US_ASCII).trim();
                    return cursor.isEmpty() ? null : cursor;
                } catch (NoSuchFileException absent) {
                    return null;
                }
            }

            @Override
            public void save(String cursor) throws IOException {
                Path next = path.resolveSibling("." + path.getFileName() + ".next");
                Files.writeString(next, cursor, StandardCharsets.US_ASCII);
                Files.move(next, path, StandardCopyOption.REPLACE_EXISTING, StandardCopyOption.ATOMIC_MOVE);
            }
        };
    }
}
