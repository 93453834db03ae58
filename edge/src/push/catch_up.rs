//! How a connection that comes back gets what it missed, and goes live.
//!
//! *Flow*: the client's cursor names the last message that it saw. As long as the log knows that position, it reads from there; otherwise it
//! reads pieces of the stream, shared with the other clients of the business, at its own pace: a slow client holds one piece, not a reader.
//! *Guarantees*: each entry once and in order; every piece keeps its progress, since the client is told where it stands. Where the message at
//! the cursor is not the one that its fingerprint names, the client is told of a gap and continues with now. Whatever is waited for, it is
//! greeted within [`GREET_WITHIN`].
//! *Cancel safety*: dropping the future leaves the connection not live; nothing else is held.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use super::{
    entry::Entry,
    greeting::Greeting,
    hub::{Advance, Gap, Hub, position_frame},
    mailbox::Conn,
};
use crate::broker::{Position, ReadError};

/// How long a client waits for the broker before it is greeted without knowing where it stands.
const GREET_WITHIN: Duration = Duration::from_secs(2);
/// Waits between attempts to read while the broker is away.
const RETRY: Duration = Duration::from_millis(500);
/// A replica may lag behind the edge that the client comes from: only after these is a position beyond the end another stream's.
const BEYOND_END_ATTEMPTS: u32 = 4;
/// Waits between them.
const BEYOND_END_WAIT: Duration = Duration::from_millis(150);
/// Bytes of pieces kept for other clients that come back now.
const CACHE_BYTES: usize = 32 << 20;
/// Largest piece asked for, where single messages are larger than the usual one.
const MAX_PIECE: usize = 64 << 20;
/// How long a piece is kept.
const CACHE_TIME: Duration = Duration::from_secs(10);

/// Where a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With what comes from now on.
    Now,
    /// After this message.
    After(Position),
    /// It has a cursor that can't be of this business's stream.
    Foreign,
}

/// Lets a connection catch up until it is live. Returns when it is, or when it is closing.
pub async fn run(hub: &Hub, conn: &Arc<Conn>, from: From, greeting: &mut Greeting<'_>) {
    let greet_by = Instant::now() + GREET_WITHIN;
    let mut at = match from {
        From::Now => return join(hub, conn, None, greet_by, greeting).await,
        From::Foreign => return join(hub, conn, Some(Gap::Cursor), greet_by, greeting).await,
        From::After(at) => at,
    };
    let mut moved = hub.moved();
    let mut beyond_end = 0;
    while conn.outbound.closing().is_none() {
        moved.mark_unchanged();
        let sent = match hub.advance(conn, at, || greeting.resumed(at)) {
            Advance::Live => return,
            Advance::More(entries, reached) => {
                at = reached;
                entries
            }
            Advance::Foreign => return join(hub, conn, Some(Gap::Incarnation), greet_by, greeting).await,
            Advance::Unattached => {
                let _ = in_time(moved.changed(), greet_by, greeting).await;
                continue;
            }
            step @ (Advance::Older | Advance::Newer) => match in_time(read(hub, at), greet_by, greeting).await {
                Ok(Found::Continues(entries)) => {
                    greeting.resumed(at);
                    beyond_end = 0;
                    let Some(last) = entries.last() else {
                        if matches!(step, Advance::Newer) {
                            let _ = moved.changed().await;
                        } else {
                            // A replica that is behind the log answered. The log has what is missing, and may not move for long.
                            sleep(RETRY).await;
                        }
                        continue;
                    };
                    at = last.position;
                    hub.select(conn, &entries)
                }
                Ok(Found::BeyondEnd) if beyond_end < BEYOND_END_ATTEMPTS => {
                    beyond_end += 1;
                    in_time(sleep(BEYOND_END_WAIT), greet_by, greeting).await;
                    continue;
                }
                Ok(Found::BeyondEnd) => {
                    return join(hub, conn, Some(Gap::Incarnation), greet_by, greeting).await;
                }
                Ok(Found::Gap(reason)) => return join(hub, conn, Some(reason), greet_by, greeting).await,
                Err(error) => {
                    tracing::debug!(business = %hub.name, connection = conn.id, %error, "catching up waits for the broker");
                    in_time(sleep(RETRY), greet_by, greeting).await;
                    continue;
                }
            },
        };
        for entry in &sent {
            conn.outbound.room_for(entry.cost()).await;
            if !conn.deliver(entry) {
                return;
            }
            hub.context.metrics.deliveries.inc();
        }
        if sent.last().is_none_or(|entry| entry.position != at) {
            conn.tell(at.offset);
            conn.control(position_frame(&hub.name, at));
        }
        conn.outbound.room_for(0).await;
    }
}

/// Goes live at the log's end.
async fn join(hub: &Hub, conn: &Arc<Conn>, gap: Option<Gap>, greet_by: Instant, greeting: &mut Greeting<'_>) {
    let mut moved = hub.moved();
    while conn.outbound.closing().is_none() {
        moved.mark_unchanged();
        let joined = hub.join_at_end(conn, |position| match gap {
            Some(reason) => greeting.gap(position, reason),
            None => greeting.fresh(position),
        });
        if joined {
            return;
        }
        let _ = in_time(moved.changed(), greet_by, greeting).await;
    }
}

