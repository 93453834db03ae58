//! A lane: one channel with one mandatory, confirmed publish in flight. More in flight on a channel would attribute a returned message
//! to the wrong confirm; more lanes make up for it.
//!
//! # When a publisher is answered, and how
//! Within [`ANSWER_TIMEOUT`] of the call, whatever the broker and lapin do: an unsent message is `Unavailable`, a sent one `Unknown`.
//! The lane itself waits up to [`CONFIRM_TIMEOUT`] after sending; then its channel is discarded, so that a late confirm can't be
//! taken for the one of another message.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, Confirmation, ErrorKind,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::{contract::headers, names};
use wirepost_rabbitmq::Connection;

use super::{
    breaker::Breakers,
    counters::Counters,
    fair::{FairQueue, HasDeadline},
    link::{Link, Status},
};
use crate::{CONFIRM_TIMEOUT, Publication, PublishError};

/// A publisher is answered within this: the confirm timeout, less what answering takes.
const ANSWER_TIMEOUT: Duration = CONFIRM_TIMEOUT.saturating_sub(Duration::from_millis(200));
/// How often deadlines are checked while the lane waits for the broker.
const SWEEP: Duration = Duration::from_millis(50);
/// Longest wait for a channel to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that leaves everything unanswered for this long is given up, whatever its heartbeats say.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(6);

/// The end of the year 9999: client libraries that make a date of the AMQP timestamp fail beyond it, and their consumer with them.
const MAX_TIMESTAMP: u64 = 253_402_300_799;

/// A message and who waits for its outcome.
pub(super) struct Job {
    publication: Publication,
    reply: Option<oneshot::Sender<Result<(), PublishError>>>,
    deadline: Instant,
    counters: Arc<Counters>,
}

impl Job {
    pub(super) fn new(
        publication: Publication,
        reply: oneshot::Sender<Result<(), PublishError>>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { publication, reply: Some(reply), deadline: Instant::now() + ANSWER_TIMEOUT, counters }
    }

    fn bytes(&self) -> u64 {
        self.publication.body.len() as u64
    }

    /// Reports the outcome; only the first one counts.
    pub(super) fn answer(&mut self, outcome: Result<(), PublishError>) {
        let Some(reply) = self.reply.take() else { return };
        let counter = match &outcome {
            Ok(()) => &self.counters.confirmed,
            Err(PublishError::Unavailable(_)) => &self.counters.unavailable,
            Err(PublishError::Refused(_)) => &self.counters.refused,
            Err(PublishError::Unknown(_)) => &self.counters.unknown,
        };
        counter.add(1);
        // The publisher may be gone.
        let _ = reply.send(outcome);
    }
}

impl HasDeadline for Job {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// Whether a connection answers what lanes wait for, and if not, since when.
#[derive(Debug)]
pub(super) struct Responsiveness {
    epoch: Instant,
    /// Ms since `epoch`; [`Responsiveness::ANSWERS`] = the last thing waited for was answered.
    unanswered_since: AtomicU64,
}

impl Responsiveness {
    const ANSWERS: u64 = u64::MAX;

    pub(super) fn new() -> Self {
        Self { epoch: Instant::now(), unanswered_since: AtomicU64::new(Self::ANSWERS) }
    }

    fn answered(&self) {
        self.unanswered_since.store(Self::ANSWERS, Ordering::Relaxed);
    }

    /// Notes that an answer did not come within `waited`; returns how long none has come.
    fn silent(&self, waited: Duration) -> Duration {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let since = now.saturating_sub(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        let earlier = self.unanswered_since.fetch_min(since, Ordering::Relaxed);
        Duration::from_millis(now.saturating_sub(earlier.min(since)))
    }
}

/// What a lane shares with its publishers.
pub(super) struct Lane {
    queue: Mutex<FairQueue<Job>>,
    wake: Notify,
    max_bytes: u64,
    counters: Arc<Counters>,
}

impl Lane {
    /// `max_bytes`: of all lanes together.
    pub(super) fn new(capacity: usize, max_bytes: u64, counters: Arc<Counters>) -> Self {
        Self { queue: Mutex::new(FairQueue::new(capacity)), wake: Notify::new(), max_bytes, counters }
    }

