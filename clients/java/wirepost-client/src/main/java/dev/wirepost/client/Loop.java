package dev.wirepost.client;

import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;

/**
 * The one thread that a client's state belongs to: everything about its connection happens there, so that nothing is
 * locked. Nothing on it blocks. Its clock is monotonic.
 */
final class Loop {
    private static final System.Logger LOG = System.getLogger("wirepost");

    private final ScheduledThreadPoolExecutor thread = new ScheduledThreadPoolExecutor(1, Threads.named("wirepost-"));

    Loop() {
        thread.setRemoveOnCancelPolicy(true);
        thread.setExecuteExistingDelayedTasksAfterShutdownPolicy(false);
    }

    /** Runs it soon; false after {@link #end()}. */
    boolean execute(Runnable task) {
        try {
            thread.execute(() -> guarded(task));
            return true;
        } catch (RejectedExecutionException ended) {
            return false;
        }
    }

    /** Runs it after a wait, unless it is cancelled; null after {@link #end()}. */
    Future<?> after(Duration wait, Runnable task) {
        try {
            return thread.schedule(() -> guarded(task), Math.max(0, wait.toNanos()), TimeUnit.NANOSECONDS);
        } catch (RejectedExecutionException ended) {
            return null;
        }
    }

    /** Nanoseconds of the monotonic clock. */
    long now() {
        return System.nanoTime();
    }

    /** What runs is the last. */
    void end() {
        thread.shutdown();
    }

    private static void guarded(Runnable task) {
        try {
            task.run();
        } catch (RuntimeException | Error bug) {
            LOG.log(Level.ERROR, "wirepost: a bug, please report it", bug);
        }
    }

    static void cancel(Future<?> timer) {
        if (timer != null) {
            timer.cancel(false);
        }
    }
}
