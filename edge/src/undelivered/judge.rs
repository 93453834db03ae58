//! Judges for a business, in rounds: write a checkpoint; read the pushes to the end of their stream; read the receipts up to
//! that checkpoint; report what is due and has none.
//!
//! *Why in this order*: a receipt comes after its push. Each that stands before the checkpoint belongs to a push that was
//! read after the checkpoint was written, so none has to be remembered for a push to come. And what is not there before the
//! checkpoint was not given in time, whatever the clocks of brokers and edges say of each other.
//!
//! *At the bound* no more pushes are read until those that wait are judged; then reading begins again where it stopped,
//! also that of the receipts. So a business with more of them hears later, and nothing is left out.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{
    checkpoint::{Checkpoint, From, Terms, Written},
    ledger::{self, Ledger},
    publish, pushes,
    receipts::{Next, Receipts},
};
use crate::{
    broker::{Position, Start},
    clock, ids,
    push::{
        followed::{Followed, followed},
        hub::Hub,
    },
};

/// From one round to the next, and how often an edge that judges writes a checkpoint at least.
const INTERVAL: Duration = Duration::from_secs(2);
/// Before what the broker did not take is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// Reported in one round, and so repeated if this edge dies in it.
const AT_A_TIME: usize = 1_000;
/// Of these without a confirm.
const UNCONFIRMED: usize = 64;
/// Pushes that are read without a pause for other tasks.
const TURN: usize = 64;

/// A term that this edge has begun.
pub(super) struct Begin {
    pub(super) term: u64,
    /// Its first checkpoint.
    pub(super) at: Position,
    /// Where to begin; `None`: nobody has judged before.
    pub(super) from: Option<From>,
}

/// Why an edge judges no longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("another edge does")]
    Superseded,
    #[error("it reads no streams")]
    NoStreams,
}

/// Judges until another edge does.
pub(super) async fn run(hub: &Hub, terms: &mut Terms, begin: Begin) -> End {
    let receipts = begin.from.map_or(begin.at, |from| from.receipts.into());
    let Some(reading) = Receipts::read(hub, Start::After(receipts)) else { return End::NoStreams };
    let mut judge = Judge {
        hub,
        terms,
        term: begin.term,
        pushes: None,
        receipts: reading,
        read_to: receipts,
        ledger: Ledger::default(),
        held: None,
        from: begin.from,
        written: Instant::now(),
    };
    match begin.from {
        Some(from) => judge.pushes = from.pushes.map(Position::from),
        None => judge.skip_to_end().await,
    }
    loop {
        let next = Instant::now() + INTERVAL;
        match judge.round().await {
            Err(end) => return end,
            // More is due.
            Ok(true) => {}
            Ok(false) => sleep_until(next).await,
        }
    }
}

struct Judge<'h> {
    hub: &'h Hub,
    terms: &'h mut Terms,
    term: u64,
    /// The last one that was read.
    pushes: Option<Position>,
    receipts: Receipts,
    /// The last checkpoint of this edge that was read.
    read_to: Position,
    ledger: Ledger,
    /// Where to begin again once those that wait are judged.
    held: Option<From>,
    /// What the last checkpoint says.
    from: Option<From>,
    /// When that was.
    written: Instant,
}

