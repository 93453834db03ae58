//! What a client can repeat costs it something: a flood of anything is read at a pace that nobody else notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use wirepost_testing::client::Refused;
use wirepost_testing::edge::Edge;
use wirepost_testing::floods::{self, Flood, Neighbour};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::usage;

/// Frames at once, those a second, and how many a new connection may be ahead of what is remembered of the last one.
const BURST: u64 = 200;
const PER_SECOND: f64 = 50.0;
const AHEAD: u64 = 25;
/// Frames of one flood: what they take on the way fits the socket's buffers.
const FLOOD: usize = 2000;

const SLOWED: &str = "wirepost_edge_slowed_total{kind=\"frames\"}";

fn allowed(since: Instant) -> u64 {
    BURST + (since.elapsed().as_secs_f64() * PER_SECOND).ceil() as u64
}

/// A frame of a message that does not end.
fn fragment(kind: Data) -> Message {
    Message::Frame(Frame::message(Vec::new(), OpCode::Data(kind), false))
}

async fn frames_in(edge: &Edge) -> Result<u64> {
    edge.count("wirepost_edge_frames_total{kind=\"in\"}").await
}

#[tokio::test]
async fn a_flood_of_anything_is_slowed() -> Result<()> {
    let limits = "limits: {messageBytes: 1000, messagesPerSecond: 10000, burst: 20000}";
    let wide = PAYMENTS.replace("limits: {messagesPerSecond: 10000, burst: 20000}", limits);
    let narrow = PAYMENTS
        .replace("name: payments", "name: narrow")
        .replace("limits: {messagesPerSecond: 10000, burst: 20000}", "limits: {messagesPerSecond: 1, burst: 1}");
    let setup = Setup::new(&[&wide, &narrow]).await?;
    let edge = setup.edge("e1").start().await?;
    let text = |value: serde_json::Value| Message::text(value.to_string());
    let order = json!({"id": "o", "messageType": "order.placed"});
    let mut slowed = 0;
    for (kind, business, frame) in [
        ("over the rate", "narrow", text(order.clone())),
        ("unknown route", "payments", text(json!({"id": "u", "messageType": "no.such.route"}))),
        ("forged sender", "payments", text(json!({"id": "f", "messageType": "order.placed", "fromUniqueId": "bob"}))),
        ("not allowed", "payments", text(json!({"id": "n", "messageType": "cart.share", "toUniqueId": "*"}))),
        ("reserved", "payments", text(json!({"id": "r", "messageType": "wirepost.begin"}))),
        ("expired", "payments", text(json!({"id": "e", "messageType": "chat.a", "toUniqueId": "b", "expiresAt": 1}))),
        ("schema", "payments", text(json!({"id": "s", "messageType": "qr.refresh", "content": {}}))),
        ("too large", "payments", text(json!({"messageType": "order.placed", "content": "x".repeat(1000)}))),
        ("malformed", "payments", Message::text("{")),
        ("unknown op", "payments", text(json!({"op": "dance"}))),
        ("ping op", "payments", text(json!({"op": "ping"}))),
        ("refresh", "payments", text(json!({"op": "refresh", "token": "forged"}))),
        ("received", "payments", text(json!({"op": "received", "ids": ["a"]}))),
        ("ping", "payments", Message::Ping("p".into())),
        ("pong", "payments", Message::Pong("p".into())),
        ("empty fragment", "payments", fragment(Data::Continue)),
    ] {
        let client_type = if kind == "schema" { "h5" } else { "app" };
        let mut client = edge.client(kind, client_type).business(business).connect().await?;
        let (before, began) = (frames_in(&edge).await?, Instant::now());
        if kind == "empty fragment" {
            client.send_message(fragment(Data::Text)).await?;
        }
        for _ in 0..FLOOD {
            client.send_message(frame.clone()).await?;
        }
        slowed += 1;
        edge.await_metric(SLOWED, f64::from(slowed)).await.with_context(|| format!("{kind} is never slowed"))?;
        let read = frames_in(&edge).await? - before;
        // The last one's connection may end a moment later.
        assert!(read <= allowed(began) + AHEAD, "{kind}: {read} frames were read in {:?}", began.elapsed());
        client.reset();
        slowed = edge.count(SLOWED).await? as u32;
    }
    edge.client("neighbour", "app").connect().await?.send_acked(&order).await?;
    Ok(())
}

