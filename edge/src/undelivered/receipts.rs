//! The stream of receipts, read message by message.

use std::collections::VecDeque;

use wirepost_core::names;

use super::checkpoint::Written;
use crate::{
    broker::{Feed, FeedEvent, Position, Record, Start},
    push::hub::Hub,
};

/// Reads the stream of a business.
pub(super) struct Receipts {
    feed: Box<dyn Feed>,
    /// Of the last batch.
    unread: VecDeque<Record>,
    up: bool,
}

/// What comes next.
pub(super) enum Next {
    /// A message that is understood: where it stands, and when the broker stored it.
    Message(Position, i64, Written),
    /// Reading (again). True: the stream is empty.
    Attached(bool),
    /// Not reading at the moment.
    Down,
    /// Messages are missing before the next one.
    Gap,
    /// The stream is another one.
    Reset,
}

impl Receipts {
    /// From there on; `None`: this edge reads no streams.
    pub(super) fn read(hub: &Hub, start: Start) -> Option<Self> {
        let feed = hub.context.broker.follow(&names::receipts_stream(&hub.name), start)?;
        Some(Self { feed, unread: VecDeque::new(), up: false })
    }

    /// Whether the stream is being read.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            while let Some(record) = self.unread.pop_front() {
                if let Some(written) = Written::read(&record.body) {
                    return Next::Message(record.position, record.timestamp, written);
                }
            }
            match self.feed.recv().await {
                FeedEvent::Records(batch) => {
                    self.unread = batch.records.into();
                    if let Some(done) = batch.done {
                        done();
                    }
                }
                FeedEvent::Attached { position } => {
                    self.up = true;
                    return Next::Attached(position.is_none());
                }
                FeedEvent::Down { reason } => {
                    self.up = false;
                    tracing::debug!(reason, "receipts are not read at the moment");
                    return Next::Down;
                }
                FeedEvent::Gap => return Next::Gap,
                FeedEvent::Reset => return Next::Reset,
            }
        }
    }
}
