//! What was observed, in the order in which it was. Publishers, clients, consumers, the witness and the faults write; the auditor reads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Number of a message in [`Record::messages`].
pub type MessageNo = usize;
/// Number of a client in [`Record::clients`].
pub type ClientNo = usize;
/// Number of a connection in [`Record::connections`].
pub type ConnectionNo = usize;
/// Tags of a connection.
pub type Tags = BTreeSet<String>;

/// A business, as far as the auditor has to know it.
#[derive(Clone, Debug)]
pub struct Business {
    /// Its business type.
    pub name: String,
    /// Whether pushes go through a stream.
    pub durable: bool,
    /// Whether a reader or a client may be passed by the retention in this run.
    pub short_retention: bool,
    /// Message types to clients, and the client types that may get them.
    pub to: BTreeMap<String, Vec<String>>,
    /// Numbers of the businesses whose messages it accepts at first.
    pub accepts: BTreeSet<usize>,
}

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// All connections of an identity.
    Identity(String),
    /// All connections with a tag.
    Tag(String),
    /// All connections.
    Everyone,
    /// Queues of the business, by their short names.
    Queues(Vec<String>),
}

/// A message that somebody wanted to send, however often it was tried.
#[derive(Clone, Debug)]
pub struct Message {
    /// As in the envelope.
    pub id: String,
    /// Number of its sender's business.
    pub business: usize,
    /// Numbers of the businesses that it names. None: its sender's alone.
    pub shared: Vec<usize>,
    /// Who sends it. Within one sender, messages are in order.
    pub sender: String,
    /// Grows with each message of the sender.
    pub seq: u64,
    /// Whether the sender awaits the confirm of each message before it sends the next.
    pub in_order: bool,
    /// Its message type.
    pub kind: String,
    /// Whom it is for.
    pub to: To,
    /// Milliseconds since the epoch.
    pub expires_at: Option<u64>,
}

impl Message {
    /// Whether it is for clients of this business.
    pub fn is_for(&self, business: usize) -> bool {
        if self.shared.is_empty() { self.business == business } else { self.shared.contains(&business) }
    }
}

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Tells it from all others.
    pub name: String,
    /// Number of its business.
    pub business: usize,
    /// Its identity, which others may share.
    pub unique_id: String,
    /// Its client type.
    pub client_type: String,
    /// Whether it sees envelopes only.
    pub plain: bool,
}

/// What became of one attempt to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker has it.
    Confirmed,
    /// It did not arrive, and never will.
    NotArrived,
    /// It may have arrived, or may still arrive.
    Unknown,
}

/// What a fault touches, and so what it may excuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// An edge, or the network of clients.
    Edges,
    /// The broker, or the network to it.
    Broker,
    /// A business's services, its declaration, its bindings.
    Team,
}

/// Something observed.
#[derive(Clone, Debug)]
pub enum What {
    /// An attempt to publish begins.
    Offered { message: MessageNo },
    /// It has ended.
    Answered { message: MessageNo, outcome: Outcome },
    /// Of an attempt, this business got nothing: it does not accept it, or (not `refused`) the edge could not say. Written
    /// before the answer. `alone`: others did get it; otherwise the whole attempt did not arrive.
    Declined { message: MessageNo, business: usize, refused: bool, alone: bool },
    /// The witness read a message in a stream. `None`: one that nobody here sent.
    Stored { business: usize, offset: u64, message: Option<MessageNo> },
    /// The witness could not read up to this offset: the retention was faster.
    Unwitnessed { business: usize, until: u64 },
    /// A client asks for an upgrade, with this offset in its cursor.
    Asked { connection: ConnectionNo, cursor: Option<u64>, tags: Tags },
    /// It was upgraded.
    Opened { connection: ConnectionNo },
    /// `welcome`.
    Welcome { connection: ConnectionNo, resumed: Option<bool>, cursor: Option<u64> },
    /// A push came; with the offset of its cursor.
    Got { connection: ConnectionNo, message: Option<MessageNo>, cursor: Option<u64> },
    /// `position`.
    Position { connection: ConnectionNo, cursor: u64 },
    /// `gap`.
    Gap { connection: ConnectionNo, reason: String },
    /// The client asks for other tags.
    Refreshing { connection: ConnectionNo, tags: Tags },
    /// It has them, or was refused.
    Refreshed { connection: ConnectionNo, done: bool },
    /// The connection is over.
    Ended { connection: ConnectionNo, how: String },
    /// A consumer got a message from a queue.
    Consumed { queue: String, message: MessageNo, redelivered: bool },
    /// A client type is taken off a route, or put back; until it is settled, either may hold.
    RouteChanging { business: usize, kind: String, client_type: String, allowed: bool },
    /// Every edge has it.
    RouteSettled { business: usize, kind: String, client_type: String, allowed: bool },
    /// A business accepts the messages of another one, or does so no longer; until it is settled, either may hold.
    AcceptChanging { business: usize, from: usize, accepts: bool },
    /// Every edge has it.
    AcceptSettled { business: usize, from: usize, accepts: bool },
    /// A binding of the business was deleted: from here on what is confirmed may be moved back later, out of order.
    Unbound { business: usize },
    /// It is repaired, and everything was moved back.
    Rebound { business: usize },
    /// A fault begins.
    Fault { class: Class, what: String },
    /// It is over.
    Healed { class: Class, what: String },
    /// A promise was broken in the sight of whoever watched: an answer without a question, a program that ended on its own.
    Broken { what: String },
}

