package dev.wirepost.spring;

import static dev.wirepost.spring.Rabbit.until;

import dev.wirepost.client.Outgoing;
import dev.wirepost.client.State;
import dev.wirepost.client.WirepostClient;
import dev.wirepost.test.WirepostDev;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.springframework.boot.WebApplicationType;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.context.support.GenericApplicationContext;

/** A service of the business `shop`, on a real RabbitMQ and {@code wirepost dev}. */
@Timeout(120)
abstract class ServiceSetup {
    static final Rabbit RABBIT = new Rabbit();

    @RegisterExtension
    static final WirepostDev DEV =
            WirepostDev.with("src/test/resources/shop.yaml").withEnvironment(RABBIT.environment());

    final List<AutoCloseable> opened = new ArrayList<>();

    record QrRefresh(String qrId) {}

    record Number(int n) {}

    static {
        // One broker and one `wirepost dev` for all classes.
        Runtime.getRuntime().addShutdownHook(new Thread(RABBIT::close));
    }

    @AfterEach
    void end() throws Exception {
        opened.removeIf(one -> one instanceof WirepostClient client && close(client));
        for (int i = opened.size() - 1; i >= 0; i--) {
            opened.get(i).close();
        }
    }

    private static boolean close(WirepostClient client) {
        client.close();
        return true;
    }

    @BeforeEach
    void nothingOfOthers() {
        RABBIT.purge("wirepost.shop.q.orders");
        RABBIT.purge("wirepost.shop.q.qr-refresh");
    }

    /** An application with this bean of listeners, once it consumes. */
    <T> ConfigurableApplicationContext service(Map<String, String> more, T listeners) throws Exception {
        return service(more, listeners, made -> { });
    }

    <T> ConfigurableApplicationContext service(
            Map<String, String> more, T listeners, Consumer<GenericApplicationContext> beans) throws Exception {
        ConfigurableApplicationContext context = start(more, listeners, beans);
        until("it consumes", () -> context.getBean(Consumers.class).consuming().values().stream().allMatch(c -> c));
        return context;
    }

    <T> ConfigurableApplicationContext start(
            Map<String, String> more, T listeners, Consumer<GenericApplicationContext> beans) {
        Map<String, String> properties = new HashMap<>(DEV.properties("shop", "qr-refresh", "orders"));
        properties.putAll(more);
        ConfigurableApplicationContext context = new SpringApplicationBuilder(WirepostAutoConfiguration.class)
                .web(WebApplicationType.NONE)
                .bannerMode(org.springframework.boot.Banner.Mode.OFF)
                .logStartupInfo(false)
                .initializers(made -> register((GenericApplicationContext) made, listeners))
                .initializers(made -> beans.accept((GenericApplicationContext) made))
                .run(arguments(properties));
        opened.add(context);
        return context;
    }

    /** They count more than the environment. */
    static String[] arguments(Map<String, String> properties) {
        return properties.entrySet().stream().map(one -> "--" + one.getKey() + "=" + one.getValue())
                .toArray(String[]::new);
    }

    @SuppressWarnings("unchecked")
    static <T> void register(GenericApplicationContext context, T bean) {
        if (bean != null) {
            context.registerBean((Class<T>) bean.getClass(), () -> bean);
        }
    }

    WirepostTemplate pusher(Map<String, String> more) throws Exception {
        return service(more, null).getBean(WirepostTemplate.class);
    }

    WirepostClient client(String uniqueId) throws Exception {
        WirepostClient client = WirepostClient.builder(DEV.token("shop", uniqueId, "app")).build();
        opened.add(client);
        return client;
    }

    WirepostClient connected(String uniqueId) throws Exception {
        WirepostClient client = client(uniqueId).start();
        until("a connection", () -> client.state() == State.OPEN);
        return client;
    }

    static void send(WirepostClient client, String type, Object content, String id) {
        client.send(Outgoing.of(type, content).withId(id)).join();
    }
}
