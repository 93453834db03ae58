package shop;

import java.security.SecureRandom;
import java.time.Duration;
import java.time.Instant;
import java.util.Base64;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;
import org.springframework.stereotype.Component;

/** The codes that are valid. A real shop keeps them in its database. */
@Component
class Codes {
    static final Duration VALID = Duration.ofMinutes(1);

    record Code(String page, String orderId, Instant ends) {
        boolean over() {
            return ends.isBefore(Instant.now());
        }
    }

    private static final SecureRandom RANDOM = new SecureRandom();
    private final Map<String, Code> codes = new ConcurrentHashMap<>();

    String make(String page, String orderId) {
        codes.values().removeIf(Code::over);
        String code = secret(12);
        codes.put(code, new Code(page, orderId, Instant.now().plus(VALID)));
        return code;
    }

    /** A code pays once. */
    Optional<Code> take(String code) {
        return Optional.ofNullable(codes.remove(code)).filter(found -> !found.over());
    }

    static String secret(int bytes) {
        byte[] random = new byte[bytes];
        RANDOM.nextBytes(random);
        return Base64.getUrlEncoder().withoutPadding().encodeToString(random);
    }
}
