//! All clients come back at the same time and get what they missed, which the edge has in memory.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use wirepost_testing::{
    broker::{PATIENCE, eventually},
    service::Service,
    setup::Setup,
    usage,
};

use crate::{clients::CONNECTING, returning};

const CLIENTS: usize = 15_000;
/// Pushes to everyone that each of them missed.
const MISSED: usize = 5;

pub(crate) async fn run(setup: &Setup) -> Result<()> {
    let edge =
        setup.edge("storm").quiet().flag("max-connections", 19_000).flag("heartbeat-seconds", 300).start().await?;
    // Their sockets are dropped.
    let away: Vec<_> = returning::connect(setup, &edge, CLIENTS).await?.into_iter().map(|(_, away)| away).collect();
    let gone = || async { Ok(edge.count("wirepost_edge_connections").await? == 0) };
    eventually("all clients are gone", PATIENCE, gone).await?;
    let service = Service::connect(setup).await?;
    let missed = |_| json!({"messageType": "down", "toUniqueId": "*", "content": "x".repeat(200)});
    service.push_all((0..MISSED).map(missed)).await?;
    let (before, begun) = (usage::of(edge.pid)?, Instant::now());
    let back = returning::back(&edge, away.into_iter().map(|away| (away, MISSED)), CONNECTING).await?;
    let (took, after) = (begun.elapsed(), usage::of(edge.pid)?);
    println!(
        "storm: {:.0} us of CPU in the edge for each client that comes back and gets {MISSED} pushes ({} clients, back after {:.1} s)",
        usage::each(before, after, CLIENTS),
        back.len(),
        took.as_secs_f64(),
    );
    Ok(())
}
