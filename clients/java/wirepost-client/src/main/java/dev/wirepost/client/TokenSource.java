package dev.wirepost.client;

/**
 * Lets a client in: gives a fresh connection URL for each session and to extend one. {@link HttpToken} asks your
 * backend for it.
 */
@FunctionalInterface
public interface TokenSource {
    /**
     * Called on a thread of the library, which is interrupted after {@link Timing#connectWithin()}.
     *
     * @return {@code data} of the token call, {@code wss://…/socket/…}. It is a secret
     * @throws TokenRefusedException with the answer's status. Any other exception counts as a failed connection
     * @throws Exception whatever went wrong
     */
    String connectionUrl() throws Exception;
}