/// Memory that a flood may make an edge take.
const FLOOD_MEMORY: u64 = 192 << 20;

#[tokio::test]
async fn whatever_floods_an_edge_the_clients_of_others_are_served_and_its_probes_answer() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, &floods::declaration()]).await?;
    let edge = setup.edge("e1").log_filter("info").start().await?;
    let mut neighbour = Neighbour::connect(&edge, "order.placed").await?;
    neighbour.served(&edge, "till.notice").await?;
    let before = usage::resident(edge.pid)?.now;
    for flood in Flood::ALL {
        let prepared = flood.prepare(&edge).await?;
        let flooding = join_all((0..4).map(|number| prepared.run(&edge, number)));
        let served = async {
            for _ in 0..3 {
                neighbour.served(&edge, "till.notice").await.with_context(|| format!("beside a flood of {flood:?}"))?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            served = served => served?,
            _ = flooding => anyhow::bail!("a flood ended"),
        }
        let grown = usage::resident(edge.pid)?.most.saturating_sub(before);
        ensure!(grown < FLOOD_MEMORY, "{flood:?} takes {grown} bytes");
    }
    Ok(())
}

#[tokio::test]
async fn messages_that_are_taken_cost_nothing_of_it() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    for n in 0..1000 {
        alice.send(&json!({"id": n.to_string(), "messageType": "order.placed"})).await?;
    }
    for n in 0..1000 {
        alice.ack(&n.to_string()).await?;
    }
    assert_eq!(edge.count(SLOWED).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_reconnect_does_not_clear_what_a_client_owes() -> Result<()> {
    const ROUNDS: u64 = 6;
    const EACH: u64 = 100;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let began = Instant::now();
    for round in 0..ROUNDS {
        let mut alice = edge.client("alice", "app").connect().await?;
        for n in 0..EACH {
            alice.send(&json!({"id": n.to_string(), "messageType": "no.such.route"})).await?;
        }
        for n in 0..EACH {
            alice.nack(&n.to_string()).await?;
        }
        // With a goodbye, and without.
        if round % 2 == 0 { alice.leave().await? } else { alice.reset() }
    }
    let (refused, most) = (ROUNDS * EACH, allowed(began) + ROUNDS * AHEAD);
    assert!(refused <= most, "{refused} refusals in {:?}, {most} are allowed", began.elapsed());
    // Nobody else pays for it.
    let bob = Instant::now();
    let mut client = edge.client("bob", "app").connect().await?;
    for n in 0..EACH {
        client.send(&json!({"id": n.to_string(), "messageType": "no.such.route"})).await?;
    }
    for n in 0..EACH {
        client.nack(&n.to_string()).await?;
    }
    assert!(bob.elapsed() < Duration::from_mins(1));
    Ok(())
}

#[tokio::test]
async fn an_identity_that_connects_in_a_loop_is_told_to_wait_and_others_get_in() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let attempts = join_all((0..300).map(async |_| {
        let url = edge.token("payments", "alice", "app", &[]).await?;
        edge.client("alice", "app").token(url.rsplit('/').next().unwrap_or_default()).upgrade().await
    }))
    .await;
    let refused: Vec<_> = attempts.iter().filter_map(|attempt| attempt.as_ref().err()).collect();
    assert!(!refused.is_empty(), "all of 300 got in");
    for error in refused {
        let refused = error.downcast_ref::<Refused>().context("not refused as HTTP")?;
        assert_eq!((refused.status, &refused.body["result"]), (503, &json!(50_302)), "{}", refused.body);
    }
    assert!(edge.count("wirepost_edge_refused_total{kind=\"connect_rate\"}").await? > 0);
    edge.client("bob", "app").connect().await?;
    Ok(())
}
