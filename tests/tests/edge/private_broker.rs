//! What needs a broker of its own: alarms, an empty disk, a crash (CASES 3, 7 and 8). Each test starts one; run few at a time.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use lapin::options::BasicAckOptions;
use serde_json::json;
use wirepost_core::names;
use wirepost_testing::broker::{PATIENCE, PrivateBroker, consume, eventually, next};
use wirepost_testing::service::{Service, body, header, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// The edge's answer to a publish that is not confirmed is due after 2 s; the rest is a busy machine's.
const ANSWER: Duration = Duration::from_secs(4);

#[tokio::test]
async fn during_an_alarm_senders_are_told_in_time_and_repeats_are_recognisable() -> Result<()> {
    let broker = PrivateBroker::start("alarm", &[]).await?;
    let setup = Setup::on(broker.vhost().await?, &[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    let cursor = alice.cursor();
    service.push_all((0..100).map(|n| payment("alice", n))).await?;
    assert_eq!(alice.numbers(100).await?.len(), 100);
    alice.send_acked(&json!({"id": "x0", "messageType": "order.placed"})).await?;

    broker.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await?;
    let order = json!({"id": "x1", "messageType": "order.placed"});
    let mut nacks = Vec::new();
    for _ in 0..3 {
        alice.send(&order).await?;
        let nack = alice.control_within("nack", ANSWER).await?;
        assert_eq!((&nack["id"], &nack["retryable"]), (&json!("x1"), &json!(true)), "{nack}");
        assert!(nack["code"] == "broker_unavailable" || nack["code"] == "timeout", "{nack}");
        assert!(nack["mayHaveArrived"].is_boolean(), "{nack}");
        nacks.push(nack);
    }
    let mut push = payment("alice", 100);
    push["id"] = json!("x2");
    for _ in 0..2 {
        let (status, answer) = tokio::time::timeout(ANSWER, e1.post(&push)).await.context("no answer")??;
        assert!(status == 503 || status == 504, "{answer}");
        assert_eq!((&answer["data"]["id"], &answer["data"]["retryable"]), (&json!("x2"), &json!(true)), "{answer}");
        assert_eq!(answer["data"]["mayHaveArrived"], status == 504, "{answer}");
    }
    // Readers are not blocked: a client that comes back to an edge that has read nothing gets what it missed.
    let mut back = e2.client("alice", "app").cursor(cursor).connect().await?;
    assert!(back.resumed(), "{}", back.welcome);
    assert_eq!(back.numbers(100).await?, (0..100).collect::<Vec<_>>());
    assert_eq!(e1.admin("/livez").await?.0, 200);
    assert_eq!(e1.readyz().await?.0, 200);

    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await?;
    eventually("messages are taken again", PATIENCE, || async { alice_sends(&e1, "x3").await }).await?;
    let mut orders = service.consume("orders", 100).await?;
    let mut x1 = 0;
    loop {
        let delivery = next(&mut orders).await?;
        let envelope = body(&delivery)?;
        let id = envelope["id"].as_str().context("an id")?;
        assert_eq!(delivery.properties.message_id().as_ref().map(ToString::to_string).as_deref(), Some(id));
        match id {
            "x0" => {}
            "x1" => x1 += 1,
            "x3" => break,
            other => panic!("{other} was never sent"),
        }
    }
    // Where it said "not arrived", it did not.
    let may_have = nacks.iter().filter(|nack| nack["mayHaveArrived"] == true).count();
    assert!(x1 <= may_have, "{x1} arrived of {nacks:?}");
    eventually("pushes by HTTP are taken again", PATIENCE, || async { Ok(e1.post(&push).await?.0 == 200) }).await?;
    let arrived = alice.push().await?;
    assert_eq!((&arrived["id"], &arrived["content"]["n"]), (&json!("x2"), &json!(100)));
    Ok(())
}

async fn alice_sends(edge: &wirepost_testing::edge::Edge, id: &str) -> Result<bool> {
    let mut alice = edge.client("alice", "app").connect().await?;
    alice.send(&json!({"id": id, "messageType": "order.placed"})).await?;
    Ok(alice.answer().await?["op"] == "ack")
}

/// As without a majority, or with a leader that hangs: RabbitMQ gives the channel no more credit, and would read nothing more from its
/// connection.
#[tokio::test]
async fn a_queue_that_does_not_answer_holds_up_no_other_business() -> Result<()> {
    const EACH: usize = 60;
    let broker = PrivateBroker::start("silent", &[]).await?;
    let vhost = broker.vhost().await?;
    let leader = format!("whereis('{}_{}')", vhost.name, names::route_queue("payments", "orders"));
    let setup = Setup::on(vhost, &[PAYMENTS, &PAYMENTS.replace("payments", "other")]).await?;
    let edge = setup.edge("e1").start().await?;
    let order = json!({"id": "m", "messageType": "order.placed", "content": "x".repeat(200)}).to_string();
    let mut many = try_join_all((0..24).map(|n| edge.client(&format!("user-{n}"), "app").connect())).await?;
    // Until the edge knows that the broker is fast, and lets as much be on its way as it ever does.
    for _ in 0..3 {
        try_join_all(many.iter_mut().map(async |client| {
            for _ in 0..EACH {
                client.send_text(order.as_str()).await?;
            }
            for _ in 0..EACH {
                client.ack("m").await?;
            }
            anyhow::Ok(())
        }))
        .await?;
    }
    // One on each lane.
    let mut others = Vec::new();
    for n in 0..2 {
        others.push(edge.client(&format!("other-{n}"), "app").business("other").connect().await?);
    }
    let order_of_other = json!({"id": "o", "messageType": "order.placed"});
    broker.ctl(&["eval", &format!("sys:suspend({leader}).")]).await?;
    for client in &mut many {
        for _ in 0..EACH {
            client.send_text(order.as_str()).await?;
        }
    }
    edge.await_metric("wirepost_broker_in_flight", 200.0).await?;
    for _ in 0..20 {
        for other in &mut others {
            other.send_acked(&order_of_other).await?;
        }
    }
    let nack = many[0].nack("m").await?;
    assert_eq!((&nack["retryable"], &nack["code"]), (&json!(true), &json!("timeout")), "{nack}");
    broker.ctl(&["eval", &format!("sys:resume({leader}).")]).await?;
    eventually("its messages are taken again", PATIENCE, || async { alice_sends(&edge, "again").await }).await?;
    Ok(())
}

#[tokio::test]
async fn a_broker_rebuilt_from_an_empty_disk_is_another_life() -> Result<()> {
    let broker = PrivateBroker::start("wiped", &[]).await?;
    let vhost = broker.vhost().await?;
    let path = format!("/api/vhosts/{}", vhost.name);
    let setup = Setup::on(vhost, &[PAYMENTS]).await?;
    let e1 = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = e1.client("alice", "app").connect().await?;
    for n in 0..50 {
        service.push(&payment("alice", n)).await?;
    }
    assert_eq!(alice.numbers(50).await?.len(), 50);
    let cursor = alice.cursor();

    broker.wipe().await?;
    broker.call("PUT", &path, "{}").await?;
    setup.repair().await?;
    let service = Service::connect(&setup).await?;
    service.push_all((0..10).map(|n| payment("other", n))).await?;
    // She was there all the time: her socket is open, she is told, and gets what comes.
    assert_eq!(alice.gap().await?, "incarnation");
    let e2 = setup.edge("e2").start().await?;
    for edge in [&e1, &e2] {
        let mut back = edge.client("alice", "app").cursor(&cursor).connect().await?;
        assert!(!back.resumed(), "{}", back.welcome);
        assert_eq!(back.gap().await?, "incarnation");
        service.push_all((0..60).map(|n| payment("alice", n))).await?;
        assert_eq!(back.numbers(60).await?, (0..60).collect::<Vec<_>>());
        assert_eq!(alice.numbers(60).await?, (0..60).collect::<Vec<_>>());
    }
    alice.sync().await?;
    assert!(alice.controls().is_empty(), "told more than once: {:?}", alice.controls());
    alice.send_acked(&json!({"id": "again", "messageType": "order.placed"})).await?;
    let mut orders = service.consume("orders", 10).await?;
    assert_eq!(next_json(&mut orders).await?["id"], "again");
    Ok(())
}

#[tokio::test]
async fn a_message_that_crashes_its_consumer_ends_in_dead_also_across_a_crash_of_the_broker() -> Result<()> {
    let broker = PrivateBroker::start("poison", &[]).await?;
    let setup = Setup::on(broker.vhost().await?, &[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    for id in ["m1", "m2", "m3"] {
        alice.send_acked(&json!({"id": id, "messageType": "order.placed", "content": id})).await?;
    }
    // A service that dies of m1. One at a time: of what else it had fetched the broker would count each crash as well.
    let (mut done, mut crashes) = (Vec::new(), 0);
    while done.len() < 2 {
        let service = Service::connect(&setup).await?;
        let mut orders = service.consume("orders", 1).await?;
        while done.len() < 2 {
            let delivery = next(&mut orders).await.with_context(|| format!("after {crashes} crashes and {done:?}"))?;
            let id = body(&delivery)?["id"].as_str().context("an id")?.to_owned();
            if id == "m1" {
                crashes += 1;
                break;
            }
            delivery.ack(BasicAckOptions::default()).await?;
            done.push(id);
        }
        assert!(crashes < 30, "m1 comes again forever");
        if crashes == 20 && done.is_empty() {
            broker.kill9().await?;
            broker.start_again().await?;
        } else {
            service.connection.close(200, "crash".into()).await?;
        }
    }
    assert_eq!(done, ["m2", "m3"]);
    let service = Service::connect(&setup).await?;
    let mut dead = consume(&service.channel, &names::dead_queue("payments"), 10).await?;
    let delivery = next(&mut dead).await?;
    assert_eq!(body(&delivery)?["id"], "m1");
    assert_eq!(header(&delivery, "x-first-death-reason").as_deref(), Some("delivery_limit"));
    assert!(header(&delivery, "x-delivery-count").is_some(), "{:?}", delivery.properties);
    assert_eq!(service.depth("orders").await?, 0);
    Ok(())
}
