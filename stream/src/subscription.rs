//! What a reader of a stream sees.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use crate::{batch::Batch, chunk::Position, error::Error};

/// Where a subscription begins. Only its first attachment uses it; later ones go on after the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the first message written after the first attachment. If the stream does not exist yet: with its first message.
    Next,
    /// With the first message that the stream still has.
    First,
    /// After this message, checked by its fingerprint: otherwise [`Event::Reset`] or [`Event::Gap`].
    After(Position),
}

/// What happened on a subscription.
///
/// Each attachment is `Attached`, preceded by `Gap` or `Reset` if it does not continue what came before. Then
/// come `Messages`. Messages that arrive have increasing offsets, with holes that mean nothing, until a `Reset`.
#[derive(Debug)]
pub enum Event {
    /// Reading from here on. `position`: the last message before the ones to come, which is in the stream with this
    /// fingerprint or was the last one before the stream's first; `None`: nothing precedes them, they begin with the first message that
    /// the stream has. `first_offset`: the stream's first offset, `None` if it is empty.
    Attached { position: Option<Position>, first_offset: Option<u64> },
    /// Messages in the order of the stream, each once.
    Messages(Batch),
    /// Messages before `first_offset` are lost to this reader: the retention reclaimed them before they were read, or a chunk
    /// exceeded `max_frame_bytes`. It goes on with the first message that the stream has.
    Gap { first_offset: u64 },
    /// The stream is another one than before: deleted and declared again, rolled back, or restored. It goes on with the first
    /// message of the new one, so that nothing confirmed there is missed; what it holds may have been seen in the old one.
    Reset,
    /// Not reading at the moment. Comes once an outage, which ends by itself with `Attached`.
    Down { reason: Error },
}

/// A supervised reader of one stream. Dropping it ends the reading.
///
/// Made by [`crate::Client::subscribe`].
#[derive(Debug)]
pub struct Subscription {
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) progress: Arc<Progress>,
}

impl Subscription {
    /// The next event; `None` after [`crate::Client::close`].
    ///
    /// Cancel safe: an event is either returned or stays. A reader that does not call it holds up its own stream only.
    pub async fn recv(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// How many offsets of the stream's committed part have not been received yet, as of the last chunk or watchdog
    /// check. Holes count, so it is an upper bound.
    pub fn lag(&self) -> u64 {
        self.progress.lag()
    }
}

/// How far the reader is, for others to look at.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    next: AtomicU64,
    end: AtomicU64,
}

impl Progress {
    /// `next`: the offset after the last one received. `end`: the offset after the last committed one.
    pub(crate) fn set(&self, next: u64, end: u64) {
        self.next.store(next, Ordering::Relaxed);
        self.end.store(end.max(next), Ordering::Relaxed);
    }

    fn lag(&self) -> u64 {
        self.end.load(Ordering::Relaxed).saturating_sub(self.next.load(Ordering::Relaxed))
    }
}
