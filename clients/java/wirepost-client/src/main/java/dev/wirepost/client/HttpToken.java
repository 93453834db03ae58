package dev.wirepost.client;

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.Map;
import java.util.function.Supplier;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;

/** Asks for a connection URL by GET. The answer is that of the token call, as an edge or your backend gives it. */
public final class HttpToken implements TokenSource {
    private static final Duration TIMEOUT = Duration.ofSeconds(10);

    private final URI url;
    private final Supplier<Map<String, String>> headers;
    private final HttpClient http;

    /** Without credentials. */
    public HttpToken(URI url) {
        this(url, Map::of);
    }

    /**
     * With headers.
     *
     * @param headers asked for each time: {@code Authorization} with a JWT that is renewed, for example
     */
    public HttpToken(URI url, Supplier<Map<String, String>> headers) {
        this(url, headers, Threads.http());
    }

    /** With an HTTP client of your own: a proxy, an {@code SSLContext}. */
    public HttpToken(URI url, Supplier<Map<String, String>> headers, HttpClient http) {
        this.url = url;
        this.headers = headers;
        this.http = http;
    }

    @Override
    public String connectionUrl() throws IOException, InterruptedException {
        HttpRequest.Builder request = HttpRequest.newBuilder(url).timeout(TIMEOUT);
        headers.get().forEach(request::setHeader);
        HttpResponse<String> answer = http.send(request.build(), HttpResponse.BodyHandlers.ofString());
        return read(answer.statusCode(), answer.body(), answer.headers().firstValue("retry-after").orElse(null));
    }

    private static String read(int status, String body, String retryAfter) {
        JsonNode answer;
        try {
            answer = Envelopes.STANDARD.mapper().readTree(body);
        } catch (JacksonException notJson) {
            answer = Envelopes.STANDARD.mapper().createObjectNode();
        }
        boolean success = status >= 200 && status < 300;
        String data = Envelopes.text(answer, "data");
        if (success && data != null && data.contains("/socket/")) {
            return data;
        }
        String description = Envelopes.text(answer, "description");
        if (success) {
            // Nothing that a client can mend: it returns as after any other failure of a server.
            throw new TokenRefusedException(502, "the answer has no connection URL as `data`", null, null);
        }
        Long result = Envelopes.integer(answer, "result");
        throw new TokenRefusedException(
                status, description, result == null ? null : result.intValue(), seconds(retryAfter));
    }

    /** A {@code Retry-After} in seconds; a date in it is ignored, since the clocks may differ. */
    static Duration seconds(String retryAfter) {
        try {
            return retryAfter == null ? null : Duration.ofSeconds(Math.max(0, Long.parseLong(retryAfter.trim())));
        } catch (NumberFormatException date) {
            return null;
        }
    }
}
