//! `wirepost dev --amqp`: the same on a real RabbitMQ.

use std::time::Duration;
use wirepost_testing::broker::{Vhost, eventually, publish};

use crate::{
    playground::Playground,
    support::{Running, folder_with},
};

/// The interval of checks is ten seconds, plus the time for the repair.
const REPAIR: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn messages_flow_on_a_real_broker_and_its_topology_is_repaired() {
    let vhost = Vhost::create().await.unwrap();
    let folder = folder_with("payments.yaml");
    let (amqp, stream, management) = (vhost.amqp(), vhost.broker.stream.clone(), vhost.broker.management.clone());
    let (mut dev, url) = Running::dev(&[
        folder.path().to_str().unwrap(),
        "--amqp",
        &amqp,
        "--stream",
        &stream,
        "--management",
        &management,
        "--show-queues",
    ]);
    dev.line("broker: payments: topology applied");
    let mut page = Playground::of(&dev).notices();
    let bound = || async {
        let path = format!("/api/exchanges/{}/wirepost.payments.events/bindings/source", vhost.name);
        Ok(vhost.broker.call("GET", &path, "").await?.contains("wirepost.payments.events."))
    };
    eventually("the page hears of events", Duration::from_secs(30), bound).await.unwrap();
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);
    page.until(&["event", "connected", "alice"]);
    let mut bob = Running::listen(&url, "payments", "bob", "h5", &[]);

    // A service that uses AMQP only.
    let (_connection, channel) = vhost.channel().await.unwrap();
    let envelope =
        |n: u32| format!(r#"{{"messageType":"payment.completed","toUniqueId":"alice","content":{{"n":{n}}}}}"#);
    publish(&channel, "wirepost.payments.push", "payment.completed", envelope(1).as_bytes()).await.unwrap();
    alice.line(r#""n":1"#);
    // Every push that reaches nobody is reported.
    for id in ["lost-1", "lost-2"] {
        let lost = format!(r#"{{"id":"{id}","messageType":"payment.completed","content":{{}}}}"#);
        publish(&channel, "wirepost.payments.push", "payment.completed", lost.as_bytes()).await.unwrap();
        dev.line(id);
    }
    bob.type_line(r#"{"id":"q1","messageType":"qr.refresh","content":{"qrId":"q-1"}}"#);
    bob.line(r#"{"op":"ack","id":"q1"}"#);
    dev.line("queue wirepost.payments.q.qr-refresh ← ");
    page.until(&["message", "wirepost.payments.q.qr-refresh", "q-1"]);

    // Somebody deletes a binding: pushes are kept meanwhile, and arrive after the repair.
    let binding = format!("/api/bindings/{}/e/wirepost.payments.push/q/wirepost.payments.stream/~", vhost.name);
    vhost.broker.call("DELETE", &binding, "").await.unwrap();
    publish(&channel, "wirepost.payments.push", "payment.completed", envelope(2).as_bytes()).await.unwrap();
    dev.line_within("broker: payments: repaired: bind", REPAIR);
    dev.line_within("1 unrouted messages moved back", REPAIR);
    alice.line(r#""n":2"#);

    // A removed business loses its exchanges; its stream with messages stays, and this is reported.
    std::fs::remove_file(folder.path().join("payments.yaml")).unwrap();
    dev.line("payments: removed");
    alice.line("4010");
    dev.line_within("wirepost.payments.stream is no longer declared", REPAIR);
    eventually("nobody can publish any more", REPAIR, async || {
        let exchanges = vhost.broker.call("GET", &format!("/api/exchanges/{}", vhost.name), "").await?;
        Ok(!exchanges.contains("wirepost.payments.receive") && !exchanges.contains("wirepost.payments.push"))
    })
    .await
    .unwrap();
}

#[test]
fn an_unavailable_broker_is_reported_and_waited_for() {
    let folder = folder_with("payments.yaml");
    // Nothing listens on the discard port.
    let (amqp, management) = ("amqp://guest:guest@127.0.0.1:9", "http://127.0.0.1:9");
    let (mut dev, url) = Running::dev(&[folder.path().to_str().unwrap(), "--amqp", amqp, "--management", management]);
    dev.line("broker: topology not applied: reading vhost /: the management API is not reachable");
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);
    alice.type_line(r#"{"id":"c1","messageType":"cart.share","toUniqueId":"bob","content":{}}"#);
    alice.line(r#"{"op":"nack","id":"c1","code":"broker_unavailable""#);
    dev.signal("TERM");
    assert!(dev.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_ends_dev_on_a_real_broker_with_its_name() {
    let vhost = Vhost::create().await.unwrap();
    let folder = folder_with("payments.yaml");
    let (amqp, stream, management) = (vhost.amqp(), vhost.broker.stream.clone(), vhost.broker.management.clone());
    let broker = ["--amqp", &amqp, "--stream", &stream, "--management", &management, "--show-queues"];
    let arguments = [&[folder.path().to_str().unwrap()], &broker[..]].concat();
    std::thread::scope(|threads| {
        for task in ["queue consumer", "event consumer", "broker health", "topology keeper", "topology rounds"] {
            let arguments = &arguments;
            threads.spawn(move || Running::dev_ends_by_panic(task, arguments));
        }
    });
}
