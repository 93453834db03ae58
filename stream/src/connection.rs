//! One connection: its task, its calls, its subscriptions.
//!
//! One task reads and writes the socket and ends with the connection; dropping the last [`Connection`] ends it. What callers
//! write goes into an outbox of bytes that the task empties; what the broker sends goes to the call that waits for it or into the
//! queue of the subscription. That queue has room for all the credit the broker has, so reading never waits for a
//! reader of messages.

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
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, warn};

use crate::{
    chunk::Chunk,
    codec::{Cut, Fields, Frame, FrameCutter, Malformed, ResponseCode, key, put_frame, put_string},
    config::Config,
    error::Error,
    flow::{Budget, Flow, Held, lock},
    handshake::{Address, Handshake, Socket},
    metrics::Counters,
};

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Specification {
    First,
    /// The last chunk with messages, whole.
    Last,
    /// The chunk that holds this offset, whole, or the next one there is.
    Offset(u64),
}

/// What a subscription receives. The queue ends when the connection does.
#[derive(Debug)]
pub(crate) enum Delivery {
    Chunk(Chunk, Held),
    /// A chunk above the size limit was dropped; the next one may come.
    Oversized(Held),
    /// The broker ended this subscription; the connection lives on.
    Ended(ResponseCode),
}

/// Facts about a stream as one node sees them. All `None`: the stream is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamStats {
    /// First offset that the stream still has. May lie just below the first message.
    pub first_offset: Option<u64>,
    /// First offset of the newest committed chunk.
    pub committed_chunk_id: Option<u64>,
    /// Newest committed offset; brokers from 4.3 on only.
    pub committed_offset: Option<u64>,
}

impl StreamStats {
    /// The committed end: the newest committed offset, or on brokers before 4.3 the first offset of the newest chunk, which is
    /// at most that. `None`: the stream is empty.
    pub fn end(&self) -> Option<u64> {
        self.committed_offset.or(self.committed_chunk_id)
    }
}

/// A connection that has finished its handshake.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    capacity: u16,
    advertised: Option<Address>,
}

/// What the task and the callers share.
pub(crate) struct Shared {
    address: Address,
    call_timeout: Duration,
    counters: Arc<Counters>,
    state: Mutex<State>,
    outbox: Mutex<BytesMut>,
    /// The outbox went above its limit: something may be missing, so the connection must end.
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
}

enum Id {
    Reserved,
    Subscribed { stream: Arc<str>, queue: mpsc::Sender<Delivery>, flow: Arc<Flow> },
    Retiring,
}

/// More unsent bytes than this mean that the broker has stopped reading: every credit of 256 subscriptions and a call
/// for each fit several times.
const OUTBOX_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 64 << 10;

impl Connection {
    /// Connects and shakes hands within `connect_timeout`. The connection's task runs on `tasks`.
    pub(crate) async fn open(
        config: &Config,
        address: &Address,
        counters: &Arc<Counters>,
        tasks: &TaskTracker,
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
        };
        let shared = Arc::new(Shared {
            address: address.clone(),
            call_timeout: config.call_timeout,
            counters: Arc::clone(counters),
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
        tasks.spawn(Arc::clone(&shared).run(socket, buffer, limits).instrument(span));
        Ok(Self { shared, capacity, advertised })
    }

    /// The address that the broker tells its clients, if it told one.
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
        Some(Reservation { connection: Arc::clone(self), id, used: false })
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
        Ok(stats)
    }

    /// Addresses of the nodes that have the stream, the leader first.
    pub(crate) async fn locate(&self, stream: &str) -> Result<Vec<Address>, Error> {
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
        let mut members = Vec::new();
        for _ in 0..answer.u32(WHAT)? {
            answer.string(WHAT)?;
            let code = ResponseCode(answer.u16(WHAT)?);
            if code != ResponseCode::OK {
                return Err(Error::Refused { what: WHAT, code });
            }
            members.push(answer.u16(WHAT)?);
            for _ in 0..answer.u32(WHAT)? {
                members.push(answer.u16(WHAT)?);
            }
        }
        Ok(members.iter().filter_map(|reference| nodes.remove(reference)).collect())
    }

