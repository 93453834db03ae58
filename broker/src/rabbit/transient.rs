//! Feeds of `Transient` businesses: a queue of this edge, bound to the push exchange, consumed with manual acknowledgements.
//!
//! The queue is classic, durable and expires a minute after its consumer has gone. Durable, because RabbitMQ deprecates the
//! other kind for queues that outlive a connection, and so that it is still there after the broker's restart; classic, because a quorum
//! queue would replicate for each edge what one edge may lose. Exclusive to one consumer: a second edge of the same name waits instead of taking half
//! of the messages, and so does this edge until the broker has noticed that its own earlier connection is dead, which keeps the order.
//!
//! It lies on one node of the broker. While that is down, RabbitMQ 4.3 lets every call that concerns the queue wait for a minute, and
//! refuses what is published to it together with the copies for all others; but it deletes it at once. So a queue that does not answer and
//! refuses a message is deleted and declared again, on a node that runs, and a gap is reported. A broker that is merely slow takes the
//! message, or answers nothing: then the queue stays with what is in it. Versions that don't find a queue whose node is down get one of
//! another name; the former one comes back with its node and expires.
//!
//! Each business has a connection of its own, because a message can end it. Properties are not interpreted ([`wirepost_amqp`]), so
//! malformed ones do no harm. Where the broker can't translate a message into the protocol of the connection and ends it, the reader
//! continues by the other protocol ([`source`]), from the same message. Only a message that neither delivers is removed, and reported.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wirepost_amqp::{Error, v091::Connection};
use wirepost_core::names;
use wirepost_rabbitmq::Endpoint;
use wirepost_runtime::{
    backoff::Backoff,
    clock,
    tasks::{Cause, Supervisor, Tasks},
};

use super::{
    counters::Counters,
    dialer::{Dialer, HEARTBEAT},
};
use crate::{Feed, FeedEvent, MessageDefect, Origin, Position, Record, RecordBatch, Start};

mod batches;
mod identity;
mod queue;
mod source;

use batches::{BatchToken, Unsettled};
use identity::Identities;
use queue::{SPARES, claim, is_down, queue_name};
use source::{Delivery, Protocol, Source};

pub(super) use queue::delete_queue;

/// First and longest bound of the pauses between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// Times in a row that connections end for the first message of the queue before it is removed: by each protocol, twice.
const STUCK: u32 = 4;
/// Messages and bytes of one batch at most; a batch is what is there anyway, it is never waited for.
const BATCH: (usize, usize) = (100, 256 << 10);
/// How often the binding is repeated.
const REBIND_INTERVAL: Duration = Duration::from_secs(10);
const CANCELLED: &str = "the broker cancelled the consumer; was the queue deleted, or is its node down?";
/// Events on their way to the reader.
const EVENTS: usize = 4;

/// Positions for records that have none of their own. Offsets grow over the life of the process; the fingerprint belongs to the process,
/// so that a position of another process is never mistaken for one of this.
#[derive(Debug)]
pub(super) struct Sequence {
    last: AtomicU64,
    process: u64,
}

impl Sequence {
    pub(super) fn new() -> Self {
        Self { last: AtomicU64::new(0), process: rand::random() }
    }

    fn next(&self) -> Position {
        Position { offset: self.last.fetch_add(1, Ordering::Relaxed) + 1, fingerprint: self.process }
    }
}

/// Reads the pushes of one business. Dropping it ends the reader; what was not acknowledged stays in the queue until that expires.
pub(super) struct TransientFeed {
    // The first to be dropped: the reader is asked to end before it finds that nobody receives.
    _stop: DropGuard,
    events: mpsc::Receiver<FeedEvent>,
}

