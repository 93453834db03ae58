//! Pushes to everyone.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wirepost_testing::{service::Service, setup::Setup, usage};

use crate::clients::{self, Socket};

/// A push to everyone, with the time of its publish.
fn push(content: &str) -> Value {
    json!({"messageType": "down", "toUniqueId": "*", "content": content, "sent": micros()})
}

pub(crate) fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Reads `count` pushes; how long each was on its way.
pub(crate) async fn read(mut socket: Socket, count: usize) -> Result<(Socket, Vec<Duration>)> {
    let mut delays = Vec::with_capacity(count);
    while delays.len() < count {
        let message = socket.next().await.context("the edge closed")??;
        let text = message.to_text()?;
        if let Some((_, rest)) = text.split_once("\"sent\":") {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            delays.push(Duration::from_micros(micros().saturating_sub(digits.parse()?)));
        }
    }
    Ok((socket, delays))
}

async fn measure(setup: &Setup, name: &str, sockets: usize, messages: usize, pause: Duration) -> Result<()> {
    let edge = setup.edge("fanout").quiet().start().await?;
    let service = Service::connect(setup).await?;
    let content = "x".repeat(200);
    let mut readers = JoinSet::new();
    for socket in clients::connect(setup, &edge, sockets, None).await? {
        readers.spawn(read(socket, messages));
    }
    let before = usage::of(edge.pid)?;
    let begun = Instant::now();
    if pause.is_zero() {
        service.push_all((0..messages).map(|_| push(&content))).await?;
    } else {
        let mut tick = tokio::time::interval(pause);
        for _ in 0..messages {
            tick.tick().await;
            service.push(&push(&content)).await?;
        }
    }
    let (mut delays, mut open) = (Vec::new(), Vec::new());
    while let Some(reader) = readers.join_next().await {
        let (socket, of_one) = reader??;
        delays.extend(of_one);
        open.push(socket);
    }
    let (took, after) = (begun.elapsed(), usage::of(edge.pid)?);
    delays.sort();
    println!(
        "fanout, {name}: {:.1} us of CPU a delivery in the edge, p50 {:.1?} p99 {:.1?} ({sockets} sockets, {messages} pushes of 200 B, {:.0} deliveries/s)",
        usage::each(before, after, sockets * messages),
        usage::percentile(&delays, 0.5),
        usage::percentile(&delays, 0.99),
        (sockets * messages) as f64 / took.as_secs_f64(),
    );
    Ok(())
}

/// 1,000 sockets, 20 pushes a second.
pub(crate) async fn paced(setup: &Setup) -> Result<()> {
    measure(setup, "20 a second", 1_000, 200, Duration::from_millis(50)).await
}

/// 10,000 sockets, as fast as it goes.
pub(crate) async fn at_full_rate(setup: &Setup) -> Result<()> {
    measure(setup, "full rate", 10_000, 100, Duration::ZERO).await
}
