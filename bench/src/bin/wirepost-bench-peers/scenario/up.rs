//! Messages from clients, each keeping a window of unacknowledged ones.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout_at},
};
use wirepost_testing::usage;

use super::{Figure, Figures, cpu};
use crate::{
    link::{self, Link},
    peer::Peer,
    protocol::Seen,
};

const BYTES: usize = 200;
/// For what connecting leaves behind.
const REST: Duration = Duration::from_secs(2);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Tally {
    delays: RefCell<Vec<Duration>>,
    nacks: Cell<usize>,
}

pub(super) async fn run(peer: &Peer, clients: usize, window: usize, each: usize) -> Result<Figures> {
    let links = link::connect(&peer.protocol, 0, clients).await?;
    sleep(REST).await;
    let tally = Rc::new(Tally::default());
    let (before, begun) = (peer.reading()?, Instant::now());
    let mut senders = JoinSet::new();
    for link in links {
        senders.spawn_local(send(link, window, each, tally.clone()));
    }
    // They stay open until all have ended: closing is no part of it.
    let mut open = Vec::new();
    while let Some(ended) = senders.join_next().await {
        open.push(ended??);
    }
    let count = clients * each;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let mut figures = Figures::from([(Figure::Rate, rate), (Figure::Nacks, tally.nacks.get() as f64)]);
    cpu(peer, before, count, &mut figures)?;
    let mut delays = tally.delays.take();
    delays.sort_unstable();
    for (figure, part) in [(Figure::P50, 0.5), (Figure::P99, 0.99)] {
        figures.insert(figure, usage::percentile(&delays, part).as_secs_f64() * 1e3);
    }
    Ok(figures)
}

/// Sends until each message is acknowledged; a refused one again when the server says.
async fn send(mut link: Link, window: usize, each: usize, tally: Rc<Tally>) -> Result<Link> {
    let (client, protocol, payload) = (link.client, link.protocol(), "x".repeat(BYTES));
    let mut sent: HashMap<usize, Instant> = HashMap::new();
    let mut again: VecDeque<(Instant, usize)> = VecDeque::new();
    let (mut next, mut acknowledged) = (0, 0);
    while acknowledged < each {
        let now = Instant::now();
        let mut numbers = Vec::new();
        while sent.len() + numbers.len() < window {
            if again.front().is_some_and(|(at, _)| *at <= now) {
                numbers.extend(again.pop_front().map(|(_, number)| number));
            } else if next < each {
                numbers.push(next);
                next += 1;
            } else {
                break;
            }
        }
        sent.extend(numbers.iter().map(|number| (*number, now)));
        link.send_all(numbers.iter().map(|number| protocol.up(client, *number, &payload))).await?;
        let retry = again.front().map(|(at, _)| *at).filter(|_| sent.len() < window);
        let read = link.read(
            |seen| match seen {
                Seen::Ack(number) => {
                    if let Some(at) = sent.remove(&number) {
                        tally.delays.borrow_mut().push(at.elapsed());
                        acknowledged += 1;
                    }
                }
                Seen::Nack(number, wait) if sent.remove(&number).is_some() => {
                    tally.nacks.set(tally.nacks.get() + 1);
                    again.push_back((Instant::now() + wait, number));
                }
                _ => {}
            },
            |_| (),
        );
        match timeout_at(retry.unwrap_or(now + PATIENCE).into(), read).await {
            Ok(read) => read?,
            Err(_) => ensure!(retry.is_some(), "no answer to client {client} within {PATIENCE:?}"),
        }
    }
    Ok(link)
}