impl Feed for TransientFeed {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async move {
            match self.events.recv().await {
                Some(event) => event,
                // The broker is closed: a feed never ends on its own.
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

/// Keeps one queue consumed.
pub(super) struct Reader {
    pub(super) dialer: Arc<Dialer>,
    pub(super) business: String,
    pub(super) edge: String,
    pub(super) start: Start,
    pub(super) prefetch: u16,
    pub(super) sequence: Arc<Sequence>,
    pub(super) counters: Arc<Counters>,
    pub(super) supervisor: Supervisor,
}

/// Why consuming ended.
struct ConsumeEnd {
    reason: String,
    /// The broker failed at a message.
    failed: bool,
    /// Messages were settled before.
    some: bool,
}

/// What a reader knows beyond one connection.
struct ReaderProgress {
    attached: bool,
    /// An attempt had to declare the queue, or to take another one, even if it failed later: what came before is lost.
    made: bool,
    /// Which of the edge's queues is used: 0 is the usual one.
    queue: u8,
    /// The node of that queue is down: it is to be deleted.
    down: bool,
    identities: Identities,
    protocol: Protocol,
    /// Times in a row that the first message ended the connection.
    stuck: u32,
    /// Messages to be read one at a time. Of those that were fetched when a connection ended nothing was settled: fetched by the hundred again,
    /// by the other protocol, another one among them could end that connection too, and so on forever.
    careful: u32,
    /// The last change of protocol.
    switched: Option<Instant>,
}

impl Reader {
    /// Begins to read, until the feed is dropped or `closing`.
    pub(super) fn start(self, tasks: &Tasks, closing: &CancellationToken) -> TransientFeed {
        let (sender, events) = mpsc::channel(EVENTS);
        let stop = closing.child_token();
        tasks.until("transient reader", &stop, self.run(sender));
        TransientFeed { _stop: stop.drop_guard(), events }
    }

    async fn run(self, events: mpsc::Sender<FeedEvent>) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut down = false;
        let mut progress = ReaderProgress {
            attached: false,
            made: false,
            queue: 0,
            down: false,
            identities: Identities::new(self.prefetch),
            protocol: Protocol::Amqp091,
            stuck: 0,
            careful: 0,
            switched: None,
        };
        let mut attempt = rand::random_range(0..self.dialer.addresses.len());
        loop {
            let attaching = self.supervisor.attempt("transient consumer", self.attach(attempt, &mut progress)).await;
            let reason = match attaching.unwrap_or_else(|cause| Err(cause.to_string())) {
                Ok(source) => {
                    self.counters.connects.add(1);
                    if progress.attached {
                        self.counters.transient_restarts.add(1);
                    }
                    // At the first attachment the queue is always new, and no client waited for it.
                    let lost = std::mem::take(&mut progress.made);
                    if lost {
                        progress.identities.forget();
                    }
                    let gap = progress.attached && lost;
                    (progress.attached, down) = (true, false);
                    let since = Instant::now();
                    let following = self.follow(source, gap, &mut progress.careful, &mut progress.identities, &events);
                    // Of the messages that were not settled none is lost: the broker delivers them again.
                    let followed = self.supervisor.attempt("transient consumer", following).await;
                    let panicked =
                        |cause: Cause| Some(ConsumeEnd { reason: cause.to_string(), failed: false, some: false });
                    let Some(end) = followed.unwrap_or_else(panicked) else { return };
                    progress.identities.disconnected();
                    self.counters.connections_lost.add(1);
                    backoff.lasted(since.elapsed());
                    if end.failed {
                        progress.protocol = progress.protocol.other();
                        progress.stuck = if end.some { 1 } else { progress.stuck + 1 };
                        progress.careful = self.prefetch.into();
                        self.counters.transient_switches.add(1);
                        tracing::warn!(
                            business = self.business,
                            reason = end.reason,
                            protocol = ?progress.protocol,
                            "the broker can't translate a message; reading continues by the other protocol"
                        );
                        // Until both protocols were tried, a pause would not help.
                        if progress.stuck < STUCK / 2 {
                            // Alternating kinds of messages would otherwise open a connection each.
                            if progress.switched.replace(Instant::now()).is_some_and(|last| last.elapsed() < BACKOFF.1)
                            {
                                sleep(BACKOFF.0).await;
                            }
                            continue;
                        }
                    }
                    end.reason
                }
                Err(reason) => {
                    attempt += 1;
                    self.counters.connect_failures.add(1);
                    reason
                }
            };
            tracing::debug!(business = self.business, reason, "pushes are not consumed");
            if !std::mem::replace(&mut down, true) && events.send(FeedEvent::Down { reason }).await.is_err() {
                return;
            }
            sleep(backoff.next_pause()).await;
            if progress.stuck >= STUCK {
                let removing = self.remove_first(attempt, &mut progress, &events);
                let sent = match self.supervisor.attempt("transient consumer", removing).await {
                    Ok(sent) => sent,
                    // The message may have been taken.
                    Err(_) => events.send(FeedEvent::Gap).await.ok(),
                };
                if sent.is_none() {
                    return;
                }
                progress.stuck = 0;
            }
        }
    }

    async fn attach(&self, attempt: usize, progress: &mut ReaderProgress) -> Result<Source, String> {
        let endpoint = self.dialer.endpoint(attempt, &format!("consuming {}", self.business))?;
        self.try_attach(&endpoint, progress).await.map_err(|error| match error {
            Error::Channel { code: 403, text } => format!("consuming: {text} (is another edge of this name running?)"),
            error => error.to_string(),
        })
    }

    async fn try_attach(&self, endpoint: &Endpoint, progress: &mut ReaderProgress) -> Result<Source, Error> {
        let mut connection = Connection::open(endpoint, HEARTBEAT).await?;
        let mut queue = queue_name(&self.business, &self.edge, progress.queue);
        let mut left_behind = !progress.attached && self.start == Start::Next;
        if progress.down {
            tracing::warn!(
                business = self.business,
                queue,
                "the node of this edge's queue is down; the queue is deleted and declared again"
            );
            progress.made = true;
            match connection.delete(&queue).await {
                Ok(()) => {}
                // Some versions don't find it while its node is down.
                Err(error) if error.is_not_found() => {
                    connection.open_channel().await?;
                    progress.queue = (progress.queue + 1) % (SPARES + 1);
                    queue = queue_name(&self.business, &self.edge, progress.queue);
                    left_behind = true;
                }
                Err(error) => return Err(error),
            }
        }
        if let Err(error) = claim(&mut connection, &queue, left_behind, &mut progress.made).await {
            // Or it can't be declared either.
            progress.down |= match error {
                Error::Timeout { .. } => is_down(endpoint, &self.business).await,
                _ => error.is_not_found(),
            };
            return Err(error);
        }
        progress.down = false;
        connection.bind(&queue, &names::push_exchange(&self.business), "").await?;
        let prefetch = if progress.careful > 0 { 1 } else { self.prefetch };
        Source::consume(connection, endpoint, &self.business, queue, progress.protocol, prefetch).await
    }

    /// Hands on what arrives until consuming ends; `None` when the feed was dropped.
    async fn follow(
        &self,
        mut source: Source,
        gap: bool,
        careful: &mut u32,
        identities: &mut Identities,
        events: &mpsc::Sender<FeedEvent>,
    ) -> Option<ConsumeEnd> {
        if gap {
            events.send(FeedEvent::Gap).await.ok()?;
        }
        // No position: no message is kept for a client to resume from.
        events.send(FeedEvent::Attached { position: None }).await.ok()?;
        let exchange = names::push_exchange(&self.business);
        // A batch has one message at least and settles once: there is always room for its token.
        let (settle, mut settled) = mpsc::channel(usize::from(self.prefetch));
        let mut unsettled = Unsettled::default();
        // Bounded by the prefetch.
        let mut waiting = VecDeque::new();
        let mut rebind = interval_at(Instant::now() + REBIND_INTERVAL, REBIND_INTERVAL);
        rebind.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut one_by_one = *careful > 0;
        let mut some = false;
        let end = |error: Error, some| ConsumeEnd { reason: error.to_string(), failed: error.is_internal(), some };
        loop {
            tokio::select! {
                // An exchange that was deleted and recreated has no binding to this queue, and nothing else would show it.
                _ = rebind.tick() => if let Err(error) = source.bind_again(&exchange).await {
                    return Some(end(error, some));
                },
                Some(token) = settled.recv() => {
                    for (range, done) in unsettled.settle(token) {
                        some |= done;
                        identities.settled(range, done);
                        *careful = careful.saturating_sub(1);
                        if !done {
                            self.counters.transient_requeued.add(1);
                        }
                        if let Err(error) = source.settle(range.0, range.1, done).await {
                            return Some(end(error, some));
                        }
                    }
                    if one_by_one && *careful == 0 {
                        one_by_one = false;
                        if let Err(error) = source.ease(self.prefetch).await {
                            return Some(end(error, some));
                        }
                    }
                }
                delivery = source.recv() => match delivery {
                    Ok(Some(delivery)) => waiting.push_back(delivery),
                    Ok(None) => return Some(ConsumeEnd { reason: CANCELLED.to_owned(), failed: false, some }),
                    Err(error) => return Some(end(error, some)),
                },
                permit = events.reserve(), if !waiting.is_empty() => {
                    let permit = permit.ok()?;
                    let (records, range) = self.batch(&mut waiting, identities);
                    self.counters.transient_records.add(records.len() as u64);
                    unsettled.push(range);
                    let token = BatchToken { tag: range.1, done: false, settle: settle.clone() };
                    permit.send(FeedEvent::Records(RecordBatch { records, done: Some(token.into_done()) }));
                },
            }
        }
    }

    /// Records of the messages at the front, and the first and last tag of them.
    fn batch(&self, waiting: &mut VecDeque<Delivery>, identities: &mut Identities) -> (Vec<Record>, (u64, u64)) {
        let mut records = Vec::new();
        let (mut bytes, mut range) = (0, (0, 0));
        while records.len() < BATCH.0
            && bytes < BATCH.1
            && let Some(delivery) = waiting.pop_front()
        {
            bytes += delivery.body.len();
            range = (if records.is_empty() { delivery.tag } else { range.0 }, delivery.tag);
            records.push(self.record(delivery, identities));
        }
        (records, range)
    }

    fn record(&self, delivery: Delivery, identities: &mut Identities) -> Record {
        let (position, timestamp) = identities.of(&delivery, &self.sequence, clock::now_ms());
        let Delivery { body, defect, origin, .. } = delivery;
        Record { position, timestamp, body, defect, origin }
    }

    /// Removes the first message of the queue without acknowledgement: it is gone whether it can be read or not. `None` when the feed was
    /// dropped.
    async fn remove_first(
        &self,
        attempt: usize,
        progress: &mut ReaderProgress,
        events: &mpsc::Sender<FeedEvent>,
    ) -> Option<()> {
        let queue = queue_name(&self.business, &self.edge, progress.queue);
        // Without credentials there is no connection: the next attempt reports it.
        let Ok(endpoint) = self.dialer.endpoint(attempt, &format!("removing {}", self.business)) else {
            return Some(());
        };
        let taking = async {
            let mut connection = Connection::open(&endpoint, HEARTBEAT).await?;
            match connection.take(&queue).await {
                Ok(message) => Ok(message.map(|message| source::of_amqp091(&self.business, message))),
                // The broker removes a message before it finds that it can't translate it.
                Err(error) if error.is_internal() => {
                    self.counters.transient_unreadable.add(1);
                    let defect = Some(MessageDefect::Unreadable(error.to_string()));
                    let (body, origin) = (bytes::Bytes::new(), Origin::default());
                    Ok(Some(Delivery { tag: 0, redelivered: Some(false), body, defect, origin }))
                }
                Err(error) => Err(error),
            }
        };
        let event = match taking.await {
            Ok(Some(delivery)) => {
                let records = vec![self.record(delivery, &mut progress.identities)];
                progress.identities.disconnected();
                FeedEvent::Records(RecordBatch { records, done: None })
            }
            // The queue is empty or does not exist, or it was never asked.
            Ok(None) | Err(Error::Connect { .. } | Error::Channel { .. }) => return Some(()),
            // The connection broke: the message may have been on its way.
            Err(_) => FeedEvent::Gap,
        };
        events.send(event).await.ok()
    }
}
