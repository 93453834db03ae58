//! Keeps one subscription reading: attaches, verifies that the stream continues from the last message, watches for
//! stalls, and attaches again.
//!
//! The broker does not report most faults. It accepts an offset beyond the end, serves other messages under the same
//! offsets after a stream was declared again, and skips offsets that retention deleted. So each attachment subscribes
//! *at* the last message seen and compares its fingerprint, and when nothing arrives, the position is compared with the
//! stream's committed end.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};
use wirepost_runtime::backoff::Backoff;

use crate::{
    batch::Batch,
    chunk::{Chunk, Entry, Position, fingerprint},
    client::Inner,
    connection::{Connection, Delivery, Reservation, Specification, StreamReader, StreamStats},
    error::Error,
    flow::ChunkPermit,
    handshake::Address,
    subscription::{Event, Progress, Start},
};

/// A stream that seems to end before our position may be a replica that lags behind the one we read before: it must end
/// there this many times, with these pauses, before it counts as a new incarnation.
const LOOKS: u32 = 4;
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Delay of the watchdog's second check: a message written a moment ago is not a stall.
const WATCHDOG_GRACE: Duration = Duration::from_secs(1);
/// A stream that has an end but does not serve its last chunk this many times contains no messages.
const SILENT_ATTEMPTS: u32 = 3;
/// Reads of the stream's end in one attempt: a busy stream may grow in between, and each doubt takes one.
const ATTEMPT_LOOKS: u32 = 10;

pub(crate) struct Supervisor {
    inner: Arc<Inner>,
    stream: Arc<str>,
    events: mpsc::Sender<Event>,
    progress: Arc<Progress>,
    /// Where to attach. `First` also means: nothing of this incarnation has been seen.
    place: Start,
    /// Offsets below it have been processed.
    next: u64,
    /// Nodes with a replica, known after a node without one.
    nodes: Vec<Address>,
    /// Whether messages are missing before the next chunk.
    lost: bool,
    down: bool,
    silent_attempts: u32,
    /// Watchdog restarts since the last message.
    stalls: u32,
    backoff: Backoff,
}

/// A reader in position, and the chunk that proved the position.
struct Attachment {
    reader: StreamReader,
    chunk: Option<(Chunk, ChunkPermit)>,
}

/// What the first chunk shows about the last message seen.
enum Continuity {
    Continues,
    Ends,
    Another,
    Beyond,
}

impl Supervisor {
    pub(crate) fn new(
        inner: Arc<Inner>,
        stream: &str,
        start: Start,
        events: mpsc::Sender<Event>,
        progress: Arc<Progress>,
    ) -> Self {
        let next = match start {
            Start::After(position) => position.offset.saturating_add(1),
            Start::Next | Start::First => 0,
        };
        let backoff = Backoff::new(inner.config.backoff.0, inner.config.backoff.1);
        Self {
            inner,
            stream: Arc::from(stream),
            events,
            progress,
            place: start,
            next,
            nodes: Vec::new(),
            lost: false,
            down: false,
            silent_attempts: 0,
            stalls: 0,
            backoff,
        }
    }

    /// Runs until the subscription is dropped or the client is closed.
    pub(crate) async fn run(mut self) {
        let inner = Arc::clone(&self.inner);
        let events = self.events.clone();
        inner.counters.subscriptions.add(1);
        tokio::select! {
            // The connections are closed after the cancellation: that is not an outage.
            biased;
            () = events.closed() => {}
            () = inner.closing.cancelled() => {}
            () = self.supervise() => {}
        }
        inner.counters.subscriptions.sub(1);
    }

    async fn supervise(&mut self) {
        loop {
            let began = Instant::now();
            // What makes one subscription panic must not end the others.
            let supervisor = self.inner.config.supervisor.clone();
            let (attached, error) = match supervisor.attempt("stream reader", self.read()).await {
                Ok(ended) => ended,
                Err(cause) => (true, Error::Panicked(cause.to_string())),
            };
            if attached {
                self.inner.counters.restarts.increment();
            }
            if let Error::Stalled { .. } = error {
                warn!(stream = &*self.stream, %error, "reader restarted by the watchdog");
                self.inner.counters.watchdog_restarts.increment();
                continue;
            }
            if error.is_stream_absent() && self.place == Start::Next {
                // Everything in it when it appears was written after this.
                self.place = Start::First;
            }
            if matches!(error, Error::Connect { .. }) {
                self.nodes.clear();
            }
            if !self.down {
                self.down = true;
                if matches!(error, Error::Connect { .. } | Error::ConnectionLost(_)) {
                    // The same for up to 256 subscriptions: the connection logs it once.
                    debug!(stream = &*self.stream, %error, "not reading, retrying");
                } else {
                    warn!(stream = &*self.stream, %error, "not reading, retrying");
                }
                self.emit(Event::Down { reason: error }).await;
            }
            if attached {
                self.backoff.lasted(began.elapsed());
            }
            sleep(self.backoff.next_pause()).await;
        }
    }

