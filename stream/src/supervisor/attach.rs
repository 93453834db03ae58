//! Attaches a reader and proves that the stream continues from the last message seen.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::{Attachment, Supervisor};
use crate::{
    chunk::{Chunk, Entry, Position, fingerprint},
    connection::{Connection, Delivery, Reservation, Specification, StreamReader, StreamStats},
    error::Error,
    flow::ChunkPermit,
    subscription::{Event, Start},
};

/// A stream counts as a new incarnation when its leader says so many times, with these pauses, that it ends before our
/// position. A replica's word does not count: it may lag behind the one that we read before.
const END_CHECKS: u32 = 4;
const END_CHECK_PAUSE: Duration = Duration::from_millis(500);
/// A replica is usually milliseconds behind: it lags if its end is below what its leader's was, so many times, with these
/// pauses.
const LAG_CHECKS: u32 = 4;
const LAG_CHECK_PAUSE: Duration = Duration::from_millis(50);
/// A stream that has an end but does not serve its last chunk this many times contains no messages.
const SILENT_ATTEMPTS: u32 = 3;
/// Reads of the stream's end in one attempt: a busy stream may grow in between, and each doubt takes one.
const ATTEMPT_CHECKS: u32 = 10;

/// What the first chunk shows about the last message seen.
enum Continuity {
    Continues,
    Ends,
    Another,
    Beyond,
}

