//! What the edge asks of a broker. [`rabbit`] is RabbitMQ, [`memory`] a broker inside the process for `wirepost dev` and simulation.
//!
//! *Publishing*: [`Broker::publish`] takes a message into the queue of its lane at once, so that calls of one connection keep their order,
//! and answers through the returned receiver: confirmed, or why not. *Reading*: [`Broker::tail`] follows what is pushed to a business;
//! [`Broker::read`] fetches older records for clients that come back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::sync::{oneshot, watch};
use wirepost_core::edge_config::Delivery;
pub use wirepost_stream::Position;

pub mod memory;
mod metrics;
pub mod rabbit;

/// Longest wait for a broker's confirm before a client is told.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// Headers (`message-type`, `from-client-type`, `from-unique-id`, `traceparent`); never client input in a property.
    pub headers: Vec<(&'static str, String)>,
}

/// Why a publish was not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nothing was sent: the broker is away or blocked, or the lane's queue is full.
    #[error("broker unavailable: {0}")]
    Unavailable(String),
    /// The broker returned or refused it: it did not arrive and may pass later (just after a restart this happens to healthy routes).
    #[error("not taken by the broker: {0}")]
    Refused(String),
    /// Sent, but no confirm came in time or the connection broke: it may have arrived.
    #[error("no confirm: {0}")]
    Unknown(String),
}

/// The broker's answer to a publish; a dropped sender means [`PublishError::Unknown`].
pub type Confirm = oneshot::Receiver<Result<(), PublishError>>;

/// One pushed message as read.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it stands. For `Transient` a number that only this process knows.
    pub position: Position,
    /// When the broker stored it, ms since the epoch (a stream keeps it for each chunk, so it is the same at every read).
    pub timestamp: i64,
    /// The envelope's bytes.
    pub body: Bytes,
    /// What is odd about it, where something is.
    pub oddity: Option<Oddity>,
}

/// What is odd about a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    /// No protocol gives it; it is not on the broker any more. It has no body.
    #[error("the broker can't deliver it ({0}); it was removed, so that those behind it arrive")]
    Unreadable(String),
    /// Its body is none of bytes or a text. It has no body here.
    #[error("its body is {0}; publish the JSON as bytes (a data section) or as a text")]
    Form(&'static str),
    /// It names an encoding of its content. Where the body is an envelope all the same, nothing is odd.
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

/// What a [`Feed`] tells.
#[derive(Debug)]
pub enum FeedEvent {
    /// Reading (again); continuity with what came before is shown. `position`: the last message before the next one to come, `None` =
    /// the stream is empty.
    Attached {
        /// See above.
        position: Option<Position>,
    },
    /// Messages in order.
    Records(RecordBatch),
    /// The stream's retention passed us: what lies between is lost, reading goes on.
    Gap,
    /// Another stream took the old one's name: reading goes on with that one's first message.
    Reset,
    /// Not reading at the moment; recovery is by itself.
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

    /// Messages that the broker holds and this feed has not handed out, as of a moment ago; `None` = not known. While the feed is down the
    /// number is an old one.
    fn lag(&self) -> Option<u64> {
        None
    }
}

/// A bounded piece of a stream, for clients that catch up.
#[derive(Debug)]
pub struct Piece {
    /// Records from the asked offset on, in order, without a hole of ours. Empty: the asked offset is beyond the end.
    pub records: Vec<Record>,
    /// First offset that the stream still has; `None` = empty.
    pub first_offset: Option<u64>,
    /// Whether the piece reaches the end of the stream as it was when reading began.
    pub at_end: bool,
}

/// Why a piece could not be read; a retry helps once the broker is back.
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
    /// Queues a message. `lane` is a connection's number: messages of one lane key keep their order; keys that share a lane are served in
    /// turn. Never blocks.
    fn publish(&self, lane: u64, publication: Publication) -> Confirm;

    /// Publishes an event of small worth: bounded, dropped with a counter where it can't be sent at once, not confirmed.
    fn emit(&self, publication: Publication);

    /// Follows the pushes of a business.
    fn tail(&self, business: &str, delivery: Delivery, start: Start) -> Box<dyn Feed>;

    /// Reads a piece of a business's stream from `from` on (the record at `from` included, where it exists), at most about `max_bytes`.
    fn read<'a>(&'a self, business: &'a str, from: u64, max_bytes: usize) -> BoxFuture<'a, Result<Piece, ReadError>>;

    /// Deletes what reading the pushes of a `Transient` business has left on the broker: nobody here will read them any more. Bounded in
    /// time; where it fails, what is left expires by itself. Call it when the business's feed is dropped.
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