/// An observation and its time since the run's beginning.
#[derive(Clone, Debug)]
pub struct Entry {
    pub at: Duration,
    pub what: What,
}

/// Everything observed so far.
#[derive(Clone, Debug)]
pub struct Record {
    /// The wall clock at the beginning, in milliseconds since the epoch.
    pub began_ms: u64,
    pub businesses: Vec<Business>,
    pub messages: Vec<Message>,
    pub clients: Vec<Client>,
    /// The client of each connection.
    pub connections: Vec<ClientNo>,
    pub entries: Vec<Entry>,
}

impl Record {
    /// An empty record of these businesses.
    pub fn new(businesses: Vec<Business>) -> Self {
        let began_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        Self {
            began_ms,
            businesses,
            messages: Vec::new(),
            clients: Vec::new(),
            connections: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// The client of a connection.
    pub fn client_of(&self, connection: ConnectionNo) -> &Client {
        &self.clients[self.connections[connection]]
    }
}

/// The record while it is written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    began: Instant,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    record: Record,
    by_id: HashMap<String, MessageNo>,
}

impl Journal {
    /// The run begins.
    pub fn new(businesses: Vec<Business>) -> Self {
        let shared = Shared { record: Record::new(businesses), by_id: HashMap::new() };
        Self { began: Instant::now(), shared: Arc::new(Mutex::new(shared)) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an observation.
    pub fn note(&self, what: What) {
        let mut shared = self.lock();
        // Under the lock, so that the order of entries is that of their times.
        let at = self.began.elapsed();
        shared.record.entries.push(Entry { at, what });
    }

    /// Writes a broken promise.
    pub fn broken(&self, what: impl Into<String>) {
        self.note(What::Broken { what: what.into() });
    }

    /// Announces a message.
    pub fn message(&self, message: Message) -> MessageNo {
        let mut shared = self.lock();
        let number = shared.record.messages.len();
        shared.by_id.insert(message.id.clone(), number);
        shared.record.messages.push(message);
        number
    }

    /// Announces a client.
    pub fn client(&self, client: Client) -> ClientNo {
        let mut shared = self.lock();
        shared.record.clients.push(client);
        shared.record.clients.len() - 1
    }

    /// Announces a connection.
    pub fn connection(&self, client: ClientNo) -> ConnectionNo {
        let mut shared = self.lock();
        shared.record.connections.push(client);
        shared.record.connections.len() - 1
    }

    /// The message with this id.
    pub fn find(&self, id: &str) -> Option<MessageNo> {
        self.lock().by_id.get(id).copied()
    }

    /// The business whose message it is.
    pub fn business_of(&self, message: MessageNo) -> usize {
        self.lock().record.messages[message].business
    }

    /// A copy for the auditor.
    pub fn record(&self) -> Record {
        self.lock().record.clone()
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
