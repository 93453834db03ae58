//! Feeds of `Transient` businesses: a queue of this edge, bound to the push exchange, consumed with manual acknowledgements.
//!
//! The queue is classic, durable and expires [`EXPIRES_MS`] after its consumer has gone. Durable, because RabbitMQ deprecates the
//! other kind for queues that outlive a connection, and so that it is still there after the broker's restart; classic, because a quorum
//! queue would replicate for each edge what one edge may lose. Exclusive to one consumer: a second edge of the same name waits instead of taking half
//! of the messages, and so does this edge until the broker has noticed that its own earlier connection is dead, which keeps the order.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use lapin::{
    Channel, Consumer,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wirepost_core::names;

use super::{
    counters::Counters,
    link::{Link, Live, Status},
};
use crate::broker::{Feed, FeedEvent, Position, Record, RecordBatch, Start};

/// How long the queue lives without a consumer.
const EXPIRES_MS: i32 = 60_000;
/// Longest wait for each of the broker's answers.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new reader waits for the connection before it says that there is none.
const GRACE: Duration = Duration::from_secs(1);
/// First and longest pause between attempts; each is drawn from its upper half.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// Messages and bytes of one batch at most; a batch is what is there anyway, it is never waited for.
const BATCH: (usize, usize) = (100, 256 << 10);
/// Between two looks after our binding.
const REBIND: Duration = Duration::from_secs(10);
const CANCELLED: &str = "the broker cancelled the consumer; was the queue deleted?";
/// Events on their way to the reader.
const EVENTS: usize = 4;

/// Numbers for records that have none of their own. They grow over the life of the process; the fingerprint is the process's own, so
/// that a position of another process is never taken for one of this.
#[derive(Debug)]
pub(super) struct Numbers {
    last: AtomicU64,
    process: u64,
}

impl Numbers {
    pub(super) fn new() -> Self {
        Self { last: AtomicU64::new(0), process: rand::random() }
    }

    fn next(&self) -> Position {
        Position { offset: self.last.fetch_add(1, Ordering::Relaxed) + 1, fingerprint: self.process }
    }
}

/// Reads the pushes of one business. Dropping it ends the reader; what was not acknowledged stays in the queue until that expires.
pub(super) struct TransientFeed {
    events: mpsc::Receiver<FeedEvent>,
    _stop: DropGuard,
}

impl Feed for TransientFeed {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async move {
            match self.events.recv().await {
                Some(event) => event,
                // The broker is closed: a feed never ends by itself.
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

/// Keeps one queue consumed.
pub(super) struct Reader {
    pub(super) link: Link,
    pub(super) business: String,
    pub(super) edge: String,
    pub(super) start: Start,
    pub(super) prefetch: u16,
    pub(super) numbers: Arc<Numbers>,
    pub(super) counters: Arc<Counters>,
}

impl Reader {
    /// The feed, and what runs it until the feed is dropped or `closing`.
    pub(super) fn new_feed(
        self,
        closing: &CancellationToken,
    ) -> (TransientFeed, impl Future<Output = ()> + Send + use<>) {
        let (sender, events) = mpsc::channel(EVENTS);
        let stop = closing.child_token();
        let feed = TransientFeed { events, _stop: stop.clone().drop_guard() };
        let run = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.run(sender) => {}
            }
        };
        (feed, run)
    }

    async fn run(self, events: mpsc::Sender<FeedEvent>) {
        let mut status = self.link.status();
        let mut pause = Duration::ZERO;
        let (mut attached, mut down) = (false, false);
        // Whether an attempt had to make the queue, also one that failed later: what came before is lost.
        let mut made = false;
        // The first reader's connection has only been asked for: that is no outage yet.
        let _ = timeout(GRACE, status.wait_for(|status| status.live().is_some())).await.map(drop);
        loop {
            let current = status.borrow_and_update().clone();
            let reason = match (current.live(), &current) {
                (Some(live), _) => match self.attach(live, !attached, &mut made).await {
                    Ok(attachment) => {
                        if attached {
                            self.counters.transient_restarts.add(1);
                        }
                        // The first one's queue is always new, and nobody waited for it.
                        let lost = std::mem::take(&mut made);
                        let gap = attached && lost;
                        (attached, down, pause) = (true, false, Duration::ZERO);
                        match self.follow(attachment, gap, &events).await {
                            Some(reason) => reason,
                            None => return,
                        }
                    }
                    Err(reason) => reason,
                },
                (None, Status::Down(reason)) => reason.clone(),
                (None, Status::Up(_) | Status::Blocked(..)) => continue,
            };
            tracing::debug!(business = self.business, reason, "pushes are not consumed");
            if !std::mem::replace(&mut down, true) && events.send(FeedEvent::Down { reason }).await.is_err() {
                return;
            }
            pause = (pause * 2).clamp(BACKOFF.0, BACKOFF.1);
            let rest = sleep(pause.mul_f64(rand::random_range(0.5..=1.0)));
            if current.live().is_some() {
                rest.await;
            } else {
                // Without a connection there is nothing to try; a change of its state is worth a look at once.
                tokio::select! {
                    () = rest => {}
                    _ = status.changed() => pause = Duration::ZERO,
                }
            }
        }
    }

