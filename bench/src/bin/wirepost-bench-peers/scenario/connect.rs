//! What a connection costs that does nothing, and its opening.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Figure, Figures, cpu};
use crate::{link, peer::Peer};

/// Opened first, so that what the first connections set up is not counted.
pub(super) const WARM: usize = 200;
/// Until memory is read.
const REST: Duration = Duration::from_secs(2);

pub(super) async fn run(peer: &Peer, clients: usize) -> Result<Figures> {
    let mut links = link::connect(&peer.protocol, 0, WARM).await?;
    tokio::time::sleep(REST).await;
    let (before, begun) = (peer.reading()?, Instant::now());
    links.extend(link::connect(&peer.protocol, WARM, WARM + clients).await?);
    let took = begun.elapsed();
    let mut figures = Figures::from([(Figure::Rate, clients as f64 / took.as_secs_f64())]);
    tokio::time::sleep(REST).await;
    cpu(peer, before, clients, &mut figures)?;
    let memory = peer.reading()?.server.memory.saturating_sub(before.server.memory);
    figures.insert(Figure::Memory, memory as f64 / 1024.0 / clients as f64);
    Ok(figures)
}
