package dev.wirepost.client;

import java.time.Duration;

/** A token call was answered with an error. */
public final class TokenRefusedException extends WirepostException {
    private static final long serialVersionUID = 1;

    private final int status;
    private final String description;
    private final Integer result;
    private final Duration retryAfter;

    /**
     * For a {@link TokenSource} of your own.
     *
     * @param status the HTTP status: 4xx but 408 and 429 make the client wait longer
     * @param description for people
     * @param result the number of the edge's answer, or null
     * @param retryAfter what the answer's {@code Retry-After} says, or null
     */
    public TokenRefusedException(int status, String description, Integer result, Duration retryAfter) {
        super("the token call was answered with HTTP " + status
                + (description == null || description.isEmpty() ? "" : ": " + description), null);
        this.status = status;
        this.description = description == null ? "" : description;
        this.result = result;
        this.retryAfter = retryAfter;
    }

    /** The HTTP status. */
    public int status() {
        return status;
    }

    /** For people. */
    public String description() {
        return description;
    }

    /** The number of the edge's answer, see the table in the protocol; null where the answer had none. */
    public Integer result() {
        return result;
    }

    /** How long to wait, as the answer says; or null. */
    public Duration retryAfter() {
        return retryAfter;
    }
}
