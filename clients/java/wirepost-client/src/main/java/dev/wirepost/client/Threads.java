package dev.wirepost.client;

import java.net.http.HttpClient;
import java.util.ArrayDeque;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executor;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** What all clients of a process share: threads for calls of the user's code, and sockets. All of it is daemon. */
final class Threads {
    /** Calls of token sources and stores, and of what waits for a result. As many threads as there are such calls. */
    static final ExecutorService POOL =
            new ThreadPoolExecutor(0, Integer.MAX_VALUE, 10, TimeUnit.SECONDS, new SynchronousQueue<>(),
                    named("wirepost-call-"));

    private Threads() {}

    static ThreadFactory named(String prefix) {
        AtomicInteger number = new AtomicInteger();
        return work -> {
            Thread thread = new Thread(work, prefix + number.incrementAndGet());
            thread.setDaemon(true);
            return thread;
        };
    }

    /** The sockets of clients that were given no HTTP client. Java 17 can't close one, so there is one for all. */
    static HttpClient http() {
        return Shared.HTTP;
    }

    private static final class Shared {
        static final HttpClient HTTP = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    }

    /** Runs one task after the other, in order, on threads of the pool. */
    static final class InOrder implements Executor {
        private final ArrayDeque<Runnable> waiting = new ArrayDeque<>();
        private boolean running;

        @Override
        public void execute(Runnable task) {
            synchronized (waiting) {
                waiting.add(task);
                if (running) {
                    return;
                }
                running = true;
            }
            POOL.execute(this::work);
        }

        private void work() {
            while (true) {
                Runnable task;
                synchronized (waiting) {
                    task = waiting.poll();
                    if (task == null) {
                        running = false;
                        return;
                    }
                }
                task.run();
            }
        }
    }
}
