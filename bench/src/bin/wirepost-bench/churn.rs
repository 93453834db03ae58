//! Clients that connect, send, drop and resume without end: does the edge keep memory of them?

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use lapin::{options::BasicConsumeOptions, types::FieldTable};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tokio_tungstenite::tungstenite::Message;
use wirepost_bench::tickets::Mint;
use wirepost_core::names;
use wirepost_testing::{
    broker::{PATIENCE, eventually},
    edge::Edge,
    service::Service,
    setup::Setup,
    usage::{self, Usage},
};

use crate::{clients, receive::body, returning::Away};

/// Connected at the same time, at most.
const CLIENTS: usize = 100;
/// Connections of a session: a ticket, then resume tokens.
const CONNECTIONS: usize = 4;
/// Messages of a connection.
const MESSAGES: usize = 5;
/// Longest pause of a client before it connects.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two pushes to everyone.
const PUSH_PAUSE: Duration = Duration::from_millis(50);
/// Without clients, before memory is measured.
const SETTLE: Duration = Duration::from_secs(15);
/// Points of the curve.
const POINTS: u32 = 30;

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    sessions: AtomicU64,
    nacks: AtomicU64,
}

pub(crate) async fn run(setup: &Setup, seconds: u64) -> Result<()> {
    // A small log is full before the beginning is measured.
    let edge = Arc::new(setup.edge("churn").quiet().flag("log-bytes", 256 << 10).start().await?);
    let (service, mint) = (Service::connect(setup).await?, Arc::new(Mint::load(setup).await?));
    let mut beside = JoinSet::new();
    beside.spawn(drain(Service::connect(setup).await?));
    beside.spawn(push(service));
    let counts = Arc::new(Counts::default());
    let length = Duration::from_secs(seconds);
    let warm_up = (length / 10).clamp(Duration::from_secs(10), Duration::from_mins(5));
    println!("churn: {CLIENTS} clients, {} s after {} s to warm up", length.as_secs(), warm_up.as_secs());
    let mut churn = async |length| {
        let churning = churn(&edge, &mint, &counts, length);
        tokio::select! {
            result = churning => result,
            Some(ended) = beside.join_next() => bail!("beside the clients: {ended:?}"),
        }
    };
    churn(warm_up).await?;
    let (begun, before) = (counts.connections.load(Ordering::Relaxed), settled(&edge).await?);
    churn(length).await?;
    let (connections, after) = (counts.connections.load(Ordering::Relaxed) - begun, settled(&edge).await?);
    let grown = after.memory as f64 - before.memory as f64;
    println!(
        "churn: {:.1} MiB at the beginning, {:.1} MiB after {connections} connections and {} nacks: {:+.1} MiB, {:+.1} bytes a connection",
        mib(before),
        mib(after),
        counts.nacks.load(Ordering::Relaxed),
        grown / f64::from(1 << 20),
        grown / connections.max(1) as f64,
    );
    Ok(())
}

fn mib(usage: Usage) -> f64 {
    usage.memory as f64 / f64::from(1 << 20)
}

/// What the edge has once all clients are gone.
async fn settled(edge: &Edge) -> Result<Usage> {
    let gone = || async { Ok(edge.count("wirepost_edge_connections").await? == 0) };
    eventually("all clients are gone", PATIENCE, gone).await?;
    sleep(SETTLE).await;
    usage::of(edge.pid)
}

/// Lets clients come and go for this time, and prints the curve.
async fn churn(edge: &Edge, mint: &Arc<Mint>, counts: &Arc<Counts>, length: Duration) -> Result<()> {
    let (begun, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (mint, counts, stop) = (Arc::clone(mint), Arc::clone(counts), Arc::clone(&stop));
        let address = edge.public;
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let session = counts.sessions.fetch_add(1, Ordering::Relaxed);
                self::session(address, mint.ticket(&format!("user-{number}-{session}")), &counts).await?;
            }
            anyhow::Ok(())
        });
    }
    while begun.elapsed() < length {
        tokio::select! {
            Some(ended) = clients.join_next() => ended??,
            () = sleep((length / POINTS).max(Duration::from_secs(1))) => println!(
                "churn: {:5.0} s, {:8} connections, {:6.1} MiB private, {:6.1} MiB resident, {} open",
                begun.elapsed().as_secs_f64(),
                counts.connections.load(Ordering::Relaxed),
                mib(usage::of(edge.pid)?),
                usage::resident(edge.pid)?.now as f64 / f64::from(1 << 20),
                edge.count("wirepost_edge_connections").await?,
            ),
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

/// An identity that nobody had before: connects, sends, drops, and resumes where it was.
async fn session(address: std::net::SocketAddr, mut ticket: String, counts: &Counts) -> Result<()> {
    for number in 0..CONNECTIONS {
        sleep(PAUSE.mul_f64(rand::random())).await;
        let (mut socket, welcome) = clients::open(address, &ticket, None).await?;
        let mut away = Away::from_welcome(&welcome)?;
        ensure!(number == 0 || welcome.to_text()?.contains("\"resumed\":true"), "not resumed: {welcome}");
        counts.connections.fetch_add(1, Ordering::Relaxed);
        for id in 0..MESSAGES {
            socket.feed(Message::text(body(id))).await?;
        }
        socket.flush().await?;
        let mut unanswered = MESSAGES;
        while unanswered > 0 {
            let message = socket.next().await.context("the edge closed")??;
            let frame: Value = serde_json::from_str(message.to_text()?)?;
            if let Some(cursor) = frame["cursor"].as_str() {
                cursor.clone_into(&mut away.cursor);
            }
            match frame["op"].as_str() {
                Some("ack") => unanswered -= 1,
                Some("nack") if frame["retryable"] == true => {
                    counts.nacks.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(frame["retryAfterMs"].as_u64().unwrap_or(0))).await;
                    let id = frame["id"].as_str().and_then(|id| id.parse().ok()).context("no id")?;
                    socket.send(Message::text(body(id))).await?;
                }
                Some("nack") => bail!("{frame}"),
                _ => {}
            }
        }
        // Every other one without a goodbye.
        if number % 2 == 0 {
            socket.close(None).await?;
        }
        ticket = away.ticket();
    }
    Ok(())
}

/// Takes what clients send, so that the queue does not grow.
async fn drain(service: Service) -> Result<()> {
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let queue = names::route_queue("bench", "up");
    let channel = service.connection.create_channel().await?;
    let mut taken = channel.basic_consume(queue.into(), "".into(), no_ack, FieldTable::default()).await?;
    while let Some(delivery) = taken.next().await {
        delivery?;
    }
    bail!("the consumer ended")
}

async fn push(service: Service) -> Result<()> {
    loop {
        service.push(&json!({"messageType": "down", "toUniqueId": "*", "content": "x".repeat(200)})).await?;
        sleep(PUSH_PAUSE).await;
    }
}
