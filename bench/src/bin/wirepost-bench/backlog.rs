//! Clients that come back with a backlog: how often does the edge read the stream for them?

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wirepost_testing::{edge::EdgeBuilder, service::Service, setup::Setup, usage};

use crate::{
    clients,
    returning::{self, Away},
};

/// Of an edge that dies.
const CLIENTS: usize = 10_000;
/// Pushes to everyone that each of them missed.
const MISSED: usize = 20;
/// With cursors that no log contains.
const OLD: usize = 200;
/// Pushes to everyone, and the number between two of their cursors: all within the older half.
const PUSHES: (usize, usize) = (2_000, 5);
const READS: &str = "wirepost_edge_catch_up_reads_total";

fn edge(setup: &Setup, name: &str) -> EdgeBuilder {
    setup.edge(name).quiet().flag("max-connections", 19_000).flag("heartbeat-seconds", 300)
}

fn push(bytes: usize) -> Value {
    json!({"messageType": "down", "toUniqueId": "*", "content": "x".repeat(bytes)})
}

/// An edge is killed, and all its clients come to another one, which reads the business already.
pub(crate) async fn after_a_death(setup: &Setup) -> Result<()> {
    let (first, second) = (edge(setup, "first").start().await?, edge(setup, "second").start().await?);
    let mut witness = clients::connect(setup, &second, 1, None).await?.pop().context("one socket")?;
    let away = returning::connect(setup, &first, CLIENTS).await?;
    first.kill9()?;
    let away: Vec<_> = away.into_iter().map(|(_, away)| away).collect();
    let service = Service::connect(setup).await?;
    service.push_all((0..MISSED).map(|_| push(200))).await?;
    for _ in 0..MISSED {
        returning::push(&mut witness).await?;
    }
    let (before, begun, reads) = (usage::of(second.pid)?, Instant::now(), second.count(READS).await?);
    let back = returning::back(&second, away.into_iter().map(|away| (away, MISSED)), 1_000).await?;
    let took = begun.elapsed();
    println!(
        "backlog, an edge dies: {} clients are back on another one after {:.1} s, with {MISSED} pushes each, {} reads of the stream, {:.0} us of CPU a client",
        back.len(),
        took.as_secs_f64(),
        second.count(READS).await? - reads,
        usage::each(before, usage::of(second.pid)?, CLIENTS),
    );
    Ok(())
}

/// Clients whose cursors the log does not contain any more come at the same time, each with another cursor.
pub(crate) async fn old_cursors(setup: &Setup) -> Result<()> {
    let edge = edge(setup, "old").flag("log-bytes", 256 << 10).start().await?;
    let (sockets, mut away): (Vec<_>, Vec<Away>) = returning::connect(setup, &edge, OLD).await?.into_iter().unzip();
    let mut witness = sockets.into_iter().next().context("one socket")?;
    let service = Service::connect(setup).await?;
    let (pushes, between) = PUSHES;
    let mut bytes = 0;
    let publish = service.push_all((0..pushes).map(|_| push(2_000)));
    let read = async {
        for number in 0..pushes {
            let envelope = returning::push(&mut witness).await?;
            bytes += envelope.len();
            if number % between == 0
                && let Some(away) = away.get_mut(number / between)
            {
                let envelope: Value = serde_json::from_str(envelope.to_text()?)?;
                envelope["cursor"].as_str().context("no cursor")?.clone_into(&mut away.cursor);
            }
        }
        anyhow::Ok(())
    };
    tokio::try_join!(publish, read)?;
    drop(witness);
    let (begun, reads) = (Instant::now(), edge.count(READS).await?);
    let missed = |number: usize| pushes - number * between - 1;
    let deliveries: usize = (0..OLD).map(missed).sum();
    let back = returning::back(&edge, away.into_iter().enumerate().map(|(n, away)| (away, missed(n))), OLD).await?;
    println!(
        "backlog, old cursors: {} clients have {deliveries} pushes after {:.1} s, with {} reads of the stream (pages of 1 MiB; {:.1} MB were pushed)",
        back.len(),
        begun.elapsed().as_secs_f64(),
        edge.count(READS).await? - reads,
        bytes as f64 / 1e6,
    );
    Ok(())
}
