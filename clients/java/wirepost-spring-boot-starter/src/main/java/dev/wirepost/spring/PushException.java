package dev.wirepost.spring;

import dev.wirepost.client.WirepostException;

/** A push was not confirmed by the broker. Its subclass says why. */
public abstract class PushException extends WirepostException {
    private static final long serialVersionUID = 1;

    private final String messageId;

    PushException(String messageId, String reason, Throwable cause) {
        super("push " + messageId + ": " + reason, cause);
        this.messageId = messageId;
    }

    /** Repeat the push with this id: clients drop the second copy. */
    public String messageId() {
        return messageId;
    }

    /** Whether a repeat can help. */
    public boolean retryable() {
        return true;
    }

    /** Whether clients may get it all the same. */
    public boolean mayHaveArrived() {
        return false;
    }

    /** It addresses nobody, or can't be written as JSON. It was not sent. */
    public static final class Invalid extends PushException {
        private static final long serialVersionUID = 1;

        Invalid(String messageId, String reason, Throwable cause) {
            super(messageId, reason, cause);
        }

        @Override
        public boolean retryable() {
            return false;
        }
    }

    /** The broker returned it: with delivery {@code Transient} no edge has clients of the business. */
    public static final class Unroutable extends PushException {
        private static final long serialVersionUID = 1;

        Unroutable(String messageId) {
            super(messageId, "the broker returned it: nothing reads this business's pushes", null);
        }
    }

    /** The broker refused it: no right, no such business, a full queue. */
    public static final class Refused extends PushException {
        private static final long serialVersionUID = 1;

        Refused(String messageId, String reason, Throwable cause) {
            super(messageId, reason, cause);
        }
    }

    /** There was no connection to the broker in time. It was not sent. */
    public static final class Unavailable extends PushException {
        private static final long serialVersionUID = 1;

        Unavailable(String messageId, String reason) {
            super(messageId, reason, null);
        }
    }

    /** It was sent, and no confirm came in time: it may have arrived. */
    public static final class Unconfirmed extends PushException {
        private static final long serialVersionUID = 1;

        Unconfirmed(String messageId, String reason) {
            super(messageId, reason, null);
        }

        @Override
        public boolean mayHaveArrived() {
            return true;
        }
    }
}