/// Awaits something to its end, however long that takes; the client is greeted in time all the same.
async fn in_time<T>(future: impl Future<Output = T>, greet_by: Instant, greeting: &mut Greeting<'_>) -> T {
    let mut future = pin!(future);
    if !greeting.is_sent() {
        match timeout_at(greet_by, future.as_mut()).await {
            Ok(done) => return done,
            Err(_) => greeting.unknown(),
        }
    }
    future.await
}

/// What the stream says of a position.
enum Found {
    /// It is this stream's; what follows it.
    Continues(Vec<Arc<Entry>>),
    /// The stream ends before it.
    BeyondEnd,
    /// Continuity can't be shown.
    Gap(Gap),
}

async fn read(hub: &Hub, at: Position) -> Result<Found, ReadError> {
    let piece = hub.context.catch_up.piece(hub, at.offset).await?;
    let Some(start) = piece.entries.iter().position(|entry| entry.position.offset >= at.offset) else {
        return Ok(Found::BeyondEnd);
    };
    let found = piece.entries[start].position;
    Ok(if found == at {
        Found::Continues(piece.entries[start + 1..].to_vec())
    } else if found.offset == at.offset {
        Found::Gap(Gap::Incarnation)
    // After a truncation the broker's first offset may be one below what it serves.
    } else if piece.first_offset.is_some_and(|first| first.saturating_add(1) >= at.offset) {
        Found::Gap(Gap::Retention)
    } else {
        Found::Gap(Gap::Incarnation)
    })
}

/// Pieces of streams that were read lately, so that the clients of a dead edge, who come back at the same time, share them.
#[derive(Debug)]
pub struct CatchUp {
    readers: Semaphore,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    pieces: VecDeque<Arc<CachedPiece>>,
    bytes: usize,
}

#[derive(Debug)]
struct CachedPiece {
    business: Arc<str>,
    read_at: Instant,
    entries: Vec<Arc<Entry>>,
    first_offset: Option<u64>,
    bytes: usize,
}

impl Drop for CachedPiece {
    fn drop(&mut self) {
        // From now on those clients hold them that are being sent them.
        for entry in &self.entries {
            entry.keep(false);
        }
    }
}

impl CachedPiece {
    /// Whether it knows the record at `offset` and one behind it.
    fn serves(&self, business: &str, offset: u64) -> bool {
        *self.business == *business
            && self.read_at.elapsed() < CACHE_TIME
            && self.entries.first().is_some_and(|first| first.position.offset <= offset)
            && self.entries.last().is_some_and(|last| last.position.offset > offset)
    }
}

impl CatchUp {
    /// At most `readers` pieces are read at the same time.
    pub fn new(readers: usize) -> Self {
        Self { readers: Semaphore::new(readers.max(1)), cache: Mutex::default() }
    }

    /// Forgets the pieces of a business.
    pub fn forget(&self, business: &str) {
        self.lock().retain(|piece| *piece.business != *business);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, business: &str, offset: u64) -> Option<Arc<CachedPiece>> {
        self.lock().pieces.iter().find(|piece| piece.serves(business, offset)).cloned()
    }

    async fn piece(&self, hub: &Hub, offset: u64) -> Result<Arc<CachedPiece>, ReadError> {
        if let Some(piece) = self.cached(&hub.name, offset) {
            return Ok(piece);
        }
        let _turn = hub.fetching.lock().await;
        if let Some(piece) = self.cached(&hub.name, offset) {
            return Ok(piece);
        }
        let closed = |_| ReadError("this edge is stopping".into());
        let _permit = self.readers.acquire().await.map_err(closed)?;
        let context = &hub.context;
        context.metrics.catch_up_reads.inc();
        let mut bytes = context.settings.catch_up_bytes;
        let read = loop {
            let read = context.broker.read(&hub.name, offset, bytes).await?;
            // A piece that ends with the client's own position brings it no further: the next messages are larger than the piece.
            if read.at_end || read.records.last().is_some_and(|last| last.position.offset > offset) || bytes > MAX_PIECE
            {
                break read;
            }
            bytes *= 2;
        };
        let business = hub.business();
        // Rejected pushes are counted where they are read first, by the live reader.
        let entry = |record| Arc::new(Entry::read(&business, record, &context.backlog).0);
        let entries: Vec<_> = read.records.iter().map(entry).collect();
        for entry in &entries {
            entry.keep(true);
        }
        let piece = Arc::new(CachedPiece {
            business: Arc::clone(&hub.name),
            read_at: Instant::now(),
            bytes: entries.iter().map(|entry| entry.cost()).sum(),
            first_offset: read.first_offset,
            entries,
        });
        self.lock().keep(Arc::clone(&piece));
        context.backlog.relieve();
        Ok(piece)
    }
}

impl Cache {
    fn retain(&mut self, keep: impl Fn(&CachedPiece) -> bool) {
        self.pieces.retain(|piece| keep(piece));
        self.bytes = self.pieces.iter().map(|piece| piece.bytes).sum();
    }

    fn keep(&mut self, piece: Arc<CachedPiece>) {
        self.retain(|old| old.read_at.elapsed() < CACHE_TIME);
        self.bytes += piece.bytes;
        self.pieces.push_back(piece);
        while self.bytes > CACHE_BYTES
            && let Some(old) = self.pieces.pop_front()
        {
            self.bytes -= old.bytes;
        }
    }
}
