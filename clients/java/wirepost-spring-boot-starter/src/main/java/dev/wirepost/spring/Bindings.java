package dev.wirepost.spring;

import java.nio.file.Path;

/** Where the business is found: in the properties, or in a directory that is read again when asked to. */
final class Bindings {
    private final WirepostProperties settings;
    private final String root;
    private volatile Binding last;

    Bindings(WirepostProperties settings, String root) {
        this.settings = settings;
        this.root = settings.bindingRoot() != null ? settings.bindingRoot() : root;
    }

    /** What was read last. */
    Binding get() {
        Binding found = last;
        return found == null ? read() : found;
    }

    /** Reads it now: after a rotation the Secret has another user. */
    Binding read() {
        last = settings.business() != null ? configured() : Binding.read(directory(), settings.binding());
        return last;
    }

    /** Whether reading again may help. */
    boolean changes() {
        return settings.business() == null;
    }

    private Binding configured() {
        if (settings.amqp() == null) {
            throw new BindingException("wirepost.business is set, and wirepost.amqp is not");
        }
        return Binding.of(
                settings.business(), settings.amqp(), settings.queues(), settings.edge(), settings.apiKey());
    }

    private Path directory() {
        if (root == null || root.isEmpty()) {
            throw new BindingException("SERVICE_BINDING_ROOT is not set. Mount the business's Secret below it, or set"
                    + " wirepost.business and wirepost.amqp");
        }
        return Path.of(root);
    }
}