    async fn attach(&self, live: &Live, first: bool, made: &mut bool) -> Result<Attachment, String> {
        let queue = names::edge_queue(&self.business, &self.edge);
        let queue = short(&queue)?;

        let mut channel = call("a channel", live.connection.create_channel()).await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declare = channel.queue_declare(queue.clone(), passive, FieldTable::default());
        let known = match timeout(CALL_TIMEOUT, declare).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) if is_not_found(&error) => false,
            Ok(Err(error)) => return Err(format!("the queue: {error}")),
            Err(_) => return Err(format!("the queue: no answer within {CALL_TIMEOUT:?}")),
        };
        if !known {
            *made = true;
            // That closed the channel.
            channel = call("a channel", live.connection.create_channel()).await?;
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
            arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES_MS));
            let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            call("declaring the queue", channel.queue_declare(queue.clone(), durable, arguments)).await?;
        }
        self.bind(&channel).await?;
        if first && !*made && self.start == Start::Next {
            // What an earlier reader left behind is not next.
            call("emptying the queue", channel.queue_purge(queue.clone(), QueuePurgeOptions::default())).await?;
        }
        call("prefetch", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let tag = short(&format!("wirepost-edge-{:016x}", rand::random::<u64>()))?;
        let consume = channel.basic_consume(queue, tag, options, FieldTable::default());
        let consumer = call("consuming (is another edge of this name running?)", consume).await?;
        Ok(Attachment { channel, consumer })
    }

    async fn bind(&self, channel: &Channel) -> Result<(), String> {
        let queue = short(&names::edge_queue(&self.business, &self.edge))?;
        let exchange = short(&names::push_exchange(&self.business))?;
        let bind = channel.queue_bind(queue, exchange, "".into(), QueueBindOptions::default(), FieldTable::default());
        call("binding the queue to the push exchange", bind).await
    }

    /// Hands on what arrives. The reason when consuming ends; `None` when the feed was dropped.
    async fn follow(&self, attachment: Attachment, gap: bool, events: &mpsc::Sender<FeedEvent>) -> Option<String> {
        let Attachment { channel, mut consumer } = attachment;
        if gap {
            events.send(FeedEvent::Gap).await.ok()?;
        }
        // No position: nothing is kept that one could come back to.
        events.send(FeedEvent::Attached { position: None }).await.ok()?;
        // A batch has one message at least and settles once: there is always room for its token.
        let (settle, mut settled) = mpsc::channel(usize::from(self.prefetch));
        let mut unsettled = Unsettled::default();
        let mut batch = Batch::default();
        let mut rebind = interval_at(Instant::now() + REBIND, REBIND);
        rebind.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // An exchange that was deleted and made again has no binding to us, and nothing else would tell.
                _ = rebind.tick() => if let Err(reason) = self.bind(&channel).await {
                    return Some(reason);
                },
                Some(token) = settled.recv() => {
                    for (tag, done) in unsettled.settle(token) {
                        self.settle(&channel, tag, done).await?;
                    }
                }
                delivery = consumer.next(), if batch.records.is_empty() => match delivery {
                    Some(Ok(delivery)) => self.take(delivery, &mut batch),
                    Some(Err(error)) => return Some(error.to_string()),
                    None => return Some(CANCELLED.to_owned()),
                },
                permit = events.reserve(), if !batch.records.is_empty() => {
                    let permit = permit.ok()?;
                    let mut end = None;
                    while batch.records.len() < BATCH.0 && batch.bytes < BATCH.1 {
                        match consumer.next().now_or_never() {
                            Some(Some(Ok(delivery))) => self.take(delivery, &mut batch),
                            // Told once only: a cancelled consumer is silent for ever after.
                            Some(Some(Err(error))) => end = Some(error.to_string()),
                            Some(None) => end = Some(CANCELLED.to_owned()),
                            None => break,
                        }
                        if end.is_some() {
                            break;
                        }
                    }
                    let Batch { records, last_tag, .. } = std::mem::take(&mut batch);
                    self.counters.transient_records.add(records.len() as u64);
                    unsettled.push(last_tag);
                    let token = Token { tag: last_tag, done: false, settle: settle.clone() };
                    permit.send(FeedEvent::Records(RecordBatch { records, done: Some(token.into_done()) }));
                    if end.is_some() {
                        return end;
                    }
                    if !channel.status().connected() {
                        return Some("the channel ended".to_owned());
                    }
                },
            }
        }
    }

    fn take(&self, delivery: Delivery, batch: &mut Batch) {
        batch.bytes += delivery.data.len();
        batch.last_tag = delivery.delivery_tag;
        batch.records.push(Record {
            position: self.numbers.next(),
            timestamp: now_ms(),
            body: Bytes::from(delivery.data),
        });
    }

    /// Settles everything up to `tag`. `None` would end the feed, so a failure waits for the consumer to tell the reason.
    async fn settle(&self, channel: &Channel, tag: u64, done: bool) -> Option<()> {
        let settling = async {
            if done {
                channel.basic_ack(tag, BasicAckOptions { multiple: true }).await
            } else {
                self.counters.transient_requeued.add(1);
                channel.basic_nack(tag, BasicNackOptions { multiple: true, requeue: true }).await
            }
        };
        if let Err(reason) = call("acknowledging", settling).await {
            tracing::debug!(business = self.business, reason, "not acknowledged; it will be delivered again");
        }
        Some(())
    }
}

