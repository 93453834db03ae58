//! Judges for a business, in rounds: write a checkpoint; read the pushes to the end of their stream; read the receipts up to
//! that checkpoint; report what is due and has none.
//!
//! *Why in this order*: a receipt comes after its push. Each that stands before the checkpoint belongs to a push that was
//! read after the checkpoint was written, so none has to be remembered for a push to come. The checkpoint is also the
//! clock: what was due when the broker stored it, by the time of the broker, and has no receipt before it, was not
//! received in time.
//!
//! *At the bound* no more pushes are read until those that wait are judged; then reading begins again where it stopped,
//! also that of the receipts. So a business with more of them hears later, and nothing is left out.

use std::{pin::pin, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::SemaphorePermit,
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{
    checkpoint::{Checkpoint, From, Terms, Written},
    ledger::{self, Ledger},
    publish,
    pushes::{self, Stream},
    receipts::{Next, Receipts},
};
use crate::{
    broker::{Position, Start},
    clock, ids,
    lateness::Recurring,
    push::{
        followed::{Followed, followed},
        hub::Hub,
    },
    reads::timed,
};

/// From one round to the next, and how often an edge that judges writes a checkpoint at least.
const INTERVAL: Duration = Duration::from_secs(2);
/// Before what the broker did not take is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// An edge that makes no progress for so long leaves the judging to another one.
const STUCK: Duration = Duration::from_secs(30);
/// Reads that must find the stream of pushes to end before what was read of it, until it counts as another one.
const SHORTER: u32 = 5;
/// After a change of the stream: what is longer overdue than this, in ms, has been judged, or is told to nobody.
const OVERDUE: i64 = 60_000;
/// Looked at in one round.
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
    #[error("it could not read for too long")]
    CantRead,
}