impl Supervisor {
    pub(super) async fn attach(&mut self) -> Result<Attachment, Error> {
        let mut doubts = 0;
        for _ in 0..ATTEMPT_CHECKS {
            let reservation = self.inner.pool.reserve(&self.nodes).await?;
            let connection = Arc::clone(reservation.connection());
            match self.attach_on(reservation, &mut doubts).await {
                Ok(Some(attachment)) => return Ok(attachment),
                Ok(None) => {}
                Err(error) => {
                    if error.is_elsewhere()
                        && let Ok(members) = connection.locate(&self.stream).await
                    {
                        self.nodes = members.nodes;
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
        match self.start {
            Start::First if self.next == 0 => {
                // Else what its end shows would not be the end of what was confirmed before.
                if !self.is_abreast(reservation.connection()).await? {
                    return Ok(None);
                }
                let stats = reservation.connection().stats(&self.stream).await?;
                self.attach_first(reservation, stats).await.map(Some)
            }
            Start::First => {
                // Only unreadable messages were seen: there is no fingerprint to check.
                let reader = self.subscribe(reservation, Specification::Offset(self.next)).await?;
                self.attached(None, stats).await;
                Ok(Some(Attachment { reader, chunk: None }))
            }
            Start::Next => {
                if !self.is_abreast(reservation.connection()).await? {
                    return Ok(None);
                }
                // What the replica has now, at least what its leader had.
                let stats = reservation.connection().stats(&self.stream).await?;
                self.attach_next(reservation, stats).await.map(Some)
            }
            Start::After(position) => self.attach_after(position, reservation, stats, doubts).await,
        }
    }

    /// Whether a node has what the leader of the stream has: from one that lags, "next" would begin in the past, and all
    /// of the stream would be new where it has nothing yet. If not, the leader is read. One that is out of reach can't be
    /// compared.
    async fn is_abreast(&mut self, connection: &Connection) -> Result<bool, Error> {
        let members = connection.locate(&self.stream).await?;
        if members.are_led_by(connection) {
            return Ok(true);
        }
        let leader = members.leader.ok_or(Error::NotReady)?;
        let Some(leading) = self.inner.pool.reach(&leader).await else { return Ok(true) };
        let end = leading.connection().stats(&self.stream).await?.end();
        for _ in 0..LAG_CHECKS {
            if connection.stats(&self.stream).await?.end() >= end {
                return Ok(true);
            }
            sleep(LAG_CHECK_PAUSE).await;
        }
        debug!(stream = &*self.stream, "a replica lags, its leader is read");
        self.nodes = vec![leader];
        Ok(false)
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
        if stats.end().is_none_or(|end| end == 0 && self.is_silent()) {
            self.start = Start::First;
            return self.attach_first(reservation, stats).await;
        }
        // Its last chunk does not arrive in time: too large for this connection. From the beginning, everything would
        // count as new.
        if self.is_silent() {
            self.start = Start::First;
            self.next = stats.end().map_or(0, |end| end.saturating_add(1));
            let reader = self.subscribe(reservation, Specification::Offset(self.next)).await?;
            self.attached(None, stats).await;
            return Ok(Attachment { reader, chunk: None });
        }
        let mut reader = self.subscribe(reservation, Specification::Last).await?;
        let mut last = None;
        if let Some((chunk, _permit)) = self.first_chunk(&mut reader).await? {
            last = chunk.last_position(0).0;
            self.next = chunk.end_offset();
            self.start = last.map_or(Start::First, Start::After);
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
            let connection = Arc::clone(reservation.connection());
            drop(reservation);
            return self.doubt(&connection, stats, doubts).await;
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
                let connection = Arc::clone(reader.connection());
                drop((chunk, permit, reader));
                return self.doubt(&connection, stats, doubts).await;
            }
            Continuity::Another => {
                drop(reader);
                return self.reset().await.map(Some);
            }
            Continuity::Beyond => {
                let first = reader.connection().stats(&self.stream).await?.first_offset.unwrap_or(0);
                if first <= position.offset {
                    // The stream still has that offset, so the broker would have sent it, unless the end moved. (The
                    // first chunk may be one of the broker's own, just below the first message. Then a message of ours
                    // was never at its offset.)
                    drop(reader);
                    return if near_end { Ok(None) } else { self.reset().await.map(Some) };
                }
                // Also if it begins right behind our position: numbers don't tell whether the message that was deleted
                // there is the one that we have seen, or that of another incarnation.
                self.gap(chunk.first_offset).await;
                self.start = Start::First;
                self.next = 0;
                self.attached(None, stats).await;
                return Ok(Some(Attachment { reader, chunk: Some((chunk, permit)) }));
            }
        }
        self.attached(Some(position), stats).await;
        Ok(Some(Attachment { reader, chunk: Some((chunk, permit)) }))
    }

    /// The stream ends before our position: a new incarnation, or a replica that lags behind the one we read before.
    async fn doubt(
        &mut self,
        connection: &Connection,
        stats: StreamStats,
        doubts: &mut u32,
    ) -> Result<Option<Attachment>, Error> {
        let members = connection.locate(&self.stream).await?;
        let leads = members.are_led_by(connection);
        debug!(stream = &*self.stream, start = ?self.start, ?stats, doubts, leads, "the stream ends before the last message seen");
        if leads {
            *doubts += 1;
        } else {
            self.nodes = vec![members.leader.ok_or(Error::NotReady)?];
        }
        if *doubts < END_CHECKS {
            sleep(END_CHECK_PAUSE).await;
            return Ok(None);
        }
        self.reset().await.map(Some)
    }

    /// Attaches to the new incarnation.
    async fn reset(&mut self) -> Result<Attachment, Error> {
        self.become_new().await;
        let reservation = self.inner.pool.reserve(&self.nodes).await?;
        let stats = reservation.connection().stats(&self.stream).await?;
        self.attach_first(reservation, stats).await
    }

    async fn become_new(&mut self) {
        info!(stream = &*self.stream, "new incarnation of the stream, reading from its beginning");
        self.inner.counters.resets.increment();
        self.start = Start::First;
        self.next = 0;
        self.lost = false;
        self.emit(Event::Reset).await;
    }

    async fn attached(&mut self, position: Option<Position>, stats: StreamStats) {
        debug!(stream = &*self.stream, ?position, "attached");
        self.inner.counters.attachments.increment();
        self.down = false;
        self.silent_attempts = 0;
        let next = self.next.max(stats.first_offset.unwrap_or(0));
        self.progress.committed(stats.end().map_or(0, |end| end.saturating_add(1)));
        self.queue(Some(Event::Attached { position, first_offset: stats.first_offset }), next).await;
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
