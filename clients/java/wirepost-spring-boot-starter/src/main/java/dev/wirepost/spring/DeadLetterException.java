package dev.wirepost.spring;

/** Throw it in a listener for a message that can never work: it moves to the dead letters immediately. */
public class DeadLetterException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** With the reason, for the log. */
    public DeadLetterException(String reason) {
        super(reason);
    }

    /** With the reason and its cause, for the log. */
    public DeadLetterException(String reason, Throwable cause) {
        super(reason, cause);
    }
}
