//! Waits until nobody else judges for a business.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    checkpoint::{Checkpoint, From, Terms, Written},
    judge::Begin,
    publish,
    receipts::{Next, Receipts},
};
use crate::{broker::Start, ids, lateness::Recurring, push::hub::Hub};

/// An edge that judges writes more often than this. Without a word from it for so long, another one begins.
const SILENCE: Duration = Duration::from_secs(10);
/// In which edges that wait begin, so that usually one of them does.
const SPREAD: Duration = Duration::from_secs(2);
/// Longest wait for what this edge has just written.
const ECHO: Duration = Duration::from_secs(30);

/// Waits, and begins a term. `None`: this edge reads no streams. `late` is told of each word of the one that judges.
pub(super) async fn until_turn(hub: &Hub, terms: &mut Terms, late: &Recurring) -> Option<Begin> {
    let mut receipts = Receipts::read(hub, Start::Next)?;
    loop {
        silence(&mut receipts, terms, late).await;
        if terms.last().is_none() {
            let learned = {
                let _place = hub.context.judge_reads.whole().await;
                learn(hub, terms).await
            };
            if !learned {
                sleep(SPREAD).await;
                continue;
            }
        }
        if let Some(begin) = claim(hub, &mut receipts, terms).await {
            return Some(begin);
        }
    }
}

/// Waits until no checkpoint has come for a while, in which the stream was read.
async fn silence(receipts: &mut Receipts, terms: &mut Terms, late: &Recurring) {
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
            Next::Message(_, _, Written::Checkpoint(checkpoint)) => {
                if terms.take(checkpoint) {
                    late.done(Instant::now());
                    wait = Some(Instant::now() + SILENCE + spread);
                }
            }
            // What is known of the stream before this one holds: whoever judges goes on, in its term.
            Next::Message(_, _, Written::Receipts { .. }) | Next::Gap | Next::Reset => {}
            // Nobody has judged yet.
            Next::Attached(true) if terms.last().is_none() => wait = Some(Instant::now() + spread),
            Next::Attached(_) => wait = Some(Instant::now() + SILENCE + spread),
            Next::Down => wait = None,
        }
    }
}

/// Reads what the stream holds from its beginning, for the last checkpoint. False: it could not be read. Then nobody may
/// begin: what was not judged yet would be left out.
async fn learn(hub: &Hub, terms: &mut Terms) -> bool {
    let end = Checkpoint { term: 0, judge: hub.context.instance.clone(), id: ids::new(), from: None };
    if !publish::checkpoint(hub, &end).await {
        return false;
    }
    let Some(mut receipts) = Receipts::read(hub, Start::First) else { return false };
    loop {
        match timeout(ECHO, receipts.next()).await {
            Ok(Next::Message(_, _, Written::Checkpoint(next))) if next == end => return true,
            Ok(Next::Message(_, _, Written::Checkpoint(next))) => _ = terms.take(next),
            Ok(Next::Down) | Err(_) => {
                tracing::warn!(business = %hub.name, "the stream of receipts can't be read to its end");
                return false;
            }
            Ok(_) => {}
        }
    }
}

/// Begins a term, unless another edge is quicker.
async fn claim(hub: &Hub, receipts: &mut Receipts, terms: &mut Terms) -> Option<Begin> {
    let (term, from): (u64, Option<From>) = terms.last().map_or((0, None), |last| (last.term, last.from));
    let mine = Checkpoint { term: term + 1, judge: hub.context.instance.clone(), id: ids::new(), from };
    if !publish::checkpoint(hub, &mine).await {
        // It may be there all the same, and is found by whoever comes next.
        sleep(SPREAD).await;
        return None;
    }
    let echo = async {
        loop {
            match receipts.next().await {
                Next::Message(at, _, Written::Checkpoint(next)) => {
                    let is_mine = next == mine;
                    let counts = terms.take(next);
                    if is_mine {
                        return counts.then_some(Begin { term: mine.term, at, from });
                    }
                }
                Next::Reset => return None,
                _ => {}
            }
        }
    };
    timeout(ECHO, echo).await.ok().flatten()
}
