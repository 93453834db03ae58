//! What the edge asks of a broker. [`rabbit`] is RabbitMQ, [`memory`] a broker inside the process for `wirepost dev` and simulation.
//!
//! *Publishing*: [`Broker::publish`] takes a message into a queue immediately, so that calls of one connection keep their order, and answers
//! through the returned receiver: confirmed, or why not. [`Broker::turn`] holds back senders that can wait. *Reading*: [`Broker::tail`] follows what is pushed to a business;
//! [`Broker::read`] fetches older records for clients that come back.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
pub use origin::Origin;
use prometheus_client::registry::Registry;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use wirepost_core::{contract::configz::DECISIONS_VALID_FOR, edge_config::Delivery};
pub use wirepost_stream::Position;

pub mod memory;
mod metrics;
mod origin;
pub mod rabbit;

/// Longest wait for a broker's confirm. After that the client gets a nack.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
// The operator removes a queue only when nobody publishes to it any more; checking a message's content takes 1.2 s at most.
const _: () = assert!(CONFIRM_TIMEOUT.as_millis() + 1_200 < DECISIONS_VALID_FOR.as_millis());

/// A message to publish: persistent, mandatory, confirmed.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Exchange; empty is the default exchange, whose routing key is a queue's name.
    pub exchange: Arc<str>,
    /// Routing key: the message type.
    pub routing_key: String,
    /// The only queue behind the exchange that it is for, by its [`queue_key`](wirepost_core::names::queue_key). `None`: whatever the
    /// exchange has for the routing key.
    pub queue: Option<Arc<str>>,
    /// The envelope's id, also the property `message_id`.
    pub message_id: String,
    /// The envelope.
    pub body: Bytes,
    /// Ms since the epoch; AMQP keeps whole seconds.
    pub timestamp: i64,
    /// Headers (`message-type`, `from-client-type`, `from-unique-id`, `traceparent`, `to-business-…`); never client
    /// input in a property.
    pub headers: Vec<Header>,
}

/// Name and value of a header.
pub type Header = (Cow<'static, str>, String);

/// Why a publish was not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nothing was sent: the broker is away or blocked, or too much waits for it.
    #[error("broker unavailable: {0}")]
    Unavailable(String),
    /// Nothing was sent: the broker is slower than its publishers, and this could not be answered in time.
    #[error("broker unavailable: it is too slow for what waits already; try again in {} ms", .retry_after.as_millis())]
    Overloaded {
        /// When it may pass.
        retry_after: Duration,
    },
    /// The broker returned or refused it: it did not arrive and may pass later (just after a restart this happens to healthy routes).
    #[error("not taken by the broker: {0}")]
    Refused(String),
    /// The broker returned it: nothing is bound to the exchange that takes it. It did not arrive, and may pass later as well.
    #[error("not taken by the broker: {0}")]
    Unrouted(String),
    /// Sent, but no confirm came in time or the connection broke: it may have arrived.
    #[error("no confirm: {0}")]
    Unknown(String),
}

/// The broker's answer to a publish; a dropped sender means [`PublishError::Unknown`].
pub type Confirm = oneshot::Receiver<Result<(), PublishError>>;

/// A wait for one's turn to publish, see [`Broker::turn`]: as many messages as it returns, at least one.
pub type Turn = BoxFuture<'static, u8>;

/// One pushed message as read.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it stands. For `Transient` a number that only this process knows.
    pub position: Position,
    /// When the broker stored it, ms since the epoch (a stream keeps it for each chunk, so it is the same at every read).
    pub timestamp: i64,
    /// The envelope's bytes.
    pub body: Bytes,
    /// Why the message can't be used as it is, if so.
    pub defect: Option<MessageDefect>,
    /// Where it was published.
    pub origin: Origin,
}

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageDefect {
    /// No protocol delivers it, and the broker has removed it. It has no body.
    #[error("the broker can't deliver it ({0}); it was removed, so that the messages behind it arrive")]
    Unreadable(String),
    /// Its body is neither bytes nor text. Here it has no body.
    #[error("its body is {0}; publish the JSON as bytes (a data section) or as a text")]
    Form(&'static str),
    /// It names a content encoding. If the body is an envelope all the same, the message is usable.
    #[error("its content-encoding is {0:?}; publish the JSON as plain UTF-8 text, uncompressed")]
    Encoding(String),
}

/// Where a [`Feed`] starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the next message.
    Next,
    /// With the first one kept.
    First,
    /// After this one, if it is still the same one.
    After(Position),
}

