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
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};
use wirepost_runtime::backoff::Backoff;

use crate::{
    batch::Batch,
    chunk::Chunk,
    client::Inner,
    connection::{Connection, Delivery, StreamReader},
    error::Error,
    flow::ChunkPermit,
    handshake::Address,
    subscription::{Event, Progress, Queued, Start},
};

/// Delay of the watchdog's second check: a message written a moment ago is not a stall.
const WATCHDOG_GRACE: Duration = Duration::from_secs(1);

mod attach; // attaches, and proves the position

pub(crate) struct Supervisor {
    inner: Arc<Inner>,
    stream: Arc<str>,
    events: mpsc::Sender<Queued>,
    progress: Arc<Progress>,
    /// Where to attach. `First` also means: nothing of this incarnation has been seen.
    start: Start,
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

impl Supervisor {
    pub(crate) fn new(
        inner: Arc<Inner>,
        stream: &str,
        start: Start,
        events: mpsc::Sender<Queued>,
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
            start,
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
            if error.is_stream_absent() && self.start == Start::Next {
                // Everything in it when it appears was written after this.
                self.start = Start::First;
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

    async fn gap(&mut self, first_offset: u64) {
        warn!(stream = &*self.stream, next = self.next, first_offset, "messages are lost to this reader");
        self.inner.counters.gaps.increment();
        self.lost = false;
        self.emit(Event::Gap { first_offset }).await;
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
                    self.progress.committed(end);
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
            // Either unused offsets, which each new segment has, or deleted messages: then the stream begins above
            // them. It may begin above this chunk as well, since retention has gone on. And it may be another stream by
            // now, whose beginning says nothing.
            let stats = connection.stats(&self.stream).await?;
            self.lost = !stats.reaches(&chunk) || stats.first_offset.is_none_or(|first| first > self.next);
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
        self.progress.committed(committed.max(end));
        self.stalls = 0;
        if let Some(position) = position {
            self.start = Start::After(position);
            let counters = Arc::clone(&self.inner.counters);
            self.emit(Event::Messages(Batch { chunk, from, counters, _permit: Some(permit) })).await;
        } else {
            self.queue(None, end).await;
        }
        Ok(())
    }

    async fn emit(&self, event: Event) {
        self.queue(Some(event), self.next).await;
    }

    /// Waits for room in the queue, at the reader's pace. If the subscription has been dropped, `run` ends.
    async fn queue(&self, event: Option<Event>, next: u64) {
        let _ = self.events.send(Queued { event, next }).await;
    }
}
