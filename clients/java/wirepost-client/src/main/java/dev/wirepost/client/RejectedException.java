package dev.wirepost.client;

/** A message that a client sent was not taken, or its fate is unknown. */
public final class RejectedException extends WirepostException {
    private static final long serialVersionUID = 1;

    private final String code;
    private final String reason;
    private final boolean retryable;
    private final boolean mayHaveArrived;

    RejectedException(String code, String reason, boolean retryable, boolean mayHaveArrived) {
        super(reason.isEmpty() ? code : code + ": " + reason, null);
        this.code = code;
        this.reason = reason;
        this.retryable = retryable;
        this.mayHaveArrived = mayHaveArrived;
    }

    /**
     * The code of the edge's {@code nack}, or one of this library's own: {@code closed}, {@code aborted},
     * {@code queue_full}, {@code no_answer}, {@code too_large}.
     */
    public String code() {
        return code;
    }

    /** For people. */
    public String reason() {
        return reason;
    }

    /** Whether sending it again, with the same id, can help. */
    public boolean retryable() {
        return retryable;
    }

    /** Whether the receiver may have it all the same. */
    public boolean mayHaveArrived() {
        return mayHaveArrived;
    }
}