    /// Attaches and reads until it fails; whether it was attached, and why it ended.
    async fn read(&mut self) -> (bool, Error) {
        match self.attach().await {
            Ok(attachment) => {
                let Err(error) = self.pump(attachment).await;
                (true, error)
            }
            Err(error) => (false, error),
        }
    }

    async fn attach(&mut self) -> Result<Attachment, Error> {
        let mut doubts = 0;
        for _ in 0..ATTEMPT_LOOKS {
            let reservation = self.inner.pool.reserve(&self.nodes).await?;
            let connection = Arc::clone(reservation.connection());
            match self.attach_on(reservation, &mut doubts).await {
                Ok(Some(attachment)) => return Ok(attachment),
                Ok(None) => {}
                Err(error) => {
                    if error.is_elsewhere()
                        && let Ok(nodes) = connection.locate(&self.stream).await
                    {
                        self.nodes = nodes;
                    }
                    return Err(error);
                }
            }
        }
        Err(Error::Timeout { what: "a stable end of the stream", after: self.inner.config.call_timeout })
    }

    /// One attempt; `None`: the stream changed meanwhile, try again.
    async fn attach_on(&mut self, reservation: Reservation, doubts: &mut u32) -> Result<Option<Attachment>, Error> {
        let stats = reservation.connection().stats(&self.stream).await?;
        match self.place {
            Start::First if self.next == 0 => self.attach_first(reservation, stats).await.map(Some),
            Start::First => {
                // Only unreadable messages were seen: there is no fingerprint to check.
                let reader = self.subscribe(reservation, Specification::Offset(self.next)).await?;
                self.attached(None, stats).await;
                Ok(Some(Attachment { reader, chunk: None }))
            }
            Start::Next if stats.end().is_none_or(|end| end == 0 && self.is_silent()) => {
                self.place = Start::First;
                self.attach_first(reservation, stats).await.map(Some)
            }
            // Its last chunk does not arrive in time: too large for this connection. From the beginning, everything
            // would count as new.
            Start::Next if self.is_silent() => {
                self.place = Start::First;
                self.next = stats.end().map_or(0, |end| end.saturating_add(1));
                let reader = self.subscribe(reservation, Specification::Offset(self.next)).await?;
                self.attached(None, stats).await;
                Ok(Some(Attachment { reader, chunk: None }))
            }
            Start::Next => self.attach_next(reservation, stats).await.map(Some),
            Start::After(position) => self.attach_after(position, reservation, stats, doubts).await,
        }
    }

    fn is_silent(&self) -> bool {
        self.silent_attempts >= SILENT_ATTEMPTS
    }

    async fn attach_first(&mut self, reservation: Reservation, stats: StreamStats) -> Result<Attachment, Error> {
        let reader = self.subscribe(reservation, Specification::First).await?;
        self.attached(None, stats).await;
        Ok(Attachment { reader, chunk: None })
    }

    /// The last chunk at the time of the subscription is "before", the next ones are "after".
    async fn attach_next(&mut self, reservation: Reservation, stats: StreamStats) -> Result<Attachment, Error> {
        let mut reader = self.subscribe(reservation, Specification::Last).await?;
        let mut last = None;
        if let Some((chunk, _permit)) = self.first_chunk(&mut reader).await? {
            last = chunk.last_position(0).0;
            self.next = chunk.end_offset();
            self.place = last.map_or(Start::First, Start::After);
        }
        self.attached(last, stats).await;
        Ok(Attachment { reader, chunk: None })
    }