impl Judge<'_> {
    /// True: more is due already.
    async fn round(&mut self) -> Result<bool, End> {
        if self.ledger.is_empty()
            && let Some(from) = self.held.take()
        {
            self.begin_again(from)?;
        }
        if self.held.is_none() {
            self.ledger.begin(From { pushes: self.pushes.map(Into::into), receipts: self.read_to.into() });
        }
        self.from = self.ledger.from().or(self.from);
        let (now, checkpoint) = self.write_surely().await;
        if self.held.is_none() {
            self.read_pushes().await;
        }
        if !self.read_receipts(&checkpoint).await? {
            return Ok(true);
        }
        let waited = !self.ledger.is_empty();
        let missing = self.ledger.take_due(now, AT_A_TIME);
        let more = missing.len() == AT_A_TIME || (waited && self.held.is_some() && self.ledger.is_empty());
        self.report(missing).await;
        Ok(more)
    }

    /// A checkpoint that the broker has confirmed, and when it was not written yet. One without a confirm is not looked
    /// for: it may come behind receipts of pushes that are still to be read.
    async fn write_surely(&mut self) -> (i64, Checkpoint) {
        loop {
            let now = clock::now_ms();
            let checkpoint = self.checkpoint();
            if self.write(&checkpoint).await {
                return (now, checkpoint);
            }
            sleep_until(Instant::now() + PAUSE).await;
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        let judge = self.hub.context.instance.clone();
        Checkpoint { term: self.term, judge, checkpoint: ids::new(), from: self.from }
    }

    async fn write(&mut self, checkpoint: &Checkpoint) -> bool {
        self.written = Instant::now();
        publish::checkpoint(self.hub, checkpoint).await
    }

    /// Says that this edge still judges, if it has not for a while.
    async fn speak_up(&mut self) {
        if self.written.elapsed() >= INTERVAL {
            let checkpoint = self.checkpoint();
            self.write(&checkpoint).await;
        }
    }

    fn begin_again(&mut self, from: From) -> Result<(), End> {
        self.pushes = from.pushes.map(Into::into);
        self.read_to = from.receipts.into();
        self.receipts = Receipts::read(self.hub, Start::After(self.read_to)).ok_or(End::NoStreams)?;
        Ok(())
    }

    /// To the end of the stream, or to the bound.
    async fn read_pushes(&mut self) {
        let hub = self.hub;
        loop {
            self.speak_up().await;
            let Ok(part) = pushes::read(hub, self.pushes).await else {
                sleep_until(Instant::now() + PAUSE).await;
                continue;
            };
            if part.reset {
                self.pushes = None;
            }
            if part.gap {
                self.count_gap("pushes were gone before they were judged");
            }
            let business = hub.business();
            for (n, record) in part.records.iter().enumerate() {
                if let Some(push) = followed(&business, record)
                    && !self.follow(push)
                {
                    return;
                }
                self.pushes = Some(record.position);
                if n % TURN == TURN - 1 {
                    yield_now().await;
                }
            }
            if part.at_end {
                return;
            }
            if part.records.is_empty() {
                return self.skip_to_end().await;
            }
        }
    }

    /// False: there is no room for it now.
    fn follow(&mut self, push: Followed) -> bool {
        if self.ledger.knows(&push) {
            return true;
        }
        let context = &*self.hub.context;
        let limit = self.hub.business().config.limits.per_edge.memory_bytes;
        if let Ok(room) = context.followed.take(&self.hub.name, ledger::bytes(&push), limit) {
            self.ledger.follow(push, room);
            return true;
        }
        context.metrics.judge_held_back.inc();
        self.held = Some(From { pushes: self.pushes.map(Into::into), receipts: self.read_to.into() });
        false
    }

    /// Goes on with what is pushed from now on.
    async fn skip_to_end(&mut self) {
        loop {
            self.speak_up().await;
            if let Ok(end) = pushes::end(self.hub).await {
                self.pushes = end;
                return;
            }
        }
    }

    /// Up to this checkpoint. False: it may be gone, with receipts before it.
    async fn read_receipts(&mut self, until: &Checkpoint) -> Result<bool, End> {
        loop {
            let next = tokio::select! {
                next = self.receipts.next() => next,
                () = sleep_until(self.written + INTERVAL) => {
                    self.speak_up().await;
                    continue;
                }
            };
            match next {
                Next::Message(_, Written::Receipts { unique_id, ids }) => {
                    for id in ids {
                        self.ledger.receive(&unique_id, &id);
                    }
                }
                Next::Message(at, Written::Checkpoint(checkpoint)) => {
                    let found = checkpoint == *until;
                    let judge = checkpoint.judge.clone();
                    if self.terms.take(checkpoint) && judge != self.hub.context.instance {
                        return Err(End::Superseded);
                    }
                    if found {
                        self.read_to = at;
                        return Ok(true);
                    }
                }
                Next::Gap => {
                    self.count_gap("receipts were gone before they were read");
                    return Ok(false);
                }
                Next::Reset => {
                    self.terms.forget();
                    self.count_gap("the stream of receipts was replaced");
                    return Ok(false);
                }
                Next::Attached(_) | Next::Down => {}
            }
        }
    }

    /// Once the broker has them, they are done.
    async fn report(&mut self, missing: Vec<Followed>) {
        let hub = self.hub;
        let reports = stream::iter(missing).map(|push| publish::undelivered(hub, push));
        let mut reports = std::pin::pin!(reports.buffer_unordered(UNCONFIRMED));
        loop {
            tokio::select! {
                reported = reports.next() => if reported.is_none() { return },
                () = sleep_until(self.written + INTERVAL) => self.speak_up().await,
            }
        }
    }

    fn count_gap(&self, what: &str) {
        self.hub.context.metrics.judge_gaps.inc();
        tracing::warn!(business = %self.hub.name, what, "some receipts can't be judged; what seems to be missing is reported");
    }
}