    /// Ends the connection: its task says goodbye if the socket takes it, and never waits for an answer.
    pub(crate) fn close(&self) {
        self.shared.end(Error::Closed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

/// A subscription id on a connection. Dropping it frees the id.
#[derive(Debug)]
pub(crate) struct Reservation {
    connection: Arc<Connection>,
    id: u8,
    used: bool,
}

impl Reservation {
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Subscribes with `credits` chunks in flight.
    ///
    /// Cancel safe: whatever the broker made of it, dropping the future or the result unsubscribes.
    pub(crate) async fn subscribe(
        mut self,
        stream: &Arc<str>,
        from: Specification,
        credits: u16,
        budget: &Arc<Budget>,
    ) -> Result<StreamReader, Error> {
        let credits = credits.max(1);
        let shared = Arc::clone(&self.connection.shared);
        // One place beyond the credits is for the final `Ended`.
        let (queue, deliveries) = mpsc::channel(usize::from(credits) + 1);
        let flow = Arc::new(Flow::new(Arc::clone(budget), Arc::downgrade(&shared), self.id, credits));
        {
            let mut state = lock(&shared.state);
            if let Some(error) = &state.closed {
                return Err(error.clone());
            }
            let entry = Id::Subscribed { stream: Arc::clone(stream), queue, flow: Arc::clone(&flow) };
            state.ids.insert(self.id, entry);
        }
        self.used = true;
        let reader = StreamReader { deliveries, flow, reservation: self };
        let id = reader.reservation.id;
        let request = |b: &mut BytesMut| {
            b.put_u8(id);
            put_string(b, stream);
            match from {
                Specification::First => b.put_u16(1),
                Specification::Last => b.put_u16(2),
                Specification::Offset(offset) => {
                    b.put_u16(4);
                    b.put_u64(offset);
                }
            }
            b.put_u16(credits);
        };
        match shared.call(key::SUBSCRIBE, "subscribe", request).await {
            Ok(_) => Ok(reader),
            Err(error) => {
                if let Error::Refused { .. } = error {
                    // Known not to exist: the id is free without asking.
                    lock(&shared.state).ids.insert(id, Id::Reserved);
                }
                Err(error)
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.connection.shared.retire(self.id);
    }
}

/// A subscription on a connection. Dropping it unsubscribes.
#[derive(Debug)]
pub(crate) struct StreamReader {
    deliveries: mpsc::Receiver<Delivery>,
    flow: Arc<Flow>,
    reservation: Reservation,
}

impl StreamReader {
    /// The next chunk; an error is final. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Delivery, Error> {
        match self.deliveries.recv().await {
            Some(Delivery::Ended(code)) => Err(Error::SubscriptionEnded(code)),
            Some(delivery) => Ok(delivery),
            None => Err(self.reservation.connection.shared.reason()),
        }
    }

    pub(crate) const fn connection(&self) -> &Arc<Connection> {
        &self.reservation.connection
    }

    /// Whether the broker may send a chunk and none lies here unread.
    pub(crate) fn is_starved(&self) -> bool {
        self.deliveries.is_empty() && self.flow.may_send()
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.flow.close();
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    heartbeat: Duration,
    max_frame_bytes: usize,
    idle_timeout: Duration,
}

impl Shared {
    async fn run(self: Arc<Self>, socket: Socket, buffer: BytesMut, limits: Limits) {
        let (reader, writer) = tokio::io::split(socket);
        // Whichever half ends first ends the connection: both are dropped here and the socket closes.
        let reason = tokio::select! {
            reason = self.read(reader, buffer, limits) => reason,
            reason = self.write(writer, limits) => reason,
        };
        self.end(reason);
        self.counters.connections.sub(1);
        match self.reason() {
            Error::Closed => debug!(address = %self.address, "stream connection closed"),
            error => {
                self.counters.connections_lost.increment();
                warn!(address = %self.address, %error, "stream connection lost");
            }
        }
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin, mut buffer: BytesMut, limits: Limits) -> Error {
        let mut cutter = FrameCutter::new(limits.max_frame_bytes);
        let silence = limits.heartbeat * 2;
        loop {
            match cutter.next(&mut buffer) {
                Ok(Cut::Frame(frame)) => {
                    if let Err(error) = self.handle(frame) {
                        return error;
                    }
                    continue;
                }
                Ok(Cut::Oversized(frame)) => {
                    if let Err(error) = self.handle_oversized(frame) {
                        return error;
                    }
                    continue;
                }
                // Chunks of the stream share this block: a new one is made when the rest is small, the old one lives
                // as long as its chunks.
                Ok(Cut::Incomplete(missing)) if missing > READ_BYTES => buffer.reserve(missing),
                Ok(Cut::Incomplete(_)) if buffer.capacity() - buffer.len() < READ_BYTES / 4 => {
                    buffer.reserve(READ_BYTES);
                }
                Ok(Cut::Incomplete(_)) => {}
                Err(malformed) => return malformed.into(),
            }
            match timeout(silence, reader.read_buf(&mut buffer)).await {
                Ok(Ok(0)) => return Error::ConnectionLost("closed by the broker without a word".to_owned()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Error::ConnectionLost(format!("read: {error}")),
                Err(_) => return Error::ConnectionLost(format!("nothing read for {silence:?}, two heartbeats")),
            }
        }
    }

    async fn write(&self, mut writer: impl AsyncWrite + Unpin, limits: Limits) -> Error {
        loop {
            let bytes = std::mem::take(&mut *lock(&self.outbox));
            let result = if bytes.is_empty() {
                if let Some(reason) = self.ended() {
                    if matches!(reason, Error::Closed) {
                        let mut close = BytesMut::new();
                        put_frame(&mut close, key::CLOSE, |b| {
                            b.put_u32(0);
                            b.put_u16(ResponseCode::OK.0);
                            put_string(b, "done");
                        });
                        let _ = timeout(GOODBYE_TIMEOUT, write_all(&mut writer, &close)).await;
                        let _ = timeout(GOODBYE_TIMEOUT, writer.shutdown()).await;
                    }
                    return reason;
                }
                if timeout(limits.heartbeat / 2, self.wake.notified()).await.is_ok() {
                    continue;
                }
                if self.end_if_idle(limits.idle_timeout) {
                    continue;
                }
                let mut heartbeat = BytesMut::new();
                put_frame(&mut heartbeat, key::HEARTBEAT, |_| ());
                timeout(self.call_timeout, write_all(&mut writer, &heartbeat)).await
            } else {
                timeout(self.call_timeout, write_all(&mut writer, &bytes)).await
            };
            match result {
                Ok(Ok(())) if self.overflow.load(Ordering::Relaxed) => {
                    return Error::ConnectionLost("the broker reads too slowly what we send".to_owned());
                }
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Error::ConnectionLost(format!("write: {error}")),
                Err(_) => {
                    let text = format!("the socket took nothing for {:?}", self.call_timeout);
                    return Error::ConnectionLost(text);
                }
            }
        }
    }

    fn handle(&self, frame: Frame) -> Result<(), Error> {
        let mut fields = Fields(frame.payload);
        match frame.key {
            key::DELIVER => {
                let id = fields.u8("deliver")?;
                let bytes = fields.0.len();
                let chunk = Chunk::parse(frame.version, fields.0)?;
                self.counters.chunks.increment();
                self.counters.messages.add(u64::from(chunk.records));
                self.counters.bytes.add(bytes as u64);
                self.deliver(id, bytes, |held| Delivery::Chunk(chunk, held));
            }
            key::METADATA_UPDATE => {
                let code = ResponseCode(fields.u16("metadata update")?);
                let name = fields.string("metadata update")?;
                self.end_subscriptions(code, |_, stream| stream == name);
            }
            CREDIT_ANSWER => {
                let code = ResponseCode(fields.u16("credit answer")?);
                let refused = fields.u8("credit answer")?;
                self.end_subscriptions(code, |id, _| id == refused);
            }
            key::CLOSE => {
                let correlation = fields.u32("close")?;
                let code = fields.u16("close")?;
                let text = fields.string("close")?;
                self.put(|out| {
                    put_frame(out, key::CLOSE | key::RESPONSE, |b| {
                        b.put_u32(correlation);
                        b.put_u16(ResponseCode::OK.0);
                    });
                });
                // The writer sends the answer before it sees the end.
                self.end(Error::ConnectionLost(format!("closed by the broker: {text} (code {code})")));
            }
            key if key & key::RESPONSE != 0 => {
                let correlation = fields.u32("response")?;
                let mut state = lock(&self.state);
                if let Some(id) = state.unsubscribing.remove(&correlation) {
                    state.ids.remove(&id);
                } else if let Some(call) = state.calls.remove(&correlation) {
                    drop(state);
                    // The caller may have given up.
                    let _ = call.send(fields.0);
                }
            }
            // Heartbeats, and requests that newer brokers may make: none needs an answer from a plain consumer.
            _ => {}
        }
        Ok(())
    }

    fn handle_oversized(&self, frame: Frame) -> Result<(), Error> {
        if frame.key != key::DELIVER {
            return Err(Malformed("frame: above the size limit").into());
        }
        let id = Fields(frame.payload).u8("deliver")?;
        self.counters.oversized_chunks.increment();
        self.deliver(id, 0, Delivery::Oversized);
        Ok(())
    }

    fn deliver(&self, id: u8, bytes: usize, delivery: impl FnOnce(Held) -> Delivery) {
        let mut state = lock(&self.state);
        let Some(Id::Subscribed { queue, flow, .. }) = state.ids.get(&id) else {
            return; // on its way when we unsubscribed
        };
        let delivery = delivery(flow.arrived(bytes));
        let rejected = queue.try_send(delivery).err();
        if matches!(rejected, Some(mpsc::error::TrySendError::Full(_))) {
            // More than the credit: end this subscription, its supervisor subscribes anew.
            state.ids.insert(id, Id::Retiring);
        }
        drop(state);
        drop(rejected); // gives the credit back, which takes locks
    }

    /// Ends subscriptions that the broker has ended: their ids are free.
    fn end_subscriptions(&self, code: ResponseCode, is_meant: impl Fn(u8, &str) -> bool) {
        let mut state = lock(&self.state);
        for (id, entry) in &mut state.ids {
            if let Id::Subscribed { stream, queue, .. } = entry
                && is_meant(*id, stream)
            {
                let _ = queue.try_send(Delivery::Ended(code));
                // The reservation lives on; freeing an id that the broker has forgotten needs no request,
                // but after a refused credit it may know it still, so ask in any case.
                *entry = Id::Retiring;
            }
        }
    }

    /// Sends a request and waits for its answer, after the response code.
    async fn call(&self, key: u16, what: &'static str, body: impl FnOnce(&mut BytesMut)) -> Result<Fields, Error> {
        let mut answer = Fields(self.request(key, what, body).await?);
        match ResponseCode(answer.u16(what)?) {
            ResponseCode::OK => Ok(answer),
            code => Err(Error::Refused { what, code }),
        }
    }

    async fn request(&self, key: u16, what: &'static str, body: impl FnOnce(&mut BytesMut)) -> Result<Bytes, Error> {
        let correlation = self.correlation();
        let (call, answer) = oneshot::channel();
        {
            let mut state = lock(&self.state);
            if let Some(error) = &state.closed {
                return Err(error.clone());
            }
            state.last_used = Instant::now();
            state.calls.insert(correlation, call);
        }
        let _forget = Forget { shared: self, correlation };
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

    pub(crate) fn send_credit(&self, id: u8, credits: u16) {
        self.put(|out| {
            put_frame(out, key::CREDIT, |b| {
                b.put_u8(id);
                b.put_u16(credits);
            });
        });
    }

    /// Gives a subscription id back, by Unsubscribe if the broker may know it.
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

    /// Marks the connection as ended; the first reason stays. Wakes everyone who waits for it.
    fn end(&self, reason: Error) {
        let mut state = lock(&self.state);
        state.closed.get_or_insert(reason);
        let calls = std::mem::take(&mut state.calls);
        let ids = std::mem::take(&mut state.ids);
        state.unsubscribing.clear();
        drop(state);
        // Their drop wakes others and may give credits back: not under the lock.
        drop((calls, ids));
        self.wake.notify_one();
    }

    /// Why the connection has ended or is about to.
    fn ended(&self) -> Option<Error> {
        lock(&self.state).closed.clone()
    }

    fn end_if_idle(&self, idle_timeout: Duration) -> bool {
        let mut state = lock(&self.state);
        let idle = state.ids.is_empty() && state.calls.is_empty() && state.last_used.elapsed() >= idle_timeout;
        if idle {
            state.closed.get_or_insert(Error::Closed);
        }
        idle
    }

    fn reason(&self) -> Error {
        // An open connection whose queue has ended: the broker sent more than its credit.
        self.ended().unwrap_or(Error::Protocol(Malformed("delivery: more chunks than credit")))
    }
}

const CREDIT_ANSWER: u16 = key::CREDIT | key::RESPONSE;
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

async fn write_all(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await // TLS buffers
}

/// Removes a call from the table, also when its future is dropped.
struct Forget<'a> {
    shared: &'a Shared,
    correlation: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.shared.state).calls.remove(&self.correlation);
    }
}
