package dev.wirepost.client;

/** What a client does at the moment. */
public enum State {
    /** It gets a token, or connects. */
    CONNECTING,
    /** It has a connection. */
    OPEN,
    /** There is no connection, and it returns on its own. */
    WAITING,
    /**
     * Replaced by a newer connection of the same identity (4009): it returns only by
     * {@link WirepostClient#reconnect()}.
     */
    STOPPED,
    /** After {@link WirepostClient#close()}. */
    CLOSED
}
