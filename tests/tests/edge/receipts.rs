//! `received` reports what this connection was sent, once, and nothing else, and is answered when the broker has it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::proxy::{Network, Proxy};
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
        alice.send(&json!({"op": "received", "ids": &refused})).await?;
        let error = alice.control("error").await?;
        assert_eq!((&error["about"], &error["ids"]), (&json!("received"), &refused), "{error}");
        assert_eq!(error["retryable"], false, "{error}");
        assert!(error["reason"].as_str().is_some_and(|text| text.starts_with("1 of 1")), "{error}");
    }
    // The valid one among others is reported, once.
    alice.send(&json!({"op": "received", "ids": [foreign, mine, mine]})).await?;
    let error = alice.control("error").await?;
    assert!(error["reason"].as_str().is_some_and(|text| text.starts_with("2 of 3")), "{error}");
    assert_eq!(alice.control("receipt").await?["ids"], json!([mine]));
    alice.send(&json!({"op": "received", "ids": [mine]})).await?;
    assert_eq!(alice.control("error").await?["about"], "received");
    bob.send(&json!({"op": "received", "ids": [foreign]})).await?;
    let told = [next_json(&mut events).await?, next_json(&mut events).await?];
    assert_eq!(told.each_ref().map(|event| &event["ids"]), [&json!([mine]), &json!([foreign])], "and no other");
    assert_eq!(told.each_ref().map(|event| &event["uniqueId"]), [&json!("alice"), &json!("bob")]);
    let session = told[0]["session"].as_str().unwrap_or_default();
    let connection = alice.welcome["connectionId"].as_str().unwrap_or_default();
    // Two bits of a UUID are not its own.
    let digits = connection.replace('-', "");
    assert!(session.len() == 16 && digits.ends_with(&session[1..]), "{session} of {connection}");
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

#[tokio::test]
async fn receipts_wait_for_the_broker_in_order_and_are_answered_when_it_has_them() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (network, amqp) = Proxy::of_uri(&setup.vhost().amqp()).await?;
    let edge = setup.edge("e1").flag("amqp", amqp).start().await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("delivered").await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut ids = Vec::new();
    for n in 0..5 {
        service.push(&payment("alice", n)).await?;
        ids.push(alice.push().await?["id"].as_str().context("no id")?.to_owned());
    }
    // Its connections hang: whether the first event arrives is unknown, so it is published again.
    network.set(Network::Stalled);
    for id in &ids {
        alice.send(&json!({"op": "received", "ids": [id]})).await?;
    }
    edge.await_metric("wirepost_edge_receipt_bytes", ids.iter().map(String::len).sum::<usize>() as f64).await?;
    let before = edge.count("wirepost_broker_unknown").await?;
    eventually("the first attempt has failed", PATIENCE, || async {
        Ok(edge.count("wirepost_broker_unknown").await? > before)
    })
    .await?;
    alice.sync().await?;
    ensure!(!alice.controls().iter().any(|frame| frame["op"] == "receipt"), "answered before the broker had it");
    network.set(Network::Fine);
    let mut answered = Vec::new();
    while answered.len() < ids.len() {
        answered.extend(strings(&alice.control("receipt").await?["ids"]));
    }
    assert_eq!(answered, ids);
    let mut told = Vec::new();
    while told.len() < ids.len() {
        let event = next_json(&mut events).await?;
        for id in strings(&event["ids"]) {
            let key = (event["session"].clone(), id);
            if !told.contains(&key) {
                told.push(key);
            }
        }
    }
    assert_eq!(told.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), ids, "in order, but for repeats");
    assert_eq!(edge.count("wirepost_edge_receipt_bytes").await?, 0);
    assert_eq!(edge.count("wirepost_edge_receipts_total{kind=\"delivered\"}").await?, ids.len() as u64);
    Ok(())
}

#[tokio::test]
async fn where_nobody_listens_a_receipt_is_answered_all_the_same() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service.push(&payment("alice", 1)).await?;
    let id = alice.push().await?["id"].clone();
    alice.send(&json!({"op": "received", "ids": [id]})).await?;
    assert_eq!(alice.control("receipt").await?["ids"], json!([id]));
    Ok(())
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}
