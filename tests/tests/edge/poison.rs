//! A poison message ends in `dead`, and only that one (CASES 8).

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use serde_json::json;
use wirepost_core::names;
use wirepost_testing::broker::{consume, depth, next};
use wirepost_testing::service::{Service, body, header, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

#[tokio::test]
async fn garbage_on_the_push_exchange_is_skipped_and_counted_on_every_edge() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut clients = [e1.client("alice", "app").connect().await?, e2.client("alice", "app").connect().await?];
    let cursor = clients[0].cursor();
    let garbage: [&[u8]; 7] = [
        b"{",
        b"",
        b"[1]",
        &vec![b' '; 3 << 20],
        b"\xff\xfe",
        b"null",
        b"{\"messageType\":\"a\",\"messageType\":\"b\"}",
    ];
    for garbage in garbage {
        service.push_bytes(garbage).await?;
    }
    service.push(&payment("alice", 1)).await?;
    for alice in &mut clients {
        assert_eq!(alice.numbers(1).await?, [1]);
    }
    for edge in [&e1, &e2] {
        let counted = |kind: &str| format!("wirepost_edge_rejected_pushes_total{{kind=\"{kind}\"}}");
        assert_eq!(edge.count(&counted("invalid")).await?, garbage.len() as u64 - 1);
        assert_eq!(edge.count(&counted("too_large")).await?, 1);
    }
    // It is no obstacle to those who come back, either.
    let e3 = setup.edge("e3").start().await?;
    let mut alice = e3.client("alice", "app").cursor(cursor).connect().await?;
    assert!(alice.resumed());
    assert_eq!(alice.numbers(1).await?, [1]);
    Ok(())
}

/// Alice sends m1, m2 and m3.
async fn three_orders(setup: &Setup) -> Result<Service> {
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    for id in ["m1", "m2", "m3"] {
        alice.send_acked(&json!({"id": id, "messageType": "order.placed", "content": id})).await?;
    }
    Service::connect(setup).await
}

/// Ids and reasons of this many messages in `dead`.
async fn dead(service: &Service, count: usize) -> Result<Vec<(String, String)>> {
    let channel = service.connection.create_channel().await?;
    let mut dead = consume(&channel, &names::dead_queue("payments"), 10).await?;
    let mut ids = Vec::new();
    while ids.len() < count {
        let delivery = next(&mut dead).await?;
        let reason = header(&delivery, "x-first-death-reason").context("a reason")?;
        assert_eq!(header(&delivery, "x-first-death-queue").as_deref(), Some("wirepost.payments.q.orders"));
        ids.push((body(&delivery)?["id"].as_str().context("an id")?.to_owned(), reason));
        delivery.ack(BasicAckOptions::default()).await?;
    }
    ids.sort();
    Ok(ids)
}

#[tokio::test]
async fn a_message_that_its_consumer_fails_on_ends_in_dead_and_only_that_one() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let service = three_orders(&setup).await?;
    let mut orders = service.consume("orders", 10).await?;
    let (mut done, mut failed) = (Vec::new(), 0);
    let queue = names::dead_queue("payments");
    while done.len() < 2 || depth(&service.channel, &queue).await? == 0 {
        // Nothing more comes once it is in `dead`.
        let Ok(delivery) = tokio::time::timeout(Duration::from_millis(100), orders.next()).await else { continue };
        let delivery = delivery.context("the consumer ended")??;
        let id = body(&delivery)?["id"].as_str().context("an id")?.to_owned();
        if id == "m1" {
            failed += 1;
            assert!(failed < 100, "it comes again forever");
            // RabbitMQ 4.3 counts `basic.reject` as a failure, and `basic.nack` with requeue not at all.
            delivery.reject(BasicRejectOptions { requeue: true }).await?;
        } else {
            delivery.ack(BasicAckOptions::default()).await?;
            done.push(id);
        }
    }
    assert_eq!(done, ["m2", "m3"]);
    assert_eq!(failed, 21, "the default limit of 20 repeats");
    assert_eq!(dead(&service, 1).await?, [("m1".to_owned(), "delivery_limit".to_owned())]);
    assert_eq!(service.depth("orders").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_message_that_its_consumer_gives_up_is_in_dead_at_once() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let service = three_orders(&setup).await?;
    let mut orders = service.consume("orders", 10).await?;
    for id in ["m1", "m2", "m3"] {
        let delivery = next(&mut orders).await?;
        assert_eq!(body(&delivery)?["id"], id);
        if id == "m1" {
            delivery.reject(BasicRejectOptions { requeue: false }).await?;
        } else {
            delivery.ack(BasicAckOptions::default()).await?;
        }
    }
    assert_eq!(dead(&service, 1).await?, [("m1".to_owned(), "rejected".to_owned())]);
    assert_eq!(service.depth("orders").await?, 0);
    Ok(())
}

#[tokio::test]
async fn what_a_crashing_consumer_had_fetched_as_well_goes_to_dead_with_it_and_none_is_lost() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let service = three_orders(&setup).await?;
    let queue = names::dead_queue("payments");
    let mut crashes = 0;
    while depth(&service.channel, &queue).await? < 3 {
        let crashing = Service::connect(&setup).await?;
        let mut orders = crashing.consume("orders", 10).await?;
        if let Ok(delivery) = tokio::time::timeout(Duration::from_millis(500), orders.next()).await {
            delivery.context("the consumer ended")??;
            crashes += 1;
            assert!(crashes < 30, "they come again forever");
        }
        crashing.connection.close(200, "crash".into()).await?;
    }
    let reason = "delivery_limit".to_owned();
    let all = ["m1", "m2", "m3"].map(|id| (id.to_owned(), reason.clone()));
    assert_eq!(dead(&service, 3).await?, all, "the broker can't know which of them it was");
    Ok(())
}
