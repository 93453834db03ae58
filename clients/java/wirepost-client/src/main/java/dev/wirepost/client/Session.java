package dev.wirepost.client;

import java.lang.System.Logger.Level;
import java.net.URI;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import java.util.concurrent.TimeoutException;
import java.util.function.BiConsumer;
import java.util.function.Consumer;
import tools.jackson.databind.JsonNode;

/**
 * What lets a client in: a ticket of a token call, or the resume token of an earlier connection. A ticket is asked for
 * only when there is no resume token. Belongs to the loop.
 */
final class Session {
    private static final System.Logger LOG = System.getLogger("wirepost");

    private final TokenSource source;
    private final Timing timing;
    private final Loop loop;
    private String base;
    private String resume;

    Session(TokenSource source, Timing timing, Loop loop) {
        this.source = source;
        this.timing = timing;
        this.loop = loop;
    }

    /**
     * Where to connect now, and with which token. One of the two is called, on the loop, unless {@code call} is ended
     * before.
     */
    void target(Call call, BiConsumer<String, String> found, Consumer<NotOpened> failed) {
        if (resume != null && base != null) {
            found.accept(base, resume);
            return;
        }
        ask(call, url -> {
            String[] parts = split(url);
            if (parts == null) {
                failed.accept(NotOpened.noUrl());
                return;
            }
            base = parts[0];
            found.accept(base, parts[1]);
        }, failed);
    }

    /** Extends the session in time, if a ticket can be had; else it ends with 3000, and a new one begins. */
    void extend(Link link, JsonNode expiring) {
        double left = Envelopes.positive(expiring, "inSeconds", 60);
        extend(link, new Waits(timing), loop.now() + (long) (left * 1e9));
    }

    private void extend(Link link, Waits between, long deadline) {
        if (link.retired) {
            return;
        }
        ticket(new Call(), ticket -> {
            link.control(Envelopes.STANDARD.dump(Map.of("op", "refresh", "token", ticket)));
        }, why -> {
            LOG.log(Level.INFO, "wirepost: the session is not extended: {0}", why.reason());
            Duration wait = between.next(why.slowly(), why.retryAfter());
            if (loop.now() + wait.toNanos() - deadline < 0) {
                loop.after(wait, () -> extend(link, between, deadline));
            }
        });
    }

    private void ticket(Call call, Consumer<String> found, Consumer<NotOpened> failed) {
        ask(call, url -> {
            String[] parts = split(url);
            if (parts == null) {
                failed.accept(NotOpened.noUrl());
                return;
            }
            base = parts[0];
            found.accept(parts[1]);
        }, failed);
    }

    /** The edge gave a resume token ({@code welcome}, {@code refreshed}, {@code position}). */
    void take(JsonNode frame) {
        String token = Envelopes.text(frame, "resumeToken");
        if (token != null) {
            resume = token;
        }
    }

    /** The session is over: the next connection needs a new ticket. */
    void forget() {
        resume = null;
    }

    private void ask(Call call, Consumer<String> found, Consumer<NotOpened> failed) {
        CompletableFuture<String> answer = new CompletableFuture<>();
        Future<?> task = Threads.POOL.submit(() -> {
            try {
                answer.complete(source.connectionUrl());
            } catch (Exception | Error error) {
                answer.completeExceptionally(error);
            }
        });
        Future<?> timer = loop.after(timing.connectWithin(), () -> answer.completeExceptionally(new TimeoutException()));
        call.ends(() -> {
            Loop.cancel(timer);
            task.cancel(true);
        });
        answer.whenComplete((url, error) -> loop.execute(() -> {
            if (call.over()) {
                return;
            }
            call.end();
            if (error == null) {
                found.accept(url);
            } else {
                failed.accept(reason(error));
            }
        }));
    }

    private NotOpened reason(Throwable error) {
        if (error instanceof TimeoutException) {
            return NotOpened.broken("the token call was not answered within " + timing.connectWithin());
        }
        if (error instanceof TokenRefusedException refused) {
            return NotOpened.refused("the token call", refused.status(), refused.retryAfter());
        }
        LOG.log(Level.WARNING, "wirepost: the token call failed: {0}", error.toString());
        return NotOpened.broken("the token call failed: " + error);
    }

    /** The part of a connection URL before its ticket, and the ticket; null if it is none. */
    static String[] split(String url) {
        try {
            URI parts = URI.create(url == null ? "" : url);
            String path = parts.getRawPath();
            int slash = path == null ? -1 : path.lastIndexOf('/');
            boolean socket = "ws".equals(parts.getScheme()) || "wss".equals(parts.getScheme());
            if (!socket || parts.getRawAuthority() == null || slash < 0 || slash == path.length() - 1) {
                return null;
            }
            String base = parts.getScheme() + "://" + parts.getRawAuthority() + path.substring(0, slash + 1);
            return new String[] {base, path.substring(slash + 1)};
        } catch (IllegalArgumentException malformed) {
            return null;
        }
    }

    /** A token call that can be ended from outside. Belongs to the loop. */
    static final class Call {
        private Runnable end;
        private boolean over;

        void ends(Runnable how) {
            end = how;
        }

        boolean over() {
            return over;
        }

        void end() {
            over = true;
            if (end != null) {
                end.run();
            }
        }
    }
}
