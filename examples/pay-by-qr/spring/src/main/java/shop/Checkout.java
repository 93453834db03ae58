package shop;

import dev.wirepost.spring.Identity;
import dev.wirepost.spring.TokenResponse;
import dev.wirepost.spring.WirepostTokens;
import java.nio.file.Path;
import java.util.Optional;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.core.io.FileSystemResource;
import org.springframework.core.io.Resource;
import org.springframework.http.HttpHeaders;
import org.springframework.http.MediaType;
import org.springframework.http.ResponseCookie;
import org.springframework.http.ResponseEntity;
import org.springframework.web.bind.annotation.CookieValue;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;

/** What browsers and phones open. */
@RestController
class Checkout {
    private static final String COOKIE = "checkout";

    private final WirepostTokens tokens;
    private final Codes codes;
    private final Payments payments;
    private final Path page;
    private final Path client;

    Checkout(WirepostTokens tokens, Codes codes, Payments payments, @Value("${shop.page}") String page,
            @Value("${shop.client}") String client) {
        this.tokens = tokens;
        this.codes = codes;
        this.payments = payments;
        this.page = Path.of(page);
        this.client = Path.of(client);
    }

    /** Every visitor is somebody: the cookie of the checkout page. A real shop uses its login. */
    @GetMapping("/wirepost-token")
    ResponseEntity<?> token(@CookieValue(name = COOKIE, required = false) String visitor) {
        return TokenResponse.of(tokens, visitor == null ? null : new Identity(visitor, "page"));
    }

    /** What the phone opens: it pays. */
    @GetMapping("/pay/{code}")
    ResponseEntity<String> pay(@PathVariable String code) {
        Optional<Codes.Code> found = codes.take(code);
        found.ifPresent(payments::paid);
        return found.isPresent()
                ? ResponseEntity.ok("Paid. Thank you!")
                : ResponseEntity.status(410).body("This code is no longer valid. Scan the new one.");
    }

    @GetMapping("/")
    ResponseEntity<Resource> page(@CookieValue(name = COOKIE, required = false) String visitor) {
        ResponseEntity.BodyBuilder answer = ResponseEntity.ok().contentType(MediaType.TEXT_HTML);
        if (visitor == null) {
            ResponseCookie cookie =
                    ResponseCookie.from(COOKIE, Codes.secret(18)).httpOnly(true).sameSite("Lax").path("/").build();
            answer.header(HttpHeaders.SET_COOKIE, cookie.toString());
        }
        return answer.body(new FileSystemResource(page));
    }

    /** The TypeScript client. */
    @GetMapping("/client/{name:[A-Za-z0-9_-]+[.]js}")
    ResponseEntity<Resource> client(@PathVariable String name) {
        Resource file = new FileSystemResource(client.resolve(name));
        return file.exists()
                ? ResponseEntity.ok().contentType(MediaType.valueOf("text/javascript")).body(file)
                : ResponseEntity.notFound().build();
    }
}
