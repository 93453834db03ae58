package dev.wirepost.spring;

import dev.wirepost.client.WirepostException;

/** The business is not configured: the Service Binding directory is missing, ambiguous or incomplete. */
public final class BindingException extends WirepostException {
    private static final long serialVersionUID = 1;

    BindingException(String message) {
        super(message, null);
    }
}
