//! One connection: its task, its calls, its subscriptions.
//!
//! One task reads and writes the socket and ends with the connection; dropping the last [`Connection`] ends it. Callers
//! write into an outbox of bytes that the task sends; what the broker sends goes to the waiting call or into the queue
//! of the subscription. That queue has room for all the broker's credit, so the task never waits for a reader of
//! messages.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout},
};
use tracing::{Instrument, debug};
use wirepost_runtime::tasks::{Supervisor, Tasks};

use crate::{
    chunk::Chunk,
    codec::{Fields, Malformed, ResponseCode, key, put_frame, put_string},
    config::Config,
    error::Error,
    flow::{ChunkPermit, Flow, lock},
    handshake::{Address, Handshake},
    metrics::Counters,
};

mod reader; // a subscription: its id, its queue, its end
mod task; // reads and writes the socket

pub(crate) use reader::{Reservation, StreamReader};
use task::Limits;

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Specification {
    First,
    /// The last chunk with messages, whole.
    Last,
    /// The whole chunk that contains this offset, or the next one.
    Offset(u64),
}

/// What a subscription receives. The queue ends with the connection.
#[derive(Debug)]
pub(crate) enum Delivery {
    Chunk(Chunk, ChunkPermit),
    /// A chunk above the size limit was dropped; more may follow.
    Oversized(ChunkPermit),
    /// The broker ended this subscription; the connection remains.
    Ended(ResponseCode),
}

/// Statistics of a stream as one node sees it. All `None`: the stream is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamStats {
    /// The stream's first offset. May lie just below the first message.
    pub first_offset: Option<u64>,
    /// First offset of the newest committed chunk.
    pub committed_chunk_id: Option<u64>,
    /// Newest committed offset; brokers from 4.3 on only.
    pub committed_offset: Option<u64>,
}

impl StreamStats {
    /// The committed end: the newest committed offset, or on brokers before 4.3 the first offset of the newest chunk,
    /// which is at most that. `None`: the stream is empty.
    pub fn end(&self) -> Option<u64> {
        self.committed_offset.or(self.committed_chunk_id)
    }

    /// Whether they can be of the stream that this chunk came from by the same connection. Otherwise another one has its
    /// name now.
    pub(crate) fn reaches(&self, chunk: &Chunk) -> bool {
        self.end().is_some_and(|end| end >= chunk.first_offset)
    }
}

/// Who has a stream.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// It has every committed message; replicas may lag behind it. `None`: there is none at the moment.
    pub(crate) leader: Option<Address>,
    /// All that run, the leader first.
    pub(crate) nodes: Vec<Address>,
    /// The leader is not the only one.
    replicated: bool,
}

impl Members {
    /// Whether this connection's node is the leader. A node that advertises no address can't be told from it.
    pub(crate) fn are_led_by(&self, connection: &Connection) -> bool {
        let is_leader = || connection.advertised().is_none_or(|address| self.leader.as_ref() == Some(address));
        self.leader.is_some() && (!self.replicated || is_leader())
    }
}

/// A connection that has finished its handshake.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    capacity: u16,
    advertised: Option<Address>,
}

/// State shared by the task and the callers.
pub(crate) struct Shared {
    address: Address,
    call_timeout: Duration,
    counters: Arc<Counters>,
    supervisor: Supervisor,
    state: Mutex<State>,
    outbox: Mutex<BytesMut>,
    /// The outbox exceeded its limit: something may be missing, so the connection must end.
    overflow: AtomicBool,
    /// Wakes the writer: the outbox has something, or `state.closed` is set.
    wake: Notify,
    next_correlation: AtomicU32,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("address", &self.address).finish_non_exhaustive()
    }
}

struct State {
    /// Set once, when the connection ends; nothing is added to the maps afterwards.
    closed: Option<Error>,
    calls: HashMap<u32, oneshot::Sender<Bytes>>,
    /// Subscription ids in use: reserved, subscribed, or waiting for the answer to Unsubscribe.
    ids: HashMap<u8, Id>,
    /// Correlation ids of Unsubscribe requests: their answers free an id.
    unsubscribing: HashMap<u32, u8>,
    last_used: Instant,
    /// Since when a call has waited in vain, while nothing but heartbeats came.
    mute_since: Option<Instant>,
}

enum Id {
    Reserved,
    Subscribed { stream: Arc<str>, queue: mpsc::Sender<Delivery>, flow: Arc<Flow> },
    Retiring,
}

/// More unsent bytes mean that the broker has stopped reading: all credits of 256 subscriptions and a call for each fit
/// several times.
const OUTBOX_BYTES: usize = 1 << 20;

