package dev.wirepost.client;

/**
 * Handles messages.
 *
 * @param <T> what they are: a {@code Message}, or a {@link Gap}
 */
@FunctionalInterface
public interface Handler<T> {
    /**
     * Called on the client's thread for handlers, one at a time. It may block.
     *
     * @throws Exception to be called again with the same message
     */
    void handle(T message) throws Exception;
}