    async fn attach_after(
        &mut self,
        position: Position,
        reservation: Reservation,
        stats: StreamStats,
        doubts: &mut u32,
    ) -> Result<Option<Attachment>, Error> {
        if stats.end().is_none() || stats.committed_offset.is_some_and(|end| end < position.offset) {
            return self.doubt(reservation, stats, doubts).await;
        }
        // The chunk at the position. Near the end of the stream that is its last chunk, which the broker sends at once
        // even if the position lies beyond the end; at an offset beyond the end it would send nothing.
        let near_end = stats.committed_chunk_id.is_none_or(|newest| position.offset >= newest);
        let from = if near_end { Specification::Last } else { Specification::Offset(position.offset) };
        let mut reader = self.subscribe(reservation, from).await?;
        let Some((chunk, permit)) = self.first_chunk(&mut reader).await? else {
            // Oversized: nothing to compare with, and its messages are lost.
            self.attached(None, stats).await;
            return Ok(Some(Attachment { reader, chunk: None }));
        };
        match check(&chunk, position) {
            Continuity::Continues => {}
            Continuity::Ends => {
                drop((chunk, permit, reader));
                let reservation = self.inner.pool.reserve(&self.nodes).await?;
                return self.doubt(reservation, stats, doubts).await;
            }
            Continuity::Another => return self.reset(reader).await.map(Some),
            Continuity::Beyond => {
                let first = reader.connection().stats(&self.stream).await?.first_offset.unwrap_or(0);
                if first <= position.offset {
                    // The stream still has that offset, so the broker would have sent it, unless the end moved.
                    return if near_end { Ok(None) } else { self.reset(reader).await.map(Some) };
                }
                let expected = self.next;
                if first > expected && chunk.first_offset > expected {
                    self.gap(chunk.first_offset).await;
                    self.place = Start::First;
                    self.next = 0;
                    self.attached(None, stats).await;
                    return Ok(Some(Attachment { reader, chunk: Some((chunk, permit)) }));
                }
                // The position was the last message that retention deleted: nothing is missing after it.
            }
        }
        self.attached(Some(position), stats).await;
        Ok(Some(Attachment { reader, chunk: Some((chunk, permit)) }))
    }

    /// The stream ends before our position: a new incarnation, or a replica that lags behind the one we read before.
    async fn doubt(
        &mut self,
        reservation: Reservation,
        stats: StreamStats,
        doubts: &mut u32,
    ) -> Result<Option<Attachment>, Error> {
        *doubts += 1;
        debug!(stream = &*self.stream, place = ?self.place, ?stats, doubts, "the stream ends before the last message seen");
        if *doubts < LOOKS {
            drop(reservation);
            sleep(LOOK_PAUSE).await;
            return Ok(None);
        }
        self.become_new().await;
        self.attach_first(reservation, stats).await.map(Some)
    }

    async fn reset(&mut self, reader: StreamReader) -> Result<Attachment, Error> {
        drop(reader);
        self.become_new().await;
        let reservation = self.inner.pool.reserve(&self.nodes).await?;
        let stats = reservation.connection().stats(&self.stream).await?;
        self.attach_first(reservation, stats).await
    }

    async fn become_new(&mut self) {
        info!(stream = &*self.stream, "new incarnation of the stream, reading from its beginning");
        self.inner.counters.resets.increment();
        self.place = Start::First;
        self.next = 0;
        self.lost = false;
        self.emit(Event::Reset).await;
    }

    async fn gap(&mut self, first_offset: u64) {
        warn!(stream = &*self.stream, next = self.next, first_offset, "messages are lost to this reader");
        self.inner.counters.gaps.increment();
        self.lost = false;
        self.emit(Event::Gap { first_offset }).await;
    }

    async fn attached(&mut self, position: Option<Position>, stats: StreamStats) {
        debug!(stream = &*self.stream, ?position, "attached");
        self.inner.counters.attachments.increment();
        self.down = false;
        self.silent_attempts = 0;
        let next = self.next.max(stats.first_offset.unwrap_or(0));
        self.progress.set(next, stats.end().map_or(0, |end| end.saturating_add(1)));
        self.emit(Event::Attached { position, first_offset: stats.first_offset }).await;
    }

    async fn subscribe(&self, reservation: Reservation, from: Specification) -> Result<StreamReader, Error> {
        reservation.subscribe(&self.stream, from, self.inner.config.credits, &self.inner.budget).await
    }

    /// The first chunk after subscribing at an offset that exists; `None` if it was oversized.
    async fn first_chunk(&mut self, reader: &mut StreamReader) -> Result<Option<(Chunk, ChunkPermit)>, Error> {
        let after = self.inner.config.call_timeout;
        match timeout(after, reader.next()).await {
            Ok(Ok(Delivery::Chunk(chunk, permit))) => Ok(Some((chunk, permit))),
            Ok(Ok(Delivery::Oversized(_))) => {
                self.lost = true;
                Ok(None)
            }
            Ok(Ok(Delivery::Ended(code))) => Err(Error::SubscriptionEnded(code)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.silent_attempts += 1;
                Err(Error::Timeout { what: "the first chunk", after })
            }
        }
    }

