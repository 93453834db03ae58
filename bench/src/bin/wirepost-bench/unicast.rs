//! Pushes to one identity each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use serde_json::json;
use tokio::task::JoinSet;
use wirepost_testing::{service::Service, setup::Setup, usage};

use crate::{clients, fanout};

const IDENTITIES: usize = 5_000;
const MESSAGES: usize = 50_000;
/// Pushes of the lightly loaded measurement, and the time between two.
const LIGHT: usize = 1_000;
const LIGHT_PAUSE: Duration = Duration::from_millis(5);
/// Of the paced measurement: identities, pushes, pushes a second, publishers.
const PACED: (usize, usize, u32, usize) = (1_000, 9_000, 1_500, 8);

/// CPU of the edge for each push, at the rate that the broker takes from one publisher.
pub(crate) async fn throughput(setup: &Setup) -> Result<()> {
    let edge = setup.edge("unicast").quiet().start().await?;
    let sockets = clients::connect(setup, &edge, IDENTITIES, None).await?;
    let service = Service::connect(setup).await?;
    let content = "x".repeat(200);
    let mut readers = JoinSet::new();
    for mut socket in sockets {
        // Message i goes to user i modulo IDENTITIES: everyone gets the same number.
        readers.spawn(async move {
            let mut left = MESSAGES / IDENTITIES;
            while left > 0 {
                let message = socket.next().await.context("the edge closed")??;
                left -= usize::from(message.to_text()?.contains("\"down\""));
            }
            anyhow::Ok(socket)
        });
    }
    let before = usage::of(edge.pid)?;
    let begun = Instant::now();
    let pushes = (0..MESSAGES)
        .map(|i| json!({"messageType": "down", "toUniqueId": format!("user-{}", i % IDENTITIES), "content": content}));
    service.push_all(pushes).await?;
    let confirmed = begun.elapsed();
    let mut open = Vec::new();
    while let Some(reader) = readers.join_next().await {
        open.push(reader??);
    }
    let after = usage::of(edge.pid)?;
    println!(
        "unicast: {:.1} us of CPU a message in the edge ({MESSAGES} pushes of 200 B to {IDENTITIES} identities, {:.0} msg/s confirmed, all received after {:.1} s)",
        usage::each(before, after, MESSAGES),
        MESSAGES as f64 / confirmed.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
    );
    Ok(())
}

/// From the business's publish to the client, one push at a time.
pub(crate) async fn latency(setup: &Setup) -> Result<()> {
    let edge = setup.edge("latency").quiet().start().await?;
    let mut sockets = clients::connect(setup, &edge, 1, None).await?;
    let socket = sockets.first_mut().context("one socket")?;
    let service = Service::connect(setup).await?;
    let content = "x".repeat(200);
    let (mut arrived, mut confirmed) = (Vec::new(), Vec::new());
    for _ in 0..LIGHT {
        let begun = Instant::now();
        let push = json!({"messageType": "down", "toUniqueId": "user-0", "content": content});
        let receive = async {
            loop {
                let message = socket.next().await.context("the edge closed")??;
                if message.to_text()?.contains("\"down\"") {
                    return anyhow::Ok(begun.elapsed());
                }
            }
        };
        let publish = async { service.push(&push).await.map(|()| begun.elapsed()) };
        let (receipt, confirm) = tokio::try_join!(receive, publish)?;
        arrived.push(receipt);
        confirmed.push(confirm);
        tokio::time::sleep(LIGHT_PAUSE).await;
    }
    arrived.sort();
    confirmed.sort();
    println!(
        "latency, lightly loaded: publish to receipt p50 {:.2?} p99 {:.2?}; publish to confirm p50 {:.2?} p99 {:.2?} ({LIGHT} pushes of 200 B)",
        usage::percentile(&arrived, 0.5),
        usage::percentile(&arrived, 0.99),
        usage::percentile(&confirmed, 0.5),
        usage::percentile(&confirmed, 0.99),
    );
    Ok(())
}

/// From when a push is due to the client, at a steady rate to many clients.
pub(crate) async fn paced(setup: &Setup) -> Result<()> {
    let (identities, pushes, rate, publishers) = PACED;
    let edge = setup.edge("paced").quiet().start().await?;
    let mut readers = JoinSet::new();
    for socket in clients::connect(setup, &edge, identities, None).await? {
        readers.spawn(fanout::read(socket, pushes / identities));
    }
    let content = "x".repeat(200);
    let before = usage::of(edge.pid)?;
    let mut publishing = JoinSet::new();
    for publisher in 0..publishers {
        let (service, content) = (Service::connect(setup).await?, content.clone());
        publishing.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1) / rate * publishers as u32);
            for number in (publisher..pushes).step_by(publishers) {
                // A push that waited for the one before is late, not left out.
                let late = tick.tick().await.elapsed().as_micros() as u64;
                let to = format!("user-{}", number % identities);
                let sent = fanout::micros().saturating_sub(late);
                service
                    .push(&json!({"messageType": "down", "toUniqueId": to, "content": content, "sent": sent}))
                    .await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = publishing.join_next().await {
        ended??;
    }
    let (mut delays, mut open) = (Vec::new(), Vec::new());
    while let Some(reader) = readers.join_next().await {
        let (socket, of_one) = reader??;
        delays.extend(of_one);
        open.push(socket);
    }
    let after = usage::of(edge.pid)?;
    delays.sort();
    println!(
        "latency, {rate} pushes a second: due to receipt p50 {:.2?} p99 {:.2?}; {:.1} us of CPU each in the edge ({pushes} pushes of 200 B to {identities} identities by {publishers} publishers)",
        usage::percentile(&delays, 0.5),
        usage::percentile(&delays, 0.99),
        usage::each(before, after, pushes),
    );
    Ok(())
}
