package dev.wirepost.spring;

/**
 * What became of one of many pushes.
 *
 * @param messageId its id
 * @param failure why it was not confirmed; null if it was
 */
public record PushResult(String messageId, PushException failure) {
    /** Whether the broker has it. */
    public boolean confirmed() {
        return failure == null;
    }
}