    /// Delivers chunks until the subscription ends.
    async fn pump(&mut self, attachment: Attachment) -> Result<Infallible, Error> {
        let Attachment { mut reader, chunk } = attachment;
        let connection = Arc::clone(reader.connection());
        let stream = Arc::clone(&self.stream);
        if let Some((chunk, permit)) = chunk {
            self.deliver(&connection, chunk, permit).await?;
        }
        let mut suspect = false;
        let mut check_at = Instant::now() + self.watchdog_interval();
        loop {
            let check = async {
                sleep_until(check_at).await;
                connection.stats(&stream).await
            };
            tokio::select! {
                // With a chunk at hand the check is unnecessary.
                biased;
                delivery = reader.next() => {
                    match delivery? {
                        Delivery::Chunk(chunk, permit) => self.deliver(&connection, chunk, permit).await?,
                        Delivery::Oversized(_permit) => self.lost = true,
                        Delivery::Ended(code) => return Err(Error::SubscriptionEnded(code)),
                    }
                    suspect = false;
                    check_at = Instant::now() + self.watchdog_interval();
                }
                stats = check => {
                    let stats = match stats {
                        Err(Error::NotReady) => {
                            check_at = Instant::now() + self.watchdog_interval();
                            continue;
                        }
                        stats => stats?,
                    };
                    let end = stats.end().map_or(0, |end| end.saturating_add(1));
                    let shrunk = stats.committed_offset.is_some_and(|end| end.saturating_add(1) < self.next);
                    let unread = end > self.next && reader.is_starved();
                    if suspect && (shrunk || unread) {
                        self.stalls += 1;
                        return Err(Error::Stalled { next: self.next, end: end.saturating_sub(1) });
                    }
                    suspect = shrunk || unread;
                    let pause = self.watchdog_interval();
                    check_at = Instant::now() + if suspect { pause.min(WATCHDOG_GRACE) } else { pause };
                    self.progress.set(self.next, end);
                }
            }
        }
    }

    /// Longer after each restart that brought nothing: an end that is no message must not cause restarts forever.
    fn watchdog_interval(&self) -> Duration {
        self.inner.config.watchdog_interval * (1 << self.stalls.min(6))
    }

    async fn deliver(&mut self, connection: &Connection, chunk: Chunk, permit: ChunkPermit) -> Result<(), Error> {
        let (position, unreadable) = chunk.last_position(self.next);
        let end = position.map_or(0, |p| p.offset.saturating_add(1)).max(chunk.end_offset());
        if end <= self.next {
            return Ok(()); // seen before: the rest of the chunk in which we attached
        }
        if self.next > 0 && chunk.first_offset > self.next && !self.lost {
            // Either unused offsets, which each new segment has, or deleted messages: those end at or before this
            // chunk.
            let first = connection.stats(&self.stream).await?.first_offset.unwrap_or(0);
            self.lost = first > self.next && first <= chunk.first_offset;
        }
        if self.lost {
            self.gap(chunk.first_offset).await;
        }
        if unreadable > 0 {
            self.inner.counters.skipped_messages.add(unreadable);
            debug!(
                stream = &*self.stream,
                first_offset = chunk.first_offset,
                unreadable,
                "unreadable messages skipped"
            );
        }
        let from = std::mem::replace(&mut self.next, end);
        let committed = chunk.committed_chunk_id.map_or(0, |id| id.saturating_add(1));
        self.progress.set(end, committed);
        self.stalls = 0;
        if let Some(position) = position {
            self.place = Start::After(position);
            let counters = Arc::clone(&self.inner.counters);
            self.emit(Event::Messages(Batch { chunk, from, counters, _permit: Some(permit) })).await;
        }
        Ok(())
    }

    /// Waits for room in the queue, at the reader's pace. If the subscription has been dropped, `run` ends.
    async fn emit(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

/// Looks for the message at `position` in a chunk requested at that offset.
fn check(chunk: &Chunk, position: Position) -> Continuity {
    if chunk.first_offset > position.offset {
        return Continuity::Beyond;
    }
    if chunk.end_offset() <= position.offset {
        return Continuity::Ends;
    }
    let found = chunk.entries().any(|entry| match entry {
        Entry::Message { offset, bytes } => {
            offset == position.offset && fingerprint(offset, chunk.timestamp, &bytes) == position.fingerprint
        }
        Entry::Skipped { .. } => false,
    });
    if found { Continuity::Continues } else { Continuity::Another }
}
