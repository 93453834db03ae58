package dev.wirepost.spring;

import java.lang.annotation.Documented;
import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;

/**
 * Handles clients' messages. For a method of a bean with one parameter, a {@code Message} with the content's type:
 *
 * <pre>{@code
 * @WirepostListener(value = "qr.refresh", queue = "qr-refresh")
 * void refresh(Message<QrRefresh> message) { … }
 * }</pre>
 *
 * <p>The message is acknowledged after the method has returned. If it throws, the message comes again, 0.2 to 30 s
 * later, until the queue's {@code deliveryLimit} moves it to the dead letters; {@link DeadLetterException} does so
 * immediately, as does content that does not fit the type.
 */
@Target(ElementType.METHOD)
@Retention(RetentionPolicy.RUNTIME)
@Documented
public @interface WirepostListener {
    /** Message types: exact, or with {@code *} (one word) and {@code #} (any number of words). */
    String[] value();

    /**
     * The declared name of the queue that has these messages. Without it all queues of the binding are consumed: name it
     * where another service has the others. A message without a listener moves to the dead letters.
     */
    String queue() default "";
}
