//! Queues are bounded in bytes, and a new bound removes nothing that is stored.

#![allow(clippy::unwrap_used)] // a panic fails the test

use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, Vhost, depth, eventually, publish, publish_for};

use crate::support::{apply_all, business, problems, route};

const QUEUE: &str = "wirepost.pay.q.orders";
const LISTENER: &str = "wirepost.pay.events.online";
/// A stream.
const AUDIT: &str = "wirepost.pay.events.audit";

#[tokio::test]
async fn a_bound_below_what_a_queue_holds_removes_nothing_and_refuses_more() {
    let vhost = Vhost::create().await.unwrap();
    let policy = async |name: &str, body: Value| {
        vhost.broker.call("PUT", &format!("/api/policies/{}/{name}", vhost.name), &body.to_string()).await.unwrap()
    };
    apply_all(&vhost, &business("pay", &json!([route("order", "orders")]))).await;
    // As a former version left it.
    let former = json!({
        "pattern": r"^wirepost\.[a-z0-9-]+\.q\..+$", "apply-to": "quorum_queues", "priority": 400,
        "definition": {"dead-letter-strategy": "at-least-once", "delivery-limit": 20, "max-length": 1_000_000,
            "overflow": "reject-publish"},
    });
    policy("wirepost.queues", former).await;
    let (_connection, channel) = vhost.channel().await.unwrap();
    let body = vec![b'x'; 60_000];
    let send = async || publish_for(&channel, "wirepost.pay.receive", "order", QUEUE, &body).await;
    for _ in 0..3 {
        send().await.unwrap();
    }
    let mut orders = route("order", "orders");
    orders["queue"]["maxLengthBytes"] = json!("100k");
    assert_eq!(problems(&apply_all(&vhost, &business("pay", &json!([orders]))).await), [""; 0]);
    eventually("the queue is full", PATIENCE, || async { Ok(send().await.is_err()) }).await.unwrap();
    assert!(depth(&channel, QUEUE).await.unwrap() >= 3, "what was stored is gone");
    channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await.unwrap();
    eventually("it accepts messages again", PATIENCE, || async { Ok(send().await.is_ok()) }).await.unwrap();
}

#[tokio::test]
async fn a_listener_that_has_stopped_keeps_its_events_and_is_bounded() {
    let vhost = Vhost::create().await.unwrap();
    apply_all(&vhost, &business("pay", &json!([route("order", "orders")]))).await;
    vhost.broker.call("DELETE", &format!("/api/policies/{}/wirepost.events", vhost.name), "").await.unwrap();
    let (_connection, channel) = vhost.channel().await.unwrap();
    // It drops what is older, so nothing bounds it unasked.
    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    channel.queue_declare(AUDIT.into(), QueueDeclareOptions::durable(), stream).await.unwrap();
    let (queue, table) = (|| LISTENER.into(), FieldTable::default);
    channel.queue_declare(queue(), QueueDeclareOptions::durable(), table()).await.unwrap();
    let bind = QueueBindOptions::default();
    channel.queue_bind(queue(), "wirepost.pay.events".into(), "#".into(), bind, table()).await.unwrap();
    publish(&channel, "wirepost.pay.events", "connected", b"{}").await.unwrap();
    apply_all(&vhost, &business("pay", &json!([route("order", "orders")]))).await;
    eventually("the queue has its bounds", PATIENCE, || async {
        let answer = vhost.broker.call("GET", &format!("/api/queues/{}/{LISTENER}", vhost.name), "").await?;
        let answer: Value = serde_json::from_str(&answer)?;
        let bounds = &answer["effective_policy_definition"];
        Ok(bounds["max-length-bytes"] == 256 << 20 && bounds["overflow"] == "reject-publish")
    })
    .await
    .unwrap();
    assert_eq!(depth(&channel, LISTENER).await.unwrap(), 1);
    let answer = vhost.broker.call("GET", &format!("/api/queues/{}/{AUDIT}", vhost.name), "").await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["effective_policy_definition"], json!({}), "{answer}");
}
