package dev.wirepost.spring;

import java.util.List;

/**
 * Who a client is, as your own login says.
 *
 * @param uniqueId the identity
 * @param clientType the kind of client, as declared
 * @param tags groups that it belongs to
 */
public record Identity(String uniqueId, String clientType, List<String> tags) {
    /** Copies the tags. */
    public Identity {
        tags = List.copyOf(tags);
    }

    /** Without tags. */
    public Identity(String uniqueId, String clientType) {
        this(uniqueId, clientType, List.of());
    }
}