    fn queue(&self) -> MutexGuard<'_, FairQueue<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message into the queue, or refuses it immediately.
    pub(super) fn push(&self, key: u64, mut job: Job) {
        let bytes = job.bytes();
        if self.counters.waiting_bytes.get() + bytes > self.max_bytes {
            job.answer(Err(unavailable("too many bytes wait for the broker")));
            return;
        }
        // Raised before the lane can take it out and lower it again.
        self.counters.waiting.add(1);
        self.counters.waiting_bytes.add(bytes);
        let refused = self.queue().push(key, job).err();
        match refused {
            None => self.wake.notify_one(),
            Some(mut job) => {
                self.left(&job);
                job.answer(Err(unavailable("too many messages wait for the broker")));
            }
        }
    }

    fn left(&self, job: &Job) {
        self.counters.waiting.sub(1);
        self.counters.waiting_bytes.sub(job.bytes());
    }

    fn pop(&self) -> Option<Job> {
        let job = self.queue().pop();
        job.inspect(|job| self.left(job))
    }

    fn sweep(&self, now: Instant, reason: &str) {
        let expired = self.queue().expired(now);
        for mut job in expired {
            self.left(&job);
            job.answer(Err(unavailable(reason)));
        }
    }

    fn refuse_all(&self, reason: &str) {
        let all = self.queue().drain();
        for mut job in all {
            self.left(&job);
            job.answer(Err(unavailable(reason)));
        }
    }
}

fn unavailable(reason: &str) -> PublishError {
    PublishError::Unavailable(reason.to_owned())
}

/// Empties one lane over one link.
pub(super) struct Worker {
    pub(super) lane: Arc<Lane>,
    pub(super) link: Link,
    pub(super) responsiveness: Arc<Responsiveness>,
    /// The alarm that the management API reports.
    pub(super) alarm: watch::Receiver<Option<String>>,
    pub(super) breakers: Arc<Breakers>,
    pub(super) counters: Arc<Counters>,
    /// Ends the lane once nothing waits.
    pub(super) closing: CancellationToken,
}

/// How sending a job ended.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on its way out of a function; a box would cost each publish"
)]
enum SendOutcome {
    /// The broker's answer, or how the channel ended.
    Outcome(Result<Confirmation, lapin::Error>),
    /// It does not fit AMQP's frames.
    Unencodable(String),
    /// The broker did not confirm in time.
    Silence,
    /// The channel had ended before; nothing was sent.
    Stale,
}

impl Worker {
    /// Runs until closed and empty.
    pub(super) async fn run(self) {
        let mut status = self.link.status();
        let mut channel: Option<Channel> = None;
        loop {
            let Some(mut job) = self.lane.pop() else {
                tokio::select! {
                    () = self.lane.wake.notified() => {}
                    // A message that is pushed later is refused: this worker would not take it out.
                    () = self.closing.cancelled() => if self.lane.queue().close_if_empty() { return },
                }
                continue;
            };
            if job.deadline <= Instant::now() {
                job.answer(Err(unavailable("it waited too long for the broker")));
                continue;
            }
            if let Err(reason) = self.breakers.check(&job.publication) {
                job.answer(Err(PublishError::Refused(reason)));
                continue;
            }
            while job.reply.is_some() {
                if let Some(reason) = self.blocked(&status) {
                    let reason = format!("the broker takes no messages: {reason}");
                    job.answer(Err(unavailable(&reason)));
                    self.lane.refuse_all(&reason);
                    break;
                }
                let Some(open) = self.ready(channel.take(), &mut status, &mut job).await else { continue };
                match self.send(&open, &mut job).await {
                    SendOutcome::Outcome(outcome) => {
                        self.responsiveness.answered();
                        match &outcome {
                            Ok(_) => self.breakers.passed(&job.publication),
                            Err(error) => self.breakers.ended(&job.publication, error),
                        }
                        job.answer(outcome_of(outcome));
                        if open.status().connected() {
                            channel = Some(open);
                        } else {
                            self.counters.channels_discarded.add(1);
                        }
                    }
                    SendOutcome::Unencodable(reason) => {
                        job.answer(Err(PublishError::Refused(reason)));
                        channel = Some(open);
                    }
                    SendOutcome::Silence => {
                        self.counters.channels_discarded.add(1);
                        job.answer(Err(PublishError::Unknown("the broker did not confirm in time".to_owned())));
                        self.reset_if_unresponsive(&status, CONFIRM_TIMEOUT);
                    }
                    // With a fresh channel, as long as there is time.
                    SendOutcome::Stale => self.counters.channels_discarded.add(1),
                }
            }
        }
    }