/// What a [`Feed`] reports.
#[derive(Debug)]
pub enum FeedEvent {
    /// Reading (again), with proven continuity. `position`: the last message before the next one to come, `None` =
    /// the stream is empty.
    Attached {
        /// See above.
        position: Option<Position>,
    },
    /// Messages in order.
    Records(RecordBatch),
    /// Messages may be missing: the stream's retention overtook the reader, or a queue was lost. Reading goes on.
    Gap,
    /// A new stream has replaced the old one: reading goes on with its first message.
    Reset,
    /// Not reading at the moment; it recovers on its own.
    Down {
        /// For the log and `/readyz`.
        reason: String,
    },
}

/// Messages in order; `done` is called (or dropped) after they were handed to the sockets: it acknowledges or returns credit.
pub struct RecordBatch {
    /// The messages.
    pub records: Vec<Record>,
    /// Acknowledges when called, requeues (Transient) when dropped uncalled.
    pub done: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for RecordBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordBatch").field("records", &self.records.len()).finish_non_exhaustive()
    }
}

/// A supervised reader of one business's pushes. Ends when dropped.
pub trait Feed: Send {
    /// The next event; cancel safe; never ends.
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent>;

    /// Messages that the broker has and this feed has not handed out, as of a moment ago; `None` = not known. While the feed is down the
    /// number is an old one.
    fn lag(&self) -> Option<u64> {
        None
    }
}

/// A bounded read of a stream, for clients that catch up.
#[derive(Debug)]
pub struct Page {
    /// Records from the asked offset on, in order, without a hole of ours; one after that offset at least, unless the end
    /// is reached or what follows is lost. Empty: the asked offset is beyond the end.
    pub records: Vec<Record>,
    /// First offset that the stream still has; `None` = empty.
    pub first_offset: Option<u64>,
    /// Whether the page reaches the end of the stream as it was when reading began.
    pub at_end: bool,
    /// What follows the records is missing: it was deleted while it was read, or it can't be read (too large, or
    /// unreadable for longer than one read takes).
    pub lost: bool,
}

/// Why a page could not be read; a retry helps once the broker is back.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read the stream: {0}")]
pub struct ReadError(pub String);

/// How the broker is, for `/readyz`, metrics and early nacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Publishing works as far as known.
    Up,
    /// The broker takes no publishes (memory or disk alarm).
    Blocked(String),
    /// No connection.
    Away(String),
}

/// A broker.
pub trait Broker: Send + Sync + 'static {
    /// Queues a message. `sender` is a connection's number: messages of one sender to one exchange keep their order, and senders are served
    /// in turn. Never blocks.
    fn publish(&self, sender: u64, publication: Publication) -> Confirm;

    /// The same for a caller that waits until `deadline`, which is later than [`CONFIRM_TIMEOUT`] from now. Deadlines of one sender must
    /// not decrease.
    fn publish_by(&self, sender: u64, publication: Publication, deadline: Instant) -> Confirm {
        let _ = deadline;
        self.publish(sender, publication)
    }

    /// Whether a sender that can wait should: the broker is slower than what its business's clients send. `None`: go on. Else go on, with
    /// so many messages, once the future is ready; those that wait are let in first come, first served. Dropping it leaves the line.
    fn turn(&self, sender: u64, business: &str) -> Option<Turn> {
        let _ = (sender, business);
        None
    }

    /// Publishes an event, which may be lost: nobody learns whether it arrived, and it is dropped with a counter if it can't be sent soon.
    fn emit(&self, publication: Publication);

    /// Follows the pushes of a business.
    fn tail(&self, business: &str, delivery: Delivery, start: Start) -> Box<dyn Feed>;

    /// Follows a stream by its full name; `None`: streams can't be read, since no address is configured.
    fn follow(&self, stream: &str, start: Start) -> Option<Box<dyn Feed>> {
        let _ = (stream, start);
        None
    }

    /// Reads a page of a business's stream from `from` on (the record at `from` included, where it exists), at most about `max_bytes`.
    fn read<'a>(&'a self, business: &'a str, from: u64, max_bytes: usize) -> BoxFuture<'a, Result<Page, ReadError>>;

    /// Deletes what reading the pushes of a `Transient` business has left on the broker: this process reads them no longer. Bounded in
    /// time; if it fails, the queue expires on its own. Call it when the business's feed is dropped.
    fn leave<'a>(&'a self, business: &'a str) -> BoxFuture<'a, ()> {
        let _ = business;
        Box::pin(std::future::ready(()))
    }

    /// How the broker is.
    fn health(&self) -> watch::Receiver<Health>;

    /// Adds the broker's metrics, `wirepost_broker_…`, to a registry that has no prefix.
    fn register(&self, registry: &mut Registry);

    /// Ends connections in order; waits for publishes in flight up to a bound of its own.
    fn close(&self) -> BoxFuture<'_, ()>;
}
