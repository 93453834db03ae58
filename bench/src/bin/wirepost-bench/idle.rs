//! What a connection costs that does nothing.

use anyhow::Result;
use wirepost_testing::{setup::Setup, usage};

use crate::clients;

/// A process may hold 20,000 descriptors on many machines, this one's own sockets included.
const CONNECTIONS: usize = 15_000;
/// Opened first, so that what the first connections set up is not counted.
const WARM: usize = 200;

pub(crate) async fn run(setup: &Setup, tls: bool) -> Result<()> {
    let builder = setup.edge("idle").quiet().flag("max-connections", 19_000).flag("heartbeat-seconds", 300);
    let (builder, client) = clients::secured(builder, setup, tls)?;
    let edge = builder.start().await?;
    let mut sockets = clients::connect(setup, &edge, WARM, client.clone()).await?;
    let broker = crate::broker_pid()?;
    let (before, broker_before) = (usage::of(edge.pid)?, usage::of(broker)?);
    sockets.extend(clients::connect(setup, &edge, CONNECTIONS - WARM, client).await?);
    let after = usage::of(edge.pid)?;
    let count = CONNECTIONS - WARM;
    println!(
        "{}: {:.1} KiB a connection, {:.0} us of CPU to connect one, {:.1} in the broker ({CONNECTIONS} connections, {} MiB in all)",
        if tls { "idle, TLS" } else { "idle" },
        after.memory.saturating_sub(before.memory) as f64 / 1024.0 / count as f64,
        usage::each(before, after, count),
        usage::each(broker_before, usage::of(broker)?, count),
        after.memory >> 20,
    );
    drop(sockets);
    Ok(())
}
