//! Messages of clients on their way in: slow ones arrive, unfinished ones end, and all together are bounded (issue: bytes on their way did not
//! count as life, and unfinished messages held memory for as long as their clients answered pings).

#![expect(clippy::float_cmp, reason = "metrics are read as floats and count whole things")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::raw::{Raw, upgrade};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::usage;

/// [`PAYMENTS`] with the largest messages that may be declared.
fn largest() -> String {
    PAYMENTS.replace("burst: 20000}", "burst: 20000, messageBytes: 1048576}")
}

fn order(id: &str, bytes: usize) -> String {
    let empty = json!({"id": id, "messageType": "order.placed", "content": ""}).to_string();
    json!({"id": id, "messageType": "order.placed", "content": "x".repeat(bytes - empty.len())}).to_string()
}

fn part(bytes: usize, first: bool) -> Message {
    let kind = if first { Data::Text } else { Data::Continue };
    Message::Frame(Frame::message(vec![b'x'; bytes], OpCode::Data(kind), false))
}

/// A text frame, masked with zeros.
fn frame(text: &str) -> Vec<u8> {
    let mut bytes = vec![0x81, 0x80 | 127];
    bytes.extend((text.len() as u64).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(text.as_bytes());
    bytes
}

async fn socket(edge: &Edge) -> Result<Raw> {
    let url = edge.token("payments", "alice", "app", &[]).await?;
    let (_, ticket) = url.split_once("/socket/").context("a URL")?;
    let mut raw = Raw::connect(edge.public).await?;
    raw.send(upgrade(&format!("/socket/{ticket}"), "sec-websocket-protocol: wirepost.v1\r\n")).await?;
    ensure!(raw.head().await?.starts_with("http/1.1 101"));
    Ok(raw)
}

#[tokio::test]
async fn a_slow_upload_outlasts_the_heartbeat_and_arrives() -> Result<()> {
    let setup = Setup::new(&[&largest()]).await?;
    let edge = setup.edge("e1").flag("heartbeat-seconds", 3).flag("read-timeout-seconds", 4).start().await?;
    let mut alice = socket(&edge).await?;
    // In one frame, and longer than two heartbeats: nothing but its bytes shows that somebody is there.
    for piece in frame(&order("slow", 1 << 20)).chunks(40 << 10) {
        alice.send(piece).await.context("the edge gave up")?;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    edge.await_metric("wirepost_edge_acks_total", 1.0).await?;
    // A client that has sent nothing more counts as idle again.
    edge.await_metric("wirepost_edge_closes_total{kind=\"vanished\"}", 1.0).await
}

#[tokio::test]
async fn an_unfinished_message_ends_in_time_however_alive_its_client_is() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("heartbeat-seconds", 3).flag("read-timeout-seconds", 4).start().await?;
    // Fragments, and pongs to every ping in between.
    let mut alice = edge.client("alice", "app").connect().await?;
    alice.send_message(part(1000, true)).await?;
    alice.send_message(part(1000, false)).await?;
    assert_eq!(alice.close_code().await?, 4008);
    // Empty ones bring it no further.
    let mut bob = edge.client("bob", "app").connect().await?;
    bob.send_message(part(1000, true)).await?;
    let begun = Instant::now();
    while bob.send_message(part(0, false)).await.is_ok() {
        ensure!(begun.elapsed() < PATIENCE, "empty fragments keep it forever");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A trickle of bytes keeps the connection alive, and not the message.
    let mut carol = socket(&edge).await?;
    let order = frame(&order("trickle", 10_000));
    let (mut sent, begun) = (0, Instant::now());
    while carol.send(&order[sent..=sent]).await.is_ok() {
        sent += 1;
        ensure!(begun.elapsed() < PATIENCE, "{sent} bytes keep it for {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    edge.await_metric("wirepost_edge_closes_total{kind=\"too_slow\"}", 3.0).await?;
    assert_eq!(edge.metric("wirepost_edge_inbound_bytes").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn uploads_beyond_the_budget_wait_for_each_other_and_all_arrive() -> Result<()> {
    const SOCKETS: usize = 24;
    const BUDGET: usize = 4 << 20;
    let setup = Setup::new(&[&largest()]).await?;
    let edge = setup.edge("e1").flag("inbound-bytes", BUDGET).start().await?;
    let mut clients = Vec::new();
    for n in 0..SOCKETS {
        clients.push(edge.client(&format!("app-{n}"), "app").connect().await?);
    }
    let mut uploads = JoinSet::new();
    for (n, mut client) in clients.into_iter().enumerate() {
        uploads.spawn(async move {
            let id = format!("up-{n}");
            let text = order(&id, 400_000);
            // In fragments as well as in one piece.
            if n % 2 == 0 {
                client.send_text(text).await?;
            } else {
                let (first, rest) = text.split_at(150_000);
                let fragment =
                    |text: &str, kind, last| Message::Frame(Frame::message(text.to_owned(), OpCode::Data(kind), last));
                client.send_message(fragment(first, Data::Text, false)).await?;
                client.send_message(fragment(rest, Data::Continue, true)).await?;
            }
            client.ack(&id).await?;
            anyhow::Ok(client)
        });
    }
    let mut done = Vec::new();
    while let Some(upload) = uploads.join_next().await {
        done.push(upload??);
        let inbound = edge.metric("wirepost_edge_inbound_bytes").await?;
        ensure!(inbound <= BUDGET as f64, "{inbound} bytes of {BUDGET}");
    }
    assert_eq!(edge.metric("wirepost_edge_inbound_bytes").await?, 0.0);
    assert_eq!(done.len(), SOCKETS);
    Ok(())
}

#[tokio::test]
async fn many_unfinished_messages_hold_little_and_make_room_for_those_that_end() -> Result<()> {
    const SOCKETS: usize = 200;
    const BYTES: usize = 126 << 10;
    let setup = Setup::new(&[&largest(), &largest().replace("name: payments", "name: neighbour")]).await?;
    let edge = setup.edge("e1").flag("inbound-bytes", 8 << 20).start().await?;
    let mut colleague = edge.client("colleague", "app").connect().await?;
    let mut neighbour = edge.client("neighbour", "app").business("neighbour").connect().await?;
    let mut clients = Vec::new();
    for n in 0..SOCKETS {
        clients.push(edge.client(&format!("app-{n}"), "app").connect().await?);
    }
    let before = usage::resident(edge.pid)?.now;
    let mut hoarders = JoinSet::new();
    for mut client in clients {
        hoarders.spawn(async move {
            let _ = client.send_message(part(BYTES, true)).await;
            let _ = client.send_message(part(BYTES, false)).await;
            // Answers pings until it is sent away.
            let _ = client.close_code().await;
        });
    }
    // The budget is taken: 4 MiB of it are the business's.
    edge.await_metric("wirepost_edge_inbound_bytes", f64::from(3 << 20)).await?;
    let small = json!({"id": "small", "messageType": "order.placed"});
    colleague.send_acked(&small).await.context("small messages wait for nobody")?;
    // The other half is for others.
    neighbour.send_text(order("large", 500_000)).await?;
    neighbour.ack("large").await?;
    let grown = usage::resident(edge.pid)?.most.saturating_sub(before);
    ensure!(grown < 32 << 20, "{grown} bytes more for {SOCKETS} times twice {BYTES} bytes");
    eventually("those who wait and those who hold are sent away", Duration::from_mins(1), || async {
        Ok(edge.metric("wirepost_edge_inbound_bytes").await? == 0.0)
    })
    .await?;
    ensure!(edge.metric("wirepost_edge_closes_total{kind=\"overloaded\"}").await? > 0.0);
    // And then there is room in the business itself.
    colleague.send_text(order("large", 500_000)).await?;
    colleague.ack("large").await?;
    hoarders.abort_all();
    Ok(())
}
