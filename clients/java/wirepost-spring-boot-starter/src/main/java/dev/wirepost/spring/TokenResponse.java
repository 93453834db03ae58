package dev.wirepost.spring;

import dev.wirepost.client.TokenRefusedException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import org.springframework.http.CacheControl;
import org.springframework.http.HttpHeaders;
import org.springframework.http.ResponseEntity;

/**
 * The answer of the route by which your users' clients get their connection URL, in the form of the edges' token call:
 *
 * <pre>{@code
 * @GetMapping("/wirepost-token")
 * ResponseEntity<?> token(Principal user) {
 *     return TokenResponse.of(tokens, user == null ? null : new Identity(user.getName(), "h5"));
 * }
 * }</pre>
 */
public final class TokenResponse {
    private TokenResponse() {}

    /** Asks an edge. Null stands for a user who is not logged in: 401. */
    public static ResponseEntity<Map<String, Object>> of(WirepostTokens tokens, Identity identity) {
        if (identity == null) {
            return answer(401, 40101, "log in first", null, null);
        }
        try {
            return answer(200, 0, "ok", tokens.connectionUrl(identity), null);
        } catch (TokenRefusedException error) {
            // A refusal of this service's key or parameters is no fault of the client's.
            boolean ours = switch (error.status()) {
                case 400, 401, 403, 404 -> true;
                default -> false;
            };
            int status = ours ? 502 : error.status();
            int result = error.result() == null ? status * 100 + 1 : error.result();
            return answer(status, result, error.description(), null, error.retryAfter());
        } catch (UncheckedIOException error) {
            return answer(503, 50302, "no edge can be reached", null, Duration.ofSeconds(1));
        }
    }

    private static ResponseEntity<Map<String, Object>> answer(
            int status, int result, String description, String data, Duration retryAfter) {
        Map<String, Object> body = new LinkedHashMap<>();
        body.put("result", result);
        body.put("description", description);
        if (data != null) {
            body.put("data", data);
        }
        ResponseEntity.BodyBuilder answer = ResponseEntity.status(status).cacheControl(CacheControl.noStore());
        if (retryAfter != null) {
            answer.header(HttpHeaders.RETRY_AFTER, Long.toString(Math.max(1, retryAfter.toSeconds())));
        }
        return answer.body(body);
    }
}
