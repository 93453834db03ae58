/**
 * A client of a wirepost edge: {@link dev.wirepost.client.WirepostClient}.
 *
 * <p>Everything public here may be used by several threads at the same time, unless it says otherwise. {@code null} is
 * what is absent.
 */
package dev.wirepost.client;