/// Deletes an edge's queue of a business, with what it holds.
pub(super) async fn delete_queue(link: &Link, business: &str, edge: &str) -> Result<(), String> {
    let mut status = link.status();
    let wanted = timeout(CALL_TIMEOUT, status.wait_for(|status| status.live().is_some())).await;
    let Ok(Ok(Some(live))) = wanted.map(|up| up.map(|status| status.live().cloned())) else {
        return Err("there is no connection".to_owned());
    };
    let channel = call("a channel", live.connection.create_channel()).await?;
    let queue = short(&names::edge_queue(business, edge))?;
    // One that is not there is no error in AMQP.
    call("deleting the queue", channel.queue_delete(queue, QueueDeleteOptions::default())).await.map(drop)
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == 404)
}

fn short(text: &str) -> Result<ShortString, String> {
    ShortString::try_new(text).map_err(|error| format!("{text}: {error}"))
}

struct Attachment {
    channel: Channel,
    consumer: Consumer,
}

#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    bytes: usize,
    last_tag: u64,
}

/// Batches handed out, by their last delivery tag, in order. They are settled in this order, so that one acknowledgement with `multiple`
/// covers exactly its batch.
#[derive(Debug, Default)]
struct Unsettled(VecDeque<(u64, Option<bool>)>);

impl Unsettled {
    fn push(&mut self, tag: u64) {
        self.0.push_back((tag, None));
    }

    /// Notes an outcome; gives what can be settled now.
    fn settle(&mut self, (tag, done): (u64, bool)) -> Vec<(u64, bool)> {
        if let Some(batch) = self.0.iter_mut().find(|batch| batch.0 == tag) {
            batch.1 = Some(done);
        }
        let mut ready = Vec::new();
        while let Some((tag, Some(done))) = self.0.front().copied() {
            self.0.pop_front();
            ready.push((tag, done));
        }
        ready
    }
}

/// Tells the reader that a batch is done, or was dropped undone.
struct Token {
    tag: u64,
    done: bool,
    settle: mpsc::Sender<(u64, bool)>,
}

impl Token {
    fn into_done(self) -> Box<dyn FnOnce() + Send> {
        Box::new(move || {
            // By value: a closure that only named the field would take a copy of it.
            let mut token = self;
            token.done = true;
        })
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        // Fails when the reader has begun anew: the broker delivers the batch again.
        let _ = self.settle.try_send((self.tag, self.done));
    }
}

async fn call<T>(what: &str, answer: impl Future<Output = Result<T, lapin::Error>>) -> Result<T, String> {
    match timeout(CALL_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: no answer within {CALL_TIMEOUT:?}")),
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_settled_in_their_order() {
        let mut unsettled = Unsettled::default();
        for tag in [3, 5, 9] {
            unsettled.push(tag);
        }
        assert_eq!(unsettled.settle((5, true)), []);
        assert_eq!(unsettled.settle((3, false)), [(3, false), (5, true)]);
        assert_eq!(unsettled.settle((9, true)), [(9, true)]);
    }

    #[test]
    fn a_token_tells_done_or_dropped_once() {
        let (settle, mut settled) = mpsc::channel(2);
        let token = |tag| Token { tag, done: false, settle: settle.clone() }.into_done();
        token(1)();
        drop(token(2));
        assert_eq!(settled.try_recv(), Ok((1, true)));
        assert_eq!(settled.try_recv(), Ok((2, false)));
        assert!(settled.try_recv().is_err());
    }
}
