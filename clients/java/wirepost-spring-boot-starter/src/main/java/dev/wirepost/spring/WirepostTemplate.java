package dev.wirepost.spring;

import dev.wirepost.client.Envelopes;
import dev.wirepost.client.Message;
import dev.wirepost.client.Outgoing;
import io.micrometer.observation.Observation;
import io.micrometer.observation.ObservationRegistry;
import io.micrometer.observation.transport.SenderContext;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/**
 * Pushes to a business's clients.
 *
 * <pre>{@code
 * wirepost.push(Outgoing.of("payment.completed", new Paid(order)).to("alice"));
 * }</pre>
 *
 * <p>A push is persistent, mandatory, and safe when the broker has confirmed it. While the connection fails it is
 * repeated, with the same id, for {@code wirepost.push-timeout}; clients drop the second copy.
 *
 * <p>One {@link Outgoing#toBusinesses(String...) to the clients of several businesses} reaches those that accept it; the
 * event {@code rejected} names the others.
 */
public final class WirepostTemplate {
    private final Bindings bindings;
    private final Publisher publisher;
    private final Envelopes envelopes;
    private final ObservationRegistry observations;
    private final Duration timeout;

    WirepostTemplate(Bindings bindings, Publisher publisher, Envelopes envelopes, ObservationRegistry observations,
            Duration timeout) {
        this.bindings = bindings;
        this.publisher = publisher;
        this.envelopes = envelopes;
        this.observations = observations;
        this.timeout = timeout;
    }

    /**
     * Pushes, and waits for the confirm.
     *
     * @return the id of the message
     * @throws PushException if it was not confirmed
     */
    public String push(Outgoing message) {
        CompletableFuture<String> result = pushAsync(message);
        try {
            return result.get();
        } catch (ExecutionException error) {
            throw failure(message, error.getCause());
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            throw new PushException.Unconfirmed(message.id(), "interrupted: it may have arrived");
        }
    }

    /**
     * Pushes without waiting.
     *
     * @return completes with the id of the message, or with a {@link PushException}
     */
    public CompletableFuture<String> pushAsync(Outgoing message) {
        Map<String, Object> headers = new HashMap<>(TraceContext.current());
        SenderContext<Map<String, Object>> context = new SenderContext<>((carrier, name, value) -> {
            if (carrier != null) {
                carrier.put(name, value);
            }
        });
        context.setCarrier(headers);
        Observation observation = Observation.createNotStarted("wirepost.push", () -> context, observations)
                .contextualName("push " + message.messageType())
                .lowCardinalityKeyValue("outcome", "confirmed")
                .start(); // writes the span's `traceparent`, where there is one
        CompletableFuture<String> result;
        try {
            Binding binding = bindings.get();
            String exchange = binding.pushExchange();
            if (message.businesses().stream().anyMatch(business -> !business.equals(binding.business()))) {
                // The broker copies it by these, and edges deliver by the envelope.
                exchange = binding.shareExchange();
                message.businesses().forEach(business -> headers.put("to-business-" + business, "true"));
            }
            result = publisher.publish(message.id(), exchange, body(message), headers, timeout);
        } catch (PushException | BindingException error) {
            result = CompletableFuture.failedFuture(error);
        }
        return result.whenComplete((id, error) -> {
            if (error != null) {
                observation.lowCardinalityKeyValue("outcome", outcome(error)).error(error);
            }
            observation.stop();
        });
    }

    /**
     * Many pushes, without waiting for each.
     *
     * @return what became of each, in order
     */
    public List<PushResult> pushAll(List<Outgoing> messages) {
        List<CompletableFuture<PushResult>> results = new ArrayList<>();
        for (Outgoing message : messages) {
            results.add(pushAsync(message).handle((id, error) ->
                    new PushResult(message.id(), error == null ? null : asPush(message, error))));
        }
        return results.stream().map(CompletableFuture::join).toList();
    }

    /**
     * Pushes the answer to a message: to its sender, with its id as {@code correlationId}.
     *
     * @return the id of the answer
     * @throws PushException if it was not confirmed
     */
    public String reply(Message<?> message, String messageType, Object content) {
        return push(Outgoing.of(messageType, content).to(message.fromUniqueId()).answering(message.id()));
    }

    private byte[] body(Outgoing message) {
        boolean nobody = message.to() == null || message.to().isEmpty();
        if (nobody && message.tags().isEmpty()) {
            throw new PushException.Invalid(message.id(), "it addresses nobody: `to` and tags are absent or empty",
                    null);
        }
        try {
            return envelopes.write(message).getBytes(StandardCharsets.UTF_8);
        } catch (IllegalArgumentException error) {
            throw new PushException.Invalid(message.id(), error.getMessage(), error);
        }
    }

    private static RuntimeException failure(Outgoing message, Throwable error) {
        if (error instanceof CompletionException && error.getCause() != null) {
            return failure(message, error.getCause());
        }
        if (error instanceof PushException || error instanceof BindingException) {
            // With the stack of the caller.
            error.addSuppressed(new Throwable("pushed here"));
            return (RuntimeException) error;
        }
        return new IllegalStateException("push " + message.id() + " failed", error);
    }

    private static PushException asPush(Outgoing message, Throwable error) {
        Throwable cause = error instanceof CompletionException ? error.getCause() : error;
        if (cause instanceof PushException failure) {
            return failure;
        }
        return new PushException.Unavailable(message.id(), cause.getMessage());
    }

    private static String outcome(Throwable error) {
        Throwable cause = error instanceof CompletionException ? error.getCause() : error;
        return cause instanceof PushException ? cause.getClass().getSimpleName().toLowerCase(java.util.Locale.ROOT)
                : "unbound";
    }
}
