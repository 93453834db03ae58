//! Pushes to one identity each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use serde_json::json;
use tokio::task::JoinSet;
use wirepost_testing::{service::Service, setup::Setup, usage};

use crate::clients;

const IDENTITIES: usize = 5_000;
const MESSAGES: usize = 50_000;
/// Pushes of the lightly loaded measurement, and the time between two.
const LIGHT: usize = 1_000;
const LIGHT_PAUSE: Duration = Duration::from_millis(5);

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
