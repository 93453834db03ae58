//! Waits until nobody else judges for a business.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    checkpoint::{Checkpoint, From, Terms, Written},
    judge::Begin,
    publish,
    receipts::{Next, Receipts},
};
use crate::{broker::Start, ids, push::hub::Hub};

/// An edge that judges writes more often than this. Without a word from it for so long, another one begins.
const SILENCE: Duration = Duration::from_secs(10);
/// In which edges that wait begin, so that usually one of them does.
const SPREAD: Duration = Duration::from_secs(2);
/// Longest wait for what this edge has just written.
const ECHO: Duration = Duration::from_secs(30);

/// Waits, and begins a term. `None`: this edge reads no streams.
pub(super) async fn until_turn(hub: &Hub, terms: &mut Terms) -> Option<Begin> {
    let mut receipts = Receipts::read(hub, Start::Next)?;
    loop {
        silence(&mut receipts, terms).await;
        if terms.last().is_none() {
            learn(hub, terms).await;
        }
        if let Some(begin) = claim(hub, &mut receipts, terms).await {
            return Some(begin);
        }
    }
}

/// Waits until no checkpoint has come for a while, in which the stream was read.
async fn silence(receipts: &mut Receipts, terms: &mut Terms) {
    let spread = SPREAD.mul_f64(rand::random_range(0.0..1.0));
    // While the stream is not read, nothing says that nobody judges.
    let mut wait = receipts.is_up().then(|| Instant::now() + SILENCE + spread);
    loop {
        let next = match wait {
            None => receipts.next().await,
            Some(until) => match timeout_at(until, receipts.next()).await {
                Ok(next) => next,
                Err(_) => return,
            },
        };
        match next {
            Next::Message(_, Written::Checkpoint(checkpoint)) => {
                if terms.take(checkpoint) {
                    wait = Some(Instant::now() + SILENCE + spread);
                }
            }
            Next::Message(_, Written::Receipts { .. }) | Next::Gap => {}
            // Nobody has judged yet.
            Next::Attached(true) => wait = Some(Instant::now() + spread),
            Next::Attached(false) => wait = Some(Instant::now() + SILENCE + spread),
            Next::Down => wait = None,
            Next::Reset => terms.forget(),
        }
    }
}

/// Reads what the stream holds from its beginning, for the last checkpoint. Where that fails, a new term begins with what
/// is known.
async fn learn(hub: &Hub, terms: &mut Terms) {
    let end = Checkpoint { term: 0, judge: hub.context.instance.clone(), checkpoint: ids::new(), from: None };
    if !publish::checkpoint(hub, &end).await {
        return;
    }
    let Some(mut receipts) = Receipts::read(hub, Start::First) else { return };
    let reading = async {
        loop {
            match receipts.next().await {
                Next::Message(_, Written::Checkpoint(next)) if next == end => return,
                Next::Message(_, Written::Checkpoint(next)) => _ = terms.take(next),
                Next::Reset => return terms.forget(),
                _ => {}
            }
        }
    };
    if timeout(ECHO, reading).await.is_err() {
        tracing::warn!(business = %hub.name, "the stream of receipts can't be read to its end in time");
    }
}

/// Begins a term, unless another edge is quicker.
async fn claim(hub: &Hub, receipts: &mut Receipts, terms: &mut Terms) -> Option<Begin> {
    let (term, from): (u64, Option<From>) = terms.last().map_or((0, None), |last| (last.term, last.from));
    let mine = Checkpoint { term: term + 1, judge: hub.context.instance.clone(), checkpoint: ids::new(), from };
    if !publish::checkpoint(hub, &mine).await {
        // It may be there all the same, and is found by whoever comes next.
        sleep(SPREAD).await;
        return None;
    }
    let echo = async {
        loop {
            match receipts.next().await {
                Next::Message(at, Written::Checkpoint(next)) => {
                    let is_mine = next == mine;
                    let counts = terms.take(next);
                    if is_mine {
                        return counts.then_some(Begin { term: mine.term, at, from });
                    }
                }
                Next::Reset => {
                    terms.forget();
                    return None;
                }
                _ => {}
            }
        }
    };
    timeout(ECHO, echo).await.ok().flatten()
}
