//! An empty audience is nobody (CASES 1).

use anyhow::Result;
use serde_json::{Value, json};
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// Pushes that name nobody, on a route that does not allow everyone and on one that does.
fn for_nobody() -> Vec<Value> {
    let audiences =
        [json!({"toUniqueId": ""}), json!({"toUniqueId": null}), json!({"tags": []}), json!({}), json!({"tags": [""]})];
    let mut pushes = Vec::new();
    for message_type in ["payment.completed", "till.notice"] {
        for audience in &audiences {
            let mut push = audience.clone();
            push["id"] = json!(format!("nobody-{}", pushes.len()));
            push["messageType"] = json!(message_type);
            pushes.push(push);
        }
    }
    pushes
}

#[tokio::test]
async fn an_amqp_push_to_nobody_reaches_nobody_and_is_reported() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "app").tags(&["gold"]).connect().await?;
    let mut rejected = service.events("rejected").await?;
    let pushes = for_nobody();
    for push in &pushes {
        service.push(push).await?;
    }
    let everyone = json!({"id": "everyone", "messageType": "payment.completed", "toUniqueId": "*"});
    service.push(&everyone).await?;
    service.push(&payment("alice", 1)).await?;
    service.push(&payment("bob", 2)).await?;
    assert_eq!(alice.numbers(1).await?, [1]);
    assert_eq!(bob.numbers(1).await?, [2]);

    let nobody = edge.count("wirepost_edge_rejected_pushes_total{kind=\"nobody\"}").await?;
    assert_eq!(nobody, pushes.len() as u64);
    assert_eq!(edge.count("wirepost_edge_rejected_pushes_total{kind=\"not_allowed\"}").await?, 1);
    for push in pushes.iter().chain([&everyone]) {
        let event = next_json(&mut rejected).await?;
        assert_eq!(event["id"], push["id"], "{event}");
        assert_eq!(event["reason"], if push["id"] == "everyone" { "not_allowed" } else { "nobody" });
        assert!(event["description"].as_str().unwrap().contains("toUniqueId"), "{event}");
    }
    let log = edge.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("a push was rejected")).collect();
    assert_eq!(lines.len(), 1, "logged once a minute: {lines:?}");
    assert!(lines[0].contains("nobody-0"), "with its id: {}", lines[0]);
    Ok(())
}

#[tokio::test]
async fn an_http_push_to_nobody_is_refused_naming_the_field() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut everyone = json!([{"messageType": "payment.completed", "toUniqueId": "*"}]);
    everyone.as_array_mut().unwrap().extend(for_nobody());
    for push in everyone.as_array().unwrap() {
        let (status, answer) = edge.post(push).await?;
        assert_eq!(status, 400, "{push}: {answer}");
        assert_eq!(answer["data"]["field"], "toUniqueId", "{push}: {answer}");
        assert!(answer["description"].as_str().unwrap().contains("toUniqueId"), "{answer}");
    }
    let mut batch = everyone.as_array().unwrap().clone();
    batch.push(payment("alice", 1));
    let (status, answer) = edge.post(&json!(batch)).await?;
    assert_eq!(status, 207, "{answer}");
    let results = answer["data"].as_array().unwrap();
    assert_eq!(results.len(), batch.len());
    for result in &results[..results.len() - 1] {
        assert_eq!(result["field"], "toUniqueId", "{result}");
    }
    assert_eq!(results.last().unwrap()["result"], 0);
    assert_eq!(alice.numbers(1).await?, [1]);
    Ok(())
}

#[tokio::test]
async fn a_client_can_not_message_nobody_or_everyone() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "h5").connect().await?;
    for (id, audience) in [("a", Value::Null), ("b", json!("")), ("c", json!("*"))] {
        alice.send(&json!({"id": id, "messageType": "chat.line", "toUniqueId": audience})).await?;
        let nack = alice.nack(id).await?;
        assert_eq!(nack["code"], "not_allowed", "{nack}");
        assert!(nack["reason"].as_str().unwrap().contains("toUniqueId"), "{nack}");
    }
    alice.send_acked(&json!({"id": "d", "messageType": "chat.line", "toUniqueId": "bob", "content": {"n": 1}})).await?;
    assert_eq!(bob.numbers(1).await?, [1]);
    Ok(())
}
