//! Pushes that a general AMQP client can't read, or that the broker can't translate: each arrives, and none stops its business or a
//! neighbour.

use anyhow::{Context, Result};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use wirepost_core::names;
use wirepost_stream::BodyKind;
use wirepost_testing::broker::{PATIENCE, consume, eventually, next_body};
use wirepost_testing::edge::Edge;
use wirepost_testing::service::Service;
use wirepost_testing::setup::Setup;
use wirepost_testing::strange::{Publisher, Strange, endpoint, readable, unmovable};

fn declaration(name: &str, delivery: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}, namespace: shop}}
spec:
  clientTypes: [app]
  routes:
    - {{messageType: price, sendType: ServerToClient, to: [app], audience: Everyone}}
  push: {{delivery: {delivery}}}
"
    )
}

fn price(n: usize) -> Value {
    json!({"id": format!("p-{n}"), "messageType": "price", "toUniqueId": "*", "content": {"n": n}})
}

/// What numbers its socket brings, each the first time it comes: a connection that ended brings what it had not acknowledged again.
async fn numbers(client: &mut wirepost_testing::client::Client, count: usize) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    while all.len() < count {
        let number = client.push().await?["content"]["n"].as_u64().context("a number")?;
        if !all.contains(&number) {
            all.push(number);
        }
    }
    Ok(all)
}

async fn counted(edge: &Edge, name: &str) -> Result<u64> {
    edge.count(&format!("wirepost_broker_{name}")).await
}

#[tokio::test]
async fn strange_messages_arrive_in_order_and_neighbours_notice_nothing() -> Result<()> {
    let setup = Setup::new(&[
        &declaration("ticker", "Transient"),
        &declaration("quiet", "Transient"),
        &declaration("log", "Durable"),
    ])
    .await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").business("ticker").connect().await?;
    let mut bob = edge.client("bob", "app").business("quiet").connect().await?;
    let mut carol = edge.client("carol", "app").business("log").connect().await?;
    let neighbour = Service::of(&setup, "quiet").await?;
    let mut publisher = Publisher::open(&endpoint(&setup.vhost().amqp())?).await?;
    // A header of type decimal is nothing to 0-9-1; a stream can't take it.
    let plain = Service::of(&setup, "ticker").await?;
    let all = [readable(), unmovable()].concat();
    let mut n = 0;
    for (name, message) in &all {
        let (exchange, body) = (names::push_exchange("ticker"), price(n).to_string());
        publisher.publish(&exchange, message, body.as_bytes()).await.with_context(|| (*name).to_owned())?;
        plain.push(&price(n + 1)).await?;
        neighbour.push(&price(n)).await?;
        n += 2;
    }
    let expected: Vec<_> = (0..n as u64).collect();
    assert_eq!(numbers(&mut alice, n).await?, expected);
    let even: Vec<_> = expected.iter().copied().filter(|n| n % 2 == 0).collect();
    assert_eq!(bob.numbers(all.len()).await?, even, "each once: the neighbour's connection has not ended");
    assert!(counted(&edge, "transient_switches").await? > 0, "the broker translates them all by now");
    assert_eq!(counted(&edge, "transient_unreadable").await?, 0);

    let taken = readable();
    for (n, (name, message)) in taken.iter().enumerate() {
        let (exchange, body) = (names::push_exchange("log"), price(n).to_string());
        publisher.publish(&exchange, message, body.as_bytes()).await.with_context(|| (*name).to_owned())?;
    }
    assert_eq!(numbers(&mut carol, taken.len()).await?, (0..taken.len() as u64).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_marked_or_a_text_arrives_and_another_is_named() -> Result<()> {
    for delivery in ["Transient", "Durable"] {
        let setup = Setup::new(&[&declaration("ticker", delivery)]).await?;
        let edge = setup.edge("e1").start().await?;
        let mut alice = edge.client("alice", "app").connect().await?;
        let service = Service::connect(&setup).await?;
        let channel = &service.channel;
        let (queue, events) = (names::events_queue("ticker", "all"), names::events_exchange("ticker"));
        channel
            .queue_declare(queue.as_str().into(), lapin::options::QueueDeclareOptions::default(), FieldTable::default())
            .await?;
        let options = lapin::options::QueueBindOptions::default();
        channel
            .queue_bind(queue.as_str().into(), events.into(), "rejected".into(), options, FieldTable::default())
            .await?;
        let mut events = consume(channel, &queue, 10).await?;
        let mut publisher = Publisher::open(&endpoint(&setup.vhost().amqp())?).await?;
        let exchange = names::push_exchange("ticker");

        service.push_bytes(format!("\u{feff}{}", price(0)).as_bytes()).await?;
        let text = Strange::Native(bytes::Bytes::new(), BodyKind::Value);
        publisher.publish(&exchange, &text, price(1).to_string().as_bytes()).await?;
        publisher.publish(&exchange, &text, format!("\u{feff}{}", price(2)).as_bytes()).await?;
        assert_eq!(alice.numbers(3).await?, [0, 1, 2], "{delivery}");

        let utf16: Vec<u8> = price(3).to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
        let brotli = wirepost_amqp::v091::Properties::default()
            .with_text(wirepost_amqp::v091::Property::ContentEncoding, b"br")
            .persistent();
        service.push_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03").await?;
        service.push_bytes(&[&b"\xff\xfe"[..], &utf16].concat()).await?;
        publisher.publish(&exchange, &Strange::Classic(Vec::new(), brotli), b"\x0b\x02\x80").await?;
        publisher.publish(&exchange, &text, b"hello").await?;
        for words in ["gzip", "UTF-16", "content-encoding is \"br\"", "amqp-value"] {
            let event: Value = serde_json::from_slice(&next_body(&mut events).await?)?;
            let description = event["description"].as_str().context("a description")?;
            assert!(description.contains(words) && event["reason"] == "invalid", "{delivery}: {event}");
        }
        eventually("counted", PATIENCE, || async {
            Ok(edge.count("wirepost_edge_rejected_pushes_total{kind=\"invalid\"}").await? == 4)
        })
        .await?;
    }
    Ok(())
}
