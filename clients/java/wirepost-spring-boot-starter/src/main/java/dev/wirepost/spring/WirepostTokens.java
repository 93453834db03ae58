package dev.wirepost.spring;

import dev.wirepost.client.HttpToken;
import dev.wirepost.client.TokenRefusedException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** Lets clients in, by the edges' token call with the business's API key. */
public final class WirepostTokens {
    private final Bindings bindings;

    WirepostTokens(Bindings bindings) {
        this.bindings = bindings;
    }

    /**
     * A connection URL for a client of yours. It is a secret, and can be used for 30 s. Call it for users that you have
     * authenticated.
     *
     * @throws TokenRefusedException with the edge's answer
     * @throws UncheckedIOException if no edge can be reached
     * @throws BindingException if the binding has no endpoint or API key
     */
    public String connectionUrl(Identity identity) {
        try {
            return call(bindings.get(), identity);
        } catch (TokenRefusedException error) {
            if (error.status() != 401 || !bindings.changes()) {
                throw error;
            }
            return call(bindings.read(), identity); // the key may have been rotated
        }
    }

    private static String call(Binding binding, Identity identity) {
        if (binding.endpoint() == null || binding.apiKey() == null) {
            throw new BindingException(
                    "the binding of " + binding.business() + " has no endpoint or no API key for the token call");
        }
        StringBuilder query = new StringBuilder("/token?uniqueId=").append(encoded(identity.uniqueId()))
                .append("&clientType=").append(encoded(identity.clientType()));
        identity.tags().forEach(tag -> query.append("&tags=").append(encoded(tag)));
        URI url = URI.create(binding.endpoint().replaceAll("/+$", "") + query);
        try {
            return new HttpToken(url, () -> Map.of("X-Api-Key", binding.apiKey())).connectionUrl();
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            throw new UncheckedIOException(new IOException("interrupted during a token call", error));
        } catch (IOException error) {
            throw new UncheckedIOException("no edge can be reached: " + error.getMessage(), error);
        }
    }

    private static String encoded(String text) {
        return URLEncoder.encode(text, StandardCharsets.UTF_8);
    }
}