    fn blocked(&self, status: &watch::Receiver<Status>) -> Option<String> {
        if let Some(reason) = &*self.alarm.borrow() {
            return Some(reason.clone());
        }
        match &*status.borrow() {
            Status::Blocked(_, reason) => Some(reason.clone()),
            Status::Up(_) | Status::Down(_) => None,
        }
    }

    /// The channel if it is usable, else a new one. `None`: not now; the job is answered if its time is up.
    async fn ready(
        &self,
        channel: Option<Channel>,
        status: &mut watch::Receiver<Status>,
        job: &mut Job,
    ) -> Option<Channel> {
        if let Some(channel) = channel {
            if channel.status().connected() {
                return Some(channel);
            }
            self.counters.channels_discarded.add(1);
        }
        let current = status.borrow_and_update().clone();
        match current {
            Status::Down(reason) => {
                self.wait_for_link(status, job, &reason).await;
                None
            }
            Status::Blocked(..) => None,
            Status::Up(live) => {
                let opening = timeout(OPEN_TIMEOUT, open(&live));
                let opened = self.waiting(opening, job, "the broker opens no channel").await?;
                match opened {
                    Ok(Ok(channel)) => {
                        self.responsiveness.answered();
                        self.counters.channels_opened.add(1);
                        Some(channel)
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "no channel for publishing");
                        // The connection has ended; its link reports that soon.
                        self.wait_for_link(status, job, &error.to_string()).await;
                        None
                    }
                    Err(_) => {
                        self.reset_if_unresponsive(status, OPEN_TIMEOUT);
                        None
                    }
                }
            }
        }
    }

    async fn wait_for_link(&self, status: &mut watch::Receiver<Status>, job: &mut Job, reason: &str) {
        if let Some(Err(_)) = self.waiting(status.changed(), job, reason).await {
            job.answer(Err(unavailable("closed")));
        }
    }

    /// Waits for something the job needs before it can be sent; gives up when its time is up, which answers it. Meanwhile what waits
    /// behind it is answered in time too.
    async fn waiting<F: Future>(&self, needed: F, job: &mut Job, reason: &str) -> Option<F::Output> {
        let mut needed = pin!(needed);
        loop {
            let now = Instant::now();
            if job.deadline <= now {
                job.answer(Err(unavailable(reason)));
                return None;
            }
            tokio::select! {
                output = &mut needed => return Some(output),
                () = sleep_until(job.deadline.min(now + SWEEP)) => self.lane.sweep(Instant::now(), reason),
            }
        }
    }

    async fn send(&self, channel: &Channel, job: &mut Job) -> SendOutcome {
        let (exchange, routing_key, properties) = match frame(&job.publication) {
            Ok(frame) => frame,
            Err(reason) => return SendOutcome::Unencodable(reason),
        };
        let body = job.publication.body.clone();
        let give_up = Instant::now() + CONFIRM_TIMEOUT;
        let mut publishing = pin!(async {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            match channel.basic_publish(exchange, routing_key, options, &body, properties).await {
                Ok(confirm) => SendOutcome::Outcome(confirm.await),
                // Refused by lapin itself, before anything was written.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidChannelState(..)) => SendOutcome::Stale,
                Err(error) => SendOutcome::Outcome(Err(error)),
            }
        });
        loop {
            let now = Instant::now();
            if now >= give_up {
                return SendOutcome::Silence;
            }
            if job.deadline <= now {
                job.answer(Err(PublishError::Unknown("the broker did not confirm in time".to_owned())));
            }
            let next = if job.reply.is_some() { job.deadline.min(now + SWEEP) } else { now + SWEEP };
            tokio::select! {
                sent = &mut publishing => return sent,
                () = sleep_until(next) => self.lane.sweep(Instant::now(), "the broker is slow"),
            }
        }
    }

    /// An open connection may be unresponsive through a fault of the broker, the network or lapin. A blocked one is expected to be.
    fn reset_if_unresponsive(&self, status: &watch::Receiver<Status>, waited: Duration) {
        let up = matches!(&*status.borrow(), Status::Up(_));
        if up && self.alarm.borrow().is_none() && self.responsiveness.silent(waited) >= UNRESPONSIVE_TIMEOUT {
            self.link.reset();
            self.responsiveness.answered();
        }
    }
}