/// Judges until another edge does. `late` is told of each round that has judged all that was due.
pub(super) async fn run(hub: &Hub, terms: &mut Terms, begin: Begin, late: &Recurring) -> End {
    let receipts = begin.from.map_or(Some(begin.at), |from| from.receipts.map(Position::from));
    let Some(reading) = Receipts::read(hub, start(receipts)) else { return End::NoStreams };
    let mut judge = Judge {
        hub,
        terms,
        late,
        term: begin.term,
        pushes: None,
        receipts: reading,
        read_to: receipts,
        ledger: Ledger::default(),
        held: None,
        from: begin.from,
        written: Instant::now(),
        progress: Instant::now(),
        shorter: 0,
        another: false,
        slow: false,
    };
    match begin.from {
        Some(from) => judge.pushes = from.pushes.map(Position::from),
        None => {
            if let Err(end) = judge.skip_to_end().await {
                return end;
            }
        }
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

fn start(after: Option<Position>) -> Start {
    after.map_or(Start::First, Start::After)
}

struct Judge<'h> {
    hub: &'h Hub,
    terms: &'h mut Terms,
    late: &'h Recurring,
    term: u64,
    /// The last one that was read.
    pushes: Option<Position>,
    receipts: Receipts,
    /// The last checkpoint of this edge that was read; `None`: none in this stream.
    read_to: Option<Position>,
    ledger: Ledger,
    /// There was no room for a push.
    held: Option<HeldBack>,
    /// What the last checkpoint says.
    from: Option<From>,
    /// When that was.
    written: Instant,
    /// When something was last read.
    progress: Instant,
    /// Reads in a row that found the stream of pushes to end before what was read of it.
    shorter: u32,
    /// The stream of pushes is another one, and its end was not reached yet.
    another: bool,
    /// The last read of pushes took long.
    slow: bool,
}

/// No more pushes are read until those that wait are judged.
struct HeldBack {
    /// Where to begin again.
    from: From,
    /// When the time of the first push is up that was not read.
    due: i64,
}

impl<'h> Judge<'h> {
    /// True: more is due already.
    async fn round(&mut self) -> Result<bool, End> {
        if self.ledger.is_empty()
            && let Some(held) = self.held.take()
        {
            self.begin_again(held.from)?;
        }
        if self.held.is_none() {
            self.ledger.begin(self.here());
        }
        self.from = self.ledger.from().or(self.from);
        let (checkpoint, written) = self.write_surely().await?;
        if self.held.is_none() {
            self.read_pushes().await?;
        }
        let Some(now) = self.read_receipts(&checkpoint).await? else { return Ok(true) };
        let waited = !self.ledger.is_empty();
        let (missing, more) = self.ledger.take_due(now, AT_A_TIME);
        self.report(missing).await;
        if !more && self.held.as_ref().is_none_or(|held| held.due > now) {
            self.late.done(written);
        }
        Ok(more || (waited && self.held.is_some() && self.ledger.is_empty()))
    }

    /// Where another edge would begin that has read the same.
    fn here(&self) -> From {
        From { pushes: self.pushes.map(Into::into), receipts: self.read_to.map(Into::into) }
    }

    /// A checkpoint that the broker has confirmed, and when it was sent. One without a confirm is not looked for: it may come behind receipts of
    /// pushes that are still to be read.
    async fn write_surely(&mut self) -> Result<(Checkpoint, Instant), End> {
        self.progress = Instant::now();
        loop {
            let checkpoint = self.checkpoint();
            if self.write(&checkpoint).await {
                self.progress = Instant::now();
                return Ok((checkpoint, self.written));
            }
            self.pause().await?;
        }
    }

    /// Before a next attempt, if there is still hope.
    async fn pause(&mut self) -> Result<(), End> {
        if self.progress.elapsed() > STUCK {
            return Err(End::CantRead);
        }
        sleep_until(Instant::now() + PAUSE).await;
        Ok(())
    }

    fn checkpoint(&self) -> Checkpoint {
        let judge = self.hub.context.instance.clone();
        Checkpoint { term: self.term, judge, id: ids::new(), from: self.from }
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

    /// A read of pushes, once there is a place for it, which is to be kept as long as what was read. `None`: it takes long,
    /// and is to be tried again.
    async fn in_turn<T>(&mut self, read: impl Future<Output = T>) -> Result<Option<(T, SemaphorePermit<'h>)>, End> {
        let reads = &self.hub.context.judge_reads;
        let mut slow = self.slow;
        let place = self.meanwhile(reads.turn(slow), None).await?;
        self.progress = Instant::now();
        let done = self.meanwhile(timed(&mut slow, read), Some(STUCK)).await?;
        self.slow = slow;
        Ok(done.map(|done| (done, place)))
    }

    /// While something goes on, this edge says that it still judges. `most`: without progress for so long it ends.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>, most: Option<Duration>) -> Result<T, End> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = sleep_until(self.written + INTERVAL) => {}
            }
            if most.is_some_and(|most| self.progress.elapsed() > most) {
                return Err(End::CantRead);
            }
            let checkpoint = self.checkpoint();
            self.written = Instant::now();
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                _ = publish::checkpoint(self.hub, &checkpoint) => {}
            }
        }
    }

    fn begin_again(&mut self, from: From) -> Result<(), End> {
        self.pushes = from.pushes.map(Into::into);
        self.read_to = from.receipts.map(Into::into);
        self.receipts = Receipts::read(self.hub, start(self.read_to)).ok_or(End::NoStreams)?;
        Ok(())
    }

    /// To the end of the stream, or to the bound.
    async fn read_pushes(&mut self) -> Result<(), End> {
        let hub = self.hub;
        loop {
            self.speak_up().await;
            let Some((Ok(part), place)) = self.in_turn(pushes::read(hub, self.pushes)).await? else {
                self.pause().await?;
                continue;
            };
            self.progress = Instant::now();
            self.shorter = if part.stream == Stream::Shorter { self.shorter + 1 } else { 0 };
            match part.stream {
                Stream::Same => {}
                Stream::Shorter if self.shorter < SHORTER => {
                    drop(place);
                    self.pause().await?;
                    continue;
                }
                Stream::Shorter | Stream::Other => {
                    (self.pushes, self.another, self.shorter) = (None, true, 0);
                    self.count_gap("the stream of pushes was replaced");
                    continue;
                }
            }
            if part.gap {
                self.count_gap("pushes were gone before they were judged");
            }
            let business = hub.business();
            let overdue = clock::now_ms().saturating_sub(OVERDUE);
            for (n, record) in part.records.iter().enumerate() {
                if let Some(push) = followed(&business, record).filter(|push| !self.another || push.due > overdue)
                    && !self.follow(push)
                {
                    return Ok(());
                }
                self.pushes = Some(record.position);
                if n % TURN == TURN - 1 {
                    yield_now().await;
                }
            }
            drop(place);
            if part.at_end {
                self.another = false;
                return Ok(());
            }
            if part.records.is_empty() && part.lost {
                self.count_gap("pushes can't be read, and are not judged");
                return self.skip_to_end().await;
            }
            if part.records.is_empty() {
                self.pause().await?;
            }
        }
    }

    /// False: there is no room for it now.
    fn follow(&mut self, push: Followed) -> bool {
        if self.ledger.knows(&push) {
            return true;
        }
        let context = &*self.hub.context;
        let due = push.due;
        let limit = self.hub.business().config.limits.per_edge.memory_bytes;
        if let Ok(room) = context.followed.take(&self.hub.name, ledger::bytes(&push), limit) {
            self.ledger.follow(push, room);
            return true;
        }
        context.metrics.judge_held_back.inc();
        self.held = Some(HeldBack { from: self.here(), due });
        false
    }

    /// Goes on with what is pushed from now on.
    async fn skip_to_end(&mut self) -> Result<(), End> {
        loop {
            self.speak_up().await;
            if let Some((Ok(end), _)) = self.in_turn(pushes::end(self.hub)).await? {
                self.pushes = end;
                return Ok(());
            }
            self.pause().await?;
        }
    }

    /// Up to this checkpoint, and when the broker stored it. `None`: it may be gone, with receipts before it.
    async fn read_receipts(&mut self, until: &Checkpoint) -> Result<Option<i64>, End> {
        loop {
            let next = tokio::select! {
                next = self.receipts.next() => next,
                () = sleep_until(self.written + INTERVAL) => {
                    if self.progress.elapsed() > STUCK {
                        return Err(End::CantRead);
                    }
                    self.speak_up().await;
                    continue;
                }
            };
            match next {
                Next::Message(_, _, Written::Receipts { unique_id, ids }) => {
                    self.progress = Instant::now();
                    for id in ids {
                        self.ledger.receive(&unique_id, &id);
                    }
                }
                Next::Message(at, stored, Written::Checkpoint(checkpoint)) => {
                    self.progress = Instant::now();
                    let found = checkpoint == *until;
                    let judge = checkpoint.judge.clone();
                    if self.terms.take(checkpoint) && judge != self.hub.context.instance {
                        return Err(End::Superseded);
                    }
                    if found {
                        self.read_to = Some(at);
                        return Ok(Some(stored));
                    }
                }
                Next::Gap => {
                    self.count_gap("receipts were gone before they were read");
                    return Ok(None);
                }
                Next::Reset => {
                    self.forget_receipts();
                    return Ok(None);
                }
                Next::Attached(_) | Next::Down => {}
            }
        }
    }

    /// The stream of receipts is another one, which is read from its first message on. This term goes on in it: a lower
    /// one that another edge has begun there does not count, and no place of the former stream goes on.
    fn forget_receipts(&mut self) {
        self.count_gap("the stream of receipts was replaced");
        self.read_to = None;
        self.ledger.forget_receipts();
        let held = self.held.as_mut().map(|held| &mut held.from);
        for from in [held, self.from.as_mut()].into_iter().flatten() {
            from.receipts = None;
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
