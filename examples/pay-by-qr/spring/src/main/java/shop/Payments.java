package shop;

import dev.wirepost.client.Message;
import dev.wirepost.client.Outgoing;
import dev.wirepost.spring.WirepostListener;
import dev.wirepost.spring.WirepostTemplate;
import org.springframework.stereotype.Component;

/** What the page and the shop say to each other. */
@Component
class Payments {
    record QrRefresh(String orderId) {}

    record QrRefreshed(String path, long seconds) {}

    record Paid(String orderId) {}

    private final Codes codes;
    private final WirepostTemplate wirepost;

    Payments(Codes codes, WirepostTemplate wirepost) {
        this.codes = codes;
        this.wirepost = wirepost;
    }

    /** A page wants a code. It waits for this answer: {@code client.request} there. */
    @WirepostListener(value = "qr.refresh", queue = "qr-refresh")
    void refresh(Message<QrRefresh> message) {
        String code = codes.make(message.fromUniqueId(), message.content().orderId());
        wirepost.reply(message, "qr.refreshed", new QrRefreshed("/pay/" + code, Codes.VALID.toSeconds()));
    }

    /** The page is told, even if it is away for a moment. A repeat has the same id, and is dropped by the page. */
    void paid(Codes.Code code) {
        String id = "paid-" + code.orderId();
        wirepost.push(Outgoing.of("payment.completed", new Paid(code.orderId()))
                .to(code.page())
                .withId(id.substring(0, Math.min(id.length(), 64))));
    }
}
