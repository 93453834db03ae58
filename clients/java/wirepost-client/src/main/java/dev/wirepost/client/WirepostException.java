package dev.wirepost.client;

/** What all exceptions of this library have in common. */
public abstract class WirepostException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** Made by this library and its Spring Boot starter. */
    protected WirepostException(String message, Throwable cause) {
        super(message, cause);
    }
}
