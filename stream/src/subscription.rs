//! The reader's side of a subscription.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use crate::{batch::Batch, chunk::Position, error::Error};

/// Where a subscription begins. Only the first attachment uses it; later ones continue after the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first message written after the first attachment. If the stream does not exist yet: at its first message.
    Next,
    /// At the first message in the stream.
    First,
    /// After this message, checked by its fingerprint: otherwise [`Event::Reset`] or [`Event::Gap`].
    After(Position),
}

/// An event of a subscription.
///
/// Each attachment begins with `Attached`, preceded by `Gap` or `Reset` if it does not continue from the last message.
/// `Messages` follow. Offsets increase until a `Reset`; they are not contiguous, which does not mean loss.
#[derive(Debug)]
pub enum Event {
    /// Reading from here.
    Attached {
        /// The last message before the ones that follow: it is in the stream with this fingerprint, or was the last one
        /// before the stream's first. `None`: nothing precedes them, they begin at the stream's first message.
        position: Option<Position>,
        /// The stream's first offset; `None` if it is empty.
        first_offset: Option<u64>,
    },
    /// Messages in the order of the stream, each once.
    Messages(Batch),
    /// Messages before `first_offset` are lost to this reader: retention deleted them before they were read, or a chunk
    /// exceeded `max_frame_bytes`. Reading continues at the first message in the stream.
    Gap {
        /// The first offset that the stream still has.
        first_offset: u64,
    },
    /// The stream is a new incarnation: deleted and declared again, rolled back, or restored. Reading continues at its
    /// first message, so that nothing confirmed there is missed; some messages may have been seen in the old one.
    Reset,
    /// Not reading. Sent once per outage, which ends with `Attached`.
    Down {
        /// Why.
        reason: Error,
    },
}

/// A supervised reader of one stream. Dropping it stops reading.
///
/// Created by [`crate::Client::subscribe`].
#[derive(Debug)]
pub struct Subscription {
    pub(crate) events: mpsc::Receiver<Queued>,
    pub(crate) progress: Arc<Progress>,
}

impl Subscription {
    /// The next event; `None` after [`crate::Client::close`].
    ///
    /// Cancel safe: an event is either returned or kept. A reader that does not call it delays only its own stream.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            let Queued { event, next } = self.events.recv().await?;
            self.progress.handed_out(next);
            if event.is_some() {
                return event;
            }
        }
    }

    /// The number of committed offsets that [`Self::recv`] has not returned yet, as of the last attachment, chunk or
    /// watchdog check. An upper bound, as offsets are not contiguous; 0 after an attachment means that everything that
    /// was in the stream then was returned.
    pub fn lag(&self) -> u64 {
        self.progress.lag()
    }
}

/// What waits for [`Subscription::recv`].
#[derive(Debug)]
pub(crate) struct Queued {
    /// `None`: nothing to report but that the reader has come further.
    pub(crate) event: Option<Event>,
    /// The offset after the last one that this and everything before it covers.
    pub(crate) next: u64,
}

/// The reader's progress, readable by others.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    next: AtomicU64,
    end: AtomicU64,
}

impl Progress {
    /// The offset after the last committed one.
    pub(crate) fn committed(&self, end: u64) {
        self.end.store(end, Ordering::Relaxed);
    }

    /// The offset after the last one that was handed out.
    fn handed_out(&self, next: u64) {
        self.next.store(next, Ordering::Relaxed);
    }

    fn lag(&self) -> u64 {
        self.end.load(Ordering::Relaxed).saturating_sub(self.next.load(Ordering::Relaxed))
    }
}