async fn open(connection: &Connection) -> Result<Channel, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// What the broker's answer means for the only message in flight on the channel.
fn outcome_of(answer: Result<Confirmation, lapin::Error>) -> Result<(), PublishError> {
    match answer {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => {
            let reason = format!("returned with {} {}", returned.reply_code, returned.reply_text);
            Err(PublishError::Refused(reason))
        }
        // One of several queues may have taken it and another, being full, not.
        Ok(Confirmation::Nack(None)) => {
            Err(PublishError::Unknown("a queue did not take it; it may be full".to_owned()))
        }
        Ok(Confirmation::NotRequested) => Err(PublishError::Unknown("the channel gives no confirms".to_owned())),
        // A channel error (no such exchange, no permission, too large) is found before routing.
        Err(error) if error.is_amqp_soft_error() => Err(PublishError::Refused(error.to_string())),
        Err(error) => Err(PublishError::Unknown(error.to_string())),
    }
}

type Frame = (ShortString, ShortString, BasicProperties);

/// What goes on the wire beside the body. Short strings have at most 255 bytes there: too long an id is left out of the property (the
/// envelope has it), too long a routing key can't be sent.
pub(super) fn frame(publication: &Publication) -> Result<Frame, String> {
    let short = |what: &str, text: &str| ShortString::try_new(text).map_err(|error| format!("{what}: {error}"));
    let mut headers = FieldTable::default();
    for (name, value) in &publication.headers {
        if let Ok(name) = ShortString::try_new(*name) {
            headers.insert(name, AMQPValue::LongString(value.as_bytes().into()));
        }
    }
    if let Some(queue) = &publication.queue {
        // The broker removes the first header. The other one stays, for a move back of the message.
        let key = AMQPValue::LongString(names::queue_key(queue).into());
        headers.insert(short("header", headers::BLIND_COPY)?, AMQPValue::FieldArray(vec![key].into()));
        headers.insert(short("header", headers::QUEUE)?, AMQPValue::LongString(queue.as_bytes().into()));
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(short("content type", headers::CONTENT_TYPE)?)
        .with_timestamp(u64::try_from(publication.timestamp / 1000).unwrap_or(0).min(MAX_TIMESTAMP))
        .with_headers(headers);
    if let Ok(id) = ShortString::try_new(publication.message_id.as_str()) {
        properties = properties.with_message_id(id);
    }
    Ok((short("exchange", &publication.exchange)?, short("routing key", &publication.routing_key)?, properties))
}
