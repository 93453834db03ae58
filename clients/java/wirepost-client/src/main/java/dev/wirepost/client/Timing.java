package dev.wirepost.client;

import java.time.Duration;

/**
 * The protocol's waits. Change them in tests only: they protect the edges from floods.
 *
 * @param pingAfter silence until a ping
 * @param pongWithin what a ping is given before the connection counts as dead
 * @param hintPongWithin the same after {@link WirepostClient#check()}
 * @param connectWithin for a token call; for connecting until the socket is open; and again until {@code welcome}
 * @param stableAfter a connection that lasts so long resets the waits
 * @param fastFirst wait before the first attempt to return, at most; doubled each time
 * @param fastMax up to this
 * @param slowFirst the same where only a corrected declaration or a new credential helps
 * @param slowMax up to this
 * @param nackFirst wait before a repeat after a retryable {@code nack} that names none
 * @param nackMax up to this
 */
public record Timing(
        Duration pingAfter,
        Duration pongWithin,
        Duration hintPongWithin,
        Duration connectWithin,
        Duration stableAfter,
        Duration fastFirst,
        Duration fastMax,
        Duration slowFirst,
        Duration slowMax,
        Duration nackFirst,
        Duration nackMax) {

    /** Those of the protocol. */
    public static Timing standard() {
        return new Timing(Duration.ofSeconds(20), Duration.ofSeconds(15), Duration.ofSeconds(5), Duration.ofSeconds(10),
                Duration.ofSeconds(5), Duration.ofMillis(500), Duration.ofSeconds(30), Duration.ofSeconds(30),
                Duration.ofMinutes(15), Duration.ofSeconds(1), Duration.ofSeconds(30));
    }
}
