package dev.wirepost.client;

/**
 * Messages may be missing before the next one: fetch your state again.
 *
 * @param reason {@code retention} or {@code incarnation}, see the protocol; {@code resume}: the edge could not continue
 *     from the cursor; {@code restart}: nothing tells what was pushed while there was no connection (delivery
 *     {@code Transient})
 */
public record Gap(String reason) {}
