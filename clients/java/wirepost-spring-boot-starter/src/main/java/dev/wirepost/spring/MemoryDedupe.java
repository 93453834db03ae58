package dev.wirepost.spring;

import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.Set;

/** The last messages that this process handled. It knows nothing of other replicas, and forgets with the process. */
public final class MemoryDedupe implements Dedupe {
    private static final int STANDARD_SIZE = 10_000;

    private record Key(String sender, String messageId) {}

    private final int size;
    private final Set<Key> handled = Collections.synchronizedSet(new LinkedHashSet<>());

    /** Remembers 10,000. */
    public MemoryDedupe() {
        this(STANDARD_SIZE);
    }

    /** Remembers so many. */
    public MemoryDedupe(int size) {
        this.size = size;
    }

    @Override
    public boolean once(String sender, String messageId, Runnable work) {
        Key key = new Key(sender, messageId);
        if (handled.contains(key)) {
            return false;
        }
        work.run();
        synchronized (handled) {
            handled.add(key);
            if (handled.size() > size) {
                handled.remove(handled.iterator().next());
            }
        }
        return true;
    }
}