impl Connection {
    /// Connects and completes the handshake within `connect_timeout`. The connection's task runs on `tasks`.
    pub(crate) async fn open(
        config: &Config,
        address: &Address,
        counters: &Arc<Counters>,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let attempt = timeout(config.connect_timeout, Handshake::run(config, address));
        let done = match attempt.await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { what: "connect", after: config.connect_timeout }),
        };
        let Handshake { socket, buffer, heartbeat, version, advertised } = match done {
            Ok(done) => done,
            Err(error) => {
                counters.connect_failures.increment();
                return Err(error);
            }
        };
        counters.connects.increment();
        counters.connections.add(1);
        let capacity = config.subscriptions_on(&version);
        let state = State {
            closed: None,
            calls: HashMap::new(),
            ids: HashMap::new(),
            unsubscribing: HashMap::new(),
            last_used: Instant::now(),
            mute_since: None,
        };
        let shared = Arc::new(Shared {
            address: address.clone(),
            call_timeout: config.call_timeout,
            counters: Arc::clone(counters),
            supervisor: config.supervisor.clone(),
            state: Mutex::new(state),
            outbox: Mutex::default(),
            overflow: AtomicBool::new(false),
            wake: Notify::new(),
            next_correlation: AtomicU32::new(1_000),
        });
        debug!(%address, version, capacity, "stream connection open");
        let limits = Limits {
            heartbeat: Duration::from_secs(u64::from(heartbeat)),
            max_frame_bytes: config.max_frame_bytes,
            idle_timeout: config.idle_timeout,
        };
        let span = tracing::debug_span!("stream_connection", %address);
        tasks.once("stream connection", Arc::clone(&shared).run(socket, buffer, limits).instrument(span));
        Ok(Self { shared, capacity, advertised })
    }

    /// The address that the broker advertises, if any.
    pub(crate) const fn advertised(&self) -> Option<&Address> {
        self.advertised.as_ref()
    }

    pub(crate) fn is_open(&self) -> bool {
        lock(&self.shared.state).closed.is_none()
    }

    /// Takes a free subscription id; `None` if all are in use or the connection has ended.
    pub(crate) fn reserve(self: &Arc<Self>) -> Option<Reservation> {
        let mut state = lock(&self.shared.state);
        if state.closed.is_some() || state.ids.len() >= usize::from(self.capacity) {
            return None;
        }
        let id = (0..=u8::MAX).find(|id| !state.ids.contains_key(id))?;
        state.ids.insert(id, Id::Reserved);
        state.last_used = Instant::now();
        drop(state);
        Some(Reservation::new(Arc::clone(self), id))
    }

    /// Committed end and first offset of a stream, as this node sees them.
    pub(crate) async fn stats(&self, stream: &str) -> Result<StreamStats, Error> {
        const WHAT: &str = "stream stats";
        let mut answer = self.shared.call(key::STREAM_STATS, WHAT, |b| put_string(b, stream)).await?;
        let mut stats = StreamStats::default();
        for _ in 0..answer.u32(WHAT)? {
            let name = answer.string(WHAT)?;
            // -1 means that there is none.
            let value = u64::try_from(answer.i64(WHAT)?).ok();
            match name.as_str() {
                "first_chunk_id" => stats.first_offset = value,
                "committed_chunk_id" => stats.committed_chunk_id = value,
                "committed_offset" => stats.committed_offset = value,
                _ => {}
            }
        }
        // An empty stream has neither. For a second or so after a broker's start only the end is missing, and the
        // stream is not empty: treating it as empty would be a false end or a false reset (seen on 4.3.6 after kill
        // -9).
        if stats.first_offset.is_some() && stats.end().is_none() {
            return Err(Error::NotReady);
        }
        Ok(stats)
    }

    /// The nodes with a replica.
    pub(crate) async fn locate(&self, stream: &str) -> Result<Members, Error> {
        const WHAT: &str = "metadata";
        let request = |b: &mut BytesMut| {
            b.put_u32(1);
            put_string(b, stream);
        };
        let mut answer = Fields(self.shared.request(key::METADATA, WHAT, request).await?);
        let mut nodes = HashMap::new();
        for _ in 0..answer.u32(WHAT)? {
            let reference = answer.u16(WHAT)?;
            let host = answer.string(WHAT)?;
            let port = u16::try_from(answer.u32(WHAT)?).map_err(|_| Malformed(WHAT))?;
            nodes.insert(reference, Address { host, port });
        }
        let mut members = Members::default();
        for _ in 0..answer.u32(WHAT)? {
            answer.string(WHAT)?;
            let code = ResponseCode(answer.u16(WHAT)?);
            if code != ResponseCode::OK {
                return Err(Error::Refused { what: WHAT, code });
            }
            // Without a leader it names a node that is not in the list.
            members.leader = nodes.remove(&answer.u16(WHAT)?);
            members.nodes.extend(members.leader.clone());
            let replicas = answer.u32(WHAT)?;
            members.replicated = replicas > 0;
            for _ in 0..replicas {
                members.nodes.extend(nodes.remove(&answer.u16(WHAT)?));
            }
        }
        Ok(members)
    }

    /// Ends the connection: its task sends a close frame if the socket accepts it, and does not wait for the answer.
    pub(crate) fn close(&self) {
        self.shared.end(Error::Closed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Sends a request and returns its answer from behind the response code.
    async fn call(&self, key: u16, what: &'static str, body: impl FnOnce(&mut BytesMut)) -> Result<Fields, Error> {
        let mut answer = Fields(self.request(key, what, body).await?);
        match ResponseCode(answer.u16(what)?) {
            ResponseCode::OK => Ok(answer),
            code => Err(Error::Refused { what, code }),
        }
    }

    async fn request(&self, key: u16, what: &'static str, body: impl FnOnce(&mut BytesMut)) -> Result<Bytes, Error> {
        let (correlation, began) = (self.correlation(), Instant::now());
        let (call, answer) = oneshot::channel();
        {
            let mut state = lock(&self.state);
            if let Some(error) = &state.closed {
                return Err(error.clone());
            }
            state.last_used = Instant::now();
            state.calls.insert(correlation, call);
        }
        let _guard = CallGuard { shared: self, correlation, began };
        self.put(|out| {
            put_frame(out, key, |b| {
                b.put_u32(correlation);
                body(b);
            });
        });
        match timeout(self.call_timeout, answer).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(_)) => Err(self.reason()),
            Err(_) => Err(Error::Timeout { what, after: self.call_timeout }),
        }
    }

    /// A call has waited in vain, until its time was over or nobody waited for it any more. If no answer has come for
    /// twice that time, the connection is given up: the broker's heartbeats come from another process than its answers,
    /// and may come over a line that carries nothing to it. An answer that is late is an answer.
    fn not_answered(&self, began: Instant) {
        let since = *lock(&self.state).mute_since.get_or_insert(began);
        if since.elapsed() >= self.call_timeout * 2 {
            let text = format!("it has answered no call for {:?}, and sends nothing but heartbeats", since.elapsed());
            self.end(Error::ConnectionLost(text));
        }
    }

    pub(crate) fn send_credit(&self, id: u8, credits: u16) {
        self.put(|out| {
            put_frame(out, key::CREDIT, |b| {
                b.put_u8(id);
                b.put_u16(credits);
            });
        });
    }

    /// Frees a subscription id, with Unsubscribe if the broker may know it.
    fn retire(&self, id: u8) {
        let mut state = lock(&self.state);
        state.last_used = Instant::now();
        if state.closed.is_some() {
            return;
        }
        match state.ids.remove(&id) {
            None | Some(Id::Reserved) => {}
            Some(Id::Subscribed { .. } | Id::Retiring) => {
                let correlation = self.correlation();
                state.ids.insert(id, Id::Retiring);
                state.unsubscribing.insert(correlation, id);
                drop(state);
                self.put(|out| {
                    put_frame(out, key::UNSUBSCRIBE, |b| {
                        b.put_u32(correlation);
                        b.put_u8(id);
                    });
                });
            }
        }
    }

    fn put(&self, write: impl FnOnce(&mut BytesMut)) {
        let mut outbox = lock(&self.outbox);
        if outbox.len() < OUTBOX_BYTES {
            write(&mut outbox);
        } else {
            self.overflow.store(true, Ordering::Relaxed);
        }
        drop(outbox);
        self.wake.notify_one();
    }

    fn correlation(&self) -> u32 {
        self.next_correlation.fetch_add(1, Ordering::Relaxed)
    }

    /// Marks the connection as ended and wakes all waiters; the first reason is kept.
    fn end(&self, reason: Error) {
        let mut state = lock(&self.state);
        state.closed.get_or_insert(reason);
        let calls = std::mem::take(&mut state.calls);
        let ids = std::mem::take(&mut state.ids);
        state.unsubscribing.clear();
        drop(state);
        // Dropping them wakes others and may return credits: not under the lock.
        drop((calls, ids));
        self.wake.notify_one();
    }

    /// Why the connection has ended or is ending.
    fn ended(&self) -> Option<Error> {
        lock(&self.state).closed.clone()
    }

    fn reason(&self) -> Error {
        // An open connection whose queue has ended: the broker sent more than its credit.
        self.ended().unwrap_or(Error::Protocol(Malformed("delivery: more chunks than credit")))
    }
}

/// Removes a call from the table, also when its future is dropped.
struct CallGuard<'a> {
    shared: &'a Shared,
    correlation: u32,
    began: Instant,
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        let unanswered = lock(&self.shared.state).calls.remove(&self.correlation).is_some();
        if unanswered {
            self.shared.not_answered(self.began);
        }
    }
}
