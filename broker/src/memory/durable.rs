//! A feed on a stream in memory.

use std::sync::Arc;

use super::{Inner, log::Log};
use crate::{Feed, FeedEvent, Health, RecordBatch, Start};
use futures_util::{FutureExt, future::BoxFuture};

/// Bytes of one batch.
const BATCH_BYTES: usize = 256 << 10;

/// Follows one stream through its lives.
pub(super) struct StreamFeed {
    inner: Arc<Inner>,
    stream: String,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Never attached so far.
    Starting(Start),
    /// Reading this incarnation; `next` is the lowest offset not handed out. `down`: reported that reading has stopped.
    Reading { incarnation: u64, next: u64, down: bool },
    /// Reported that reading can't begin.
    Waiting(Start),
    /// Reported a gap or another incarnation: `Attached` comes next, before the message `next`.
    Broken { incarnation: u64, next: u64 },
}

impl StreamFeed {
    pub(super) fn new(inner: Arc<Inner>, stream: String, start: Start) -> Self {
        Self { inner, stream, state: State::Starting(start) }
    }
}

impl Feed for StreamFeed {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async move {
            let Self { inner, stream, state } = self;
            inner
                .wait_for(stream, |world, health| {
                    let log = world.streams.get(stream.as_str());
                    let trouble = match (health, log) {
                        (Health::Away(reason), _) => Some(reason.clone()),
                        (_, None) => Some(format!("there is no stream {stream}")),
                        _ => None,
                    };
                    let (next_state, event) = match (trouble, log) {
                        (None, Some(log)) => state.read(log)?,
                        (reason, _) => state.stopped(reason.unwrap_or_default())?,
                    };
                    *state = next_state;
                    Some(event)
                })
                .await
        }
        .boxed()
    }

    fn lag(&self) -> Option<u64> {
        let world = self.inner.world();
        match (world.streams.get(&self.stream), self.state) {
            (Some(log), State::Reading { incarnation, next, .. } | State::Broken { incarnation, next })
                if log.incarnation == incarnation =>
            {
                Some(log.next().saturating_sub(next))
            }
            _ => None,
        }
    }
}

impl State {
    fn stopped(self, reason: String) -> Option<(Self, FeedEvent)> {
        let next = match self {
            Self::Starting(start) => Self::Waiting(start),
            Self::Reading { incarnation, next, down: false } | Self::Broken { incarnation, next } => {
                Self::Reading { incarnation, next, down: true }
            }
            Self::Waiting(_) | Self::Reading { down: true, .. } => return None,
        };
        Some((next, FeedEvent::Down { reason }))
    }

    fn read(self, log: &Log) -> Option<(Self, FeedEvent)> {
        let incarnation = log.incarnation;
        let at = |next| Self::Reading { incarnation, next, down: false };
        let attached = |next: u64| {
            let before = next.checked_sub(1).and_then(|offset| log.at(offset));
            (at(next), FeedEvent::Attached { position: before.map(|record| record.position) })
        };
        let first = log.first().unwrap_or_else(|| log.next());
        let broken = Self::Broken { incarnation, next: first };
        match self {
            Self::Starting(start) | Self::Waiting(start) => Some(match start {
                Start::Next => (at(log.next()), FeedEvent::Attached { position: log.last_position() }),
                Start::First => attached(first),
                Start::After(position) => match log.at(position.offset) {
                    Some(record) if record.position == position => attached(position.offset + 1),
                    // Reclaimed: whether it was this life's can't be shown.
                    None if position.offset < first => (broken, FeedEvent::Gap),
                    _ => (broken, FeedEvent::Reset),
                },
            }),
            Self::Reading { incarnation: known, .. } | Self::Broken { incarnation: known, .. }
                if known != incarnation =>
            {
                Some((broken, FeedEvent::Reset))
            }
            Self::Reading { next, .. } | Self::Broken { next, .. } if next < first => Some((broken, FeedEvent::Gap)),
            Self::Broken { next, .. } | Self::Reading { next, down: true, .. } => Some(attached(next)),
            Self::Reading { next, .. } => {
                let records = log.piece(next, BATCH_BYTES).records;
                let last = records.last()?.position.offset;
                Some((at(last + 1), FeedEvent::Records(RecordBatch { records, done: None })))
            }
        }
    }
}
