//! Nothing is acknowledged and then delivered to nobody: time to live runs from when the message was taken, whatever the sender's clock
//! says, and what is over by then is refused or reported.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::time::Instant;
use wirepost_testing::broker::PATIENCE;
use wirepost_testing::client::Client;
use wirepost_testing::service::{Service, next_json};
use wirepost_testing::setup::Setup;

fn business(delivery: &str) -> String {
    format!(
        r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: shop, namespace: shop}}
spec:
  clientTypes: [app]
  push: {{delivery: {delivery}}}
  routes:
    - {{messageType: 'notice.#', sendType: ServerToClient, to: [app], ttlSeconds: 600}}
    - {{messageType: 'plain.#', sendType: ServerToClient, to: [app]}}
    - {{messageType: 'chat.#', sendType: ClientToClient, from: [app], to: [app], ttlSeconds: 600}}
    - {{messageType: 'order.#', sendType: ClientToServer, queue: {{name: all}}}}
"
    )
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn merged(mut message: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        message[key] = value.clone();
    }
    message
}

fn push(id: &str, message_type: &str, more: &Value) -> Value {
    merged(json!({"id": id, "messageType": message_type, "toUniqueId": "bob", "content": {}}), more)
}

/// Until a push arrives: a client of a `Transient` business may be greeted before its edge's queue is there.
async fn warm_up(service: &Service, client: &mut Client) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        service.push(&push("warm", "plain.warm", &json!({}))).await?;
        match client.push_within(Duration::from_secs(1)).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => {}
        }
    }
}

/// The next push that is none of [`warm_up`].
async fn next_push(client: &mut Client) -> Result<Value> {
    loop {
        let push = client.push().await?;
        if push["id"] != "warm" {
            return Ok(push);
        }
    }
}

#[tokio::test]
async fn a_sender_with_a_wrong_clock_is_delivered_all_the_same() -> Result<()> {
    wrong_clock("Durable").await?;
    wrong_clock("Transient").await
}

async fn wrong_clock(delivery: &str) -> Result<()> {
    let setup = Setup::new(&[&business(delivery)]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    warm_up(&service, &mut bob).await?;
    for (n, offset) in [-86_400_000, -660_000, 660_000, 86_400_000].into_iter().enumerate() {
        let stamp = json!({"timestamp": now() + offset});
        alice.send_acked(&push(&format!("c{n}"), "chat.line", &stamp)).await?;
        service.push(&push(&format!("a{n}"), "notice.a", &stamp)).await?;
        let (status, answer) = edge.post(&push(&format!("h{n}"), "notice.h", &stamp)).await?;
        assert_eq!(status, 200, "{answer}");
        for _ in 0..3 {
            let got = next_push(&mut bob).await?;
            let ends = got["expiresAt"].as_i64().context("an end")?;
            assert!((now()..=now() + 600_000).contains(&ends), "from when it was taken: {got}");
            assert_eq!(got["timestamp"], stamp["timestamp"], "the sender's: {got}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_over_when_it_is_sent_is_refused_or_reported_and_a_wrong_unit_is_named() -> Result<()> {
    over("Durable").await?;
    over("Transient").await
}

async fn over(delivery: &str) -> Result<()> {
    let setup = Setup::new(&[&business(delivery)]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut rejected = service.events("rejected").await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    warm_up(&service, &mut bob).await?;
    let in_a_minute = now() + 60_000;
    let cases = [
        ("past", json!({"expiresAt": now() - 120_000}), "expired", "clock"),
        ("one", json!({"expiresAt": 1}), "expired", "clock"),
        ("seconds", json!({"expiresAt": in_a_minute / 1000}), "expired", "in seconds"),
        ("micros", json!({"expiresAt": in_a_minute * 1000}), "invalid", "in microseconds"),
    ];
    for (id, more, reason, part) in &cases {
        let code = if *reason == "invalid" { "invalid_envelope" } else { "expired" };
        alice.send(&push(id, "chat.line", more)).await?;
        let nack = alice.nack(id).await?;
        assert_eq!((&nack["code"], &nack["retryable"]), (&json!(code), &json!(false)), "{nack}");
        assert!(nack["reason"].as_str().is_some_and(|text| text.contains(part)), "{nack}");
        for message_type in ["plain.h", "notice.h"] {
            let (status, answer) = edge.post(&push(id, message_type, more)).await?;
            let result = if *reason == "invalid" { 40_002 } else { 40_007 };
            assert_eq!((status, &answer["result"]), (400, &json!(result)), "{answer}");
            assert!(answer["description"].as_str().is_some_and(|text| text.contains(part)), "{answer}");
        }
        for message_type in ["plain.a", "notice.a"] {
            service.push(&push(id, message_type, more)).await?;
            let event = next_json(&mut rejected).await?;
            assert_eq!((&event["id"], &event["reason"]), (&json!(id), &json!(reason)), "{event}");
            assert!(event["description"].as_str().is_some_and(|text| text.contains(part)), "{event}");
        }
    }
    assert_eq!(edge.count("wirepost_edge_rejected_pushes_total{kind=\"expired\"}").await?, 6);
    // A `timestamp` that can't be meant so is refused where somebody hears of it, and harms no push.
    let stamp = json!({"timestamp": now() / 1000});
    for message_type in ["chat.line", "order.placed"] {
        alice.send(&push("t", message_type, &stamp)).await?;
        let nack = alice.nack("t").await?;
        assert_eq!(nack["code"], "invalid_envelope", "{nack}");
        assert!(nack["reason"].as_str().is_some_and(|text| text.contains("in seconds")), "{nack}");
    }
    assert_eq!(edge.post(&push("t", "notice.h", &stamp)).await?.1["result"], 40_002);
    service.push(&push("last", "notice.a", &stamp)).await?;
    assert_eq!(next_push(&mut bob).await?["id"], "last", "nothing else was delivered");
    Ok(())
}

#[tokio::test]
async fn reserved_message_types_are_refused_from_everybody_and_the_marker_stays_silent() -> Result<()> {
    let wide = business("Durable").replace("'plain.#'", "'#'").replace("'order.#'", "'#'");
    let setup = Setup::new(&[&wide]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut rejected = service.events("rejected").await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    for (id, message_type) in [("b", "wirepost.begin"), ("o", "wirepost.other.thing")] {
        for more in [json!({}), json!({"sendType": "ClientToServer"})] {
            alice.send(&push(id, message_type, &more)).await?;
            let nack = alice.nack(id).await?;
            assert_eq!(nack["code"], "not_allowed", "{nack}");
            assert!(nack["reason"].as_str().is_some_and(|text| text.contains("reserved")), "{nack}");
        }
        assert_eq!(edge.post(&push(id, message_type, &json!({}))).await?.1["result"], 40_005);
        service.push(&push(id, message_type, &json!({}))).await?;
        let event = next_json(&mut rejected).await?;
        assert_eq!((&event["id"], &event["reason"]), (&json!(id), &json!("not_allowed")), "{event}");
    }
    // The marker itself (every new stream has one) was no rejection.
    assert_eq!(edge.count("wirepost_edge_rejected_pushes_total{kind=\"not_allowed\"}").await?, 2);
    Ok(())
}
