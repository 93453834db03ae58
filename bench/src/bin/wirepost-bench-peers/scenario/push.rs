//! Pushes to everyone and to one client each.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::{TryStreamExt, stream};
use tokio::{
    task::JoinSet,
    time::{interval, sleep},
};
use wirepost_testing::usage;

use super::{Figure, Figures, cpu};
use crate::{deliveries::Deliveries, link, peer::Peer, protocol::To, publisher::Publisher};

/// Pushes on their way at the same time, at full rate.
const FANOUT_WINDOW: usize = 16;
const UNICAST_WINDOW: usize = 400;
const UNICAST_BATCH: usize = 10;
/// For what connecting leaves behind.
const REST: Duration = Duration::from_secs(2);

/// Connects the clients; each notes what it gets.
async fn listen(peer: &Peer, clients: usize, deliveries: &Rc<Deliveries>) -> Result<JoinSet<Result<()>>> {
    let mut readers = JoinSet::new();
    for mut link in link::connect(&peer.protocol, 0, clients).await? {
        let deliveries = deliveries.clone();
        readers.spawn_local(async move {
            loop {
                link.read(|_| (), |frame| deliveries.note(frame)).await?;
            }
        });
    }
    sleep(REST).await;
    Ok(readers)
}

/// Publishes and waits for all deliveries; the first client that fails ends it.
async fn complete(
    publishing: impl Future<Output = Result<()>>,
    deliveries: &Deliveries,
    mut readers: JoinSet<Result<()>>,
) -> Result<()> {
    let whole = async {
        publishing.await?;
        deliveries.complete().await
    };
    tokio::select! {
        result = whole => result,
        Some(ended) = readers.join_next() => ended?.context("a client"),
    }
}

fn delays(deliveries: &Deliveries, figures: &mut Figures) {
    let delays = deliveries.delays();
    for (figure, part) in [(Figure::P50, 0.5), (Figure::P99, 0.99)] {
        figures.insert(figure, usage::percentile(&delays, part).as_secs_f64() * 1e3);
    }
}

/// To everyone, `rate` pushes a second: a delay counts from when the push was due.
pub(super) async fn paced(peer: &Peer, clients: usize, pushes: usize, rate: u32) -> Result<Figures> {
    let deliveries = Rc::new(Deliveries::new(pushes, clients, 0));
    let readers = listen(peer, clients, &deliveries).await?;
    let publisher = Publisher::of(peer, false)?;
    let before = peer.reading()?;
    let publishing = async {
        // Missed ticks come at once: a publish that waited for the one before is late, not left out.
        let mut tick = interval(Duration::from_secs(1) / rate);
        for number in 0..pushes {
            let due = tick.tick().await.into_std();
            publisher.publish(&[(To::Everyone, deliveries.payload(number, due))]).await?;
        }
        Ok(())
    };
    complete(publishing, &deliveries, readers).await?;
    let mut figures = Figures::new();
    cpu(peer, before, pushes * clients, &mut figures)?;
    delays(&deliveries, &mut figures);
    Ok(figures)
}

/// To everyone, as fast as it goes with a window of pushes on their way.
pub(super) async fn fanout(peer: &Peer, clients: usize, pushes: usize) -> Result<Figures> {
    let deliveries = Rc::new(Deliveries::new(pushes, clients, FANOUT_WINDOW));
    let to = |_| To::Everyone;
    at_full_rate(peer, clients, &deliveries, (pushes, 1), to, pushes * clients, false).await
}

/// To one client each, in batches.
pub(super) async fn unicast(peer: &Peer, clients: usize, pushes: usize, http: bool) -> Result<Figures> {
    let deliveries = Rc::new(Deliveries::new(pushes, 1, UNICAST_WINDOW));
    let to = |number| To::One(number % clients);
    at_full_rate(peer, clients, &deliveries, (pushes, UNICAST_BATCH), to, pushes, http).await
}

async fn at_full_rate(
    peer: &Peer,
    clients: usize,
    deliveries: &Rc<Deliveries>,
    (pushes, batch): (usize, usize),
    to: impl Fn(usize) -> To,
    count: usize,
    http: bool,
) -> Result<Figures> {
    let readers = listen(peer, clients, deliveries).await?;
    let publisher = Publisher::of(peer, http)?;
    let numbers: Vec<usize> = (0..pushes).collect();
    let (before, begun) = (peer.reading()?, Instant::now());
    let publish = async |numbers: &[usize]| {
        deliveries.window.acquire_many(u32::try_from(numbers.len())?).await?.forget();
        let due = Instant::now();
        let batch: Vec<_> = numbers.iter().map(|&number| (to(number), deliveries.payload(number, due))).collect();
        publisher.publish(&batch).await
    };
    let publishing = stream::iter(numbers.chunks(batch).map(Ok)).try_for_each_concurrent(publisher.at_once(), publish);
    complete(publishing, deliveries, readers).await?;
    let rate = count as f64 / deliveries.took(begun).as_secs_f64();
    let mut figures = Figures::from([(Figure::Rate, rate)]);
    cpu(peer, before, count, &mut figures)?;
    Ok(figures)
}
