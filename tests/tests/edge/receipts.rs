//! `received` reports what this connection was sent, once, and nothing else.

use anyhow::Result;
use serde_json::json;
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

#[tokio::test]
async fn only_what_a_connection_was_sent_on_a_route_with_receipts_is_delivered_and_once() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("delivered").await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    service.push(&payment("alice", 1)).await?;
    service.push(&payment("bob", 2)).await?;
    service.push(&json!({"id": "plain", "messageType": "till.notice", "toUniqueId": "alice"})).await?;
    let mine = alice.push().await?["id"].clone();
    let foreign = bob.push().await?["id"].clone();
    assert_eq!(alice.push().await?["id"], "plain");
    for refused in [json!([foreign]), json!(["unknown"]), json!(["plain"])] {
        alice.send(&json!({"op": "received", "ids": refused})).await?;
        let error = alice.control("error").await?;
        assert_eq!(error["about"], "received", "{error}");
        assert!(error["reason"].as_str().is_some_and(|text| text.starts_with("1 of 1")), "{error}");
    }
    // The valid one among others is reported, once.
    alice.send(&json!({"op": "received", "ids": [foreign, mine, mine]})).await?;
    let error = alice.control("error").await?;
    assert!(error["reason"].as_str().is_some_and(|text| text.starts_with("2 of 3")), "{error}");
    alice.send(&json!({"op": "received", "ids": [mine]})).await?;
    assert_eq!(alice.control("error").await?["about"], "received");
    bob.send(&json!({"op": "received", "ids": [foreign]})).await?;
    let told = [next_json(&mut events).await?, next_json(&mut events).await?];
    assert_eq!(told.each_ref().map(|event| &event["ids"]), [&json!([mine]), &json!([foreign])], "and no other");
    assert_eq!(told.each_ref().map(|event| &event["uniqueId"]), [&json!("alice"), &json!("bob")]);
    assert_eq!(edge.count("wirepost_edge_receipts_total{kind=\"delivered\"}").await?, 2);
    assert_eq!(edge.count("wirepost_edge_receipts_total{kind=\"refused\"}").await?, 6);
    Ok(())
}

#[tokio::test]
async fn what_was_missed_and_is_caught_up_can_be_reported() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("delivered").await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let cursor = alice.cursor();
    alice.leave().await?;
    service.push_all((0..300).map(|n| payment("alice", n))).await?;
    let mut alice = edge.client("alice", "app").cursor(cursor).connect().await?;
    let mut ids = Vec::new();
    for _ in 0..300 {
        ids.push(alice.push().await?["id"].clone());
    }
    for part in ids.chunks(256) {
        alice.send(&json!({"op": "received", "ids": part})).await?;
        assert_eq!(next_json(&mut events).await?["ids"], json!(part));
    }
    Ok(())
}
