//! The pushes of a business, read to the end that the stream has at the moment.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    broker::{FeedEvent, Position, ReadError, Record, Start},
    push::hub::Hub,
};

/// Bytes of one page.
const PAGE: usize = 1 << 20;
/// Longest wait for the end of the stream.
const END: Duration = Duration::from_secs(10);

/// A part of the stream behind a position.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) records: Vec<Record>,
    /// Nothing followed when it was read, as the leader of the stream knows it.
    pub(super) at_end: bool,
    /// Pushes before the records are gone.
    pub(super) gap: bool,
    /// What follows the records can't be read.
    pub(super) lost: bool,
    /// Whether the position is of this stream.
    pub(super) stream: Stream,
}

/// See [`Part`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stream {
    #[default]
    Same,
    /// It ends before the position: another one, or for a moment after its leader has changed.
    Shorter,
    /// Another message stands at the position.
    Other,
}

/// What follows `after`; `None`: the stream's first messages.
pub(super) async fn read(hub: &Hub, after: Option<Position>) -> Result<Part, ReadError> {
    let broker = &*hub.context.broker;
    let mut page = broker.read(&hub.name, after.map_or(0, |after| after.offset), PAGE).await?;
    let mut part = Part { at_end: page.at_end, lost: page.lost, ..Part::default() };
    match (after, page.records.first().map(|first| first.position)) {
        (None, _) => {}
        (Some(after), Some(first)) if first == after => _ = page.records.remove(0),
        // Retention has passed it.
        (Some(after), Some(first)) if first.offset > after.offset => part.gap = true,
        (Some(_), Some(_)) => return Ok(Part { stream: Stream::Other, ..Part::default() }),
        (Some(_), None) => return Ok(Part { stream: Stream::Shorter, ..Part::default() }),
    }
    // A page with messages ends where the replica does that was asked. One without is believed of the leader alone.
    let last = page.records.last().map(|last| last.position).or(after);
    if let Some(last) = last.filter(|_| part.at_end) {
        let behind = broker.read(&hub.name, last.offset + 1, PAGE).await?;
        (part.at_end, part.lost) = (behind.at_end && behind.records.is_empty(), behind.lost);
        page.records.extend(behind.records);
    }
    part.records = page.records;
    Ok(part)
}

/// The last message of the stream; `None`: it is empty.
pub(super) async fn end(hub: &Hub) -> Result<Option<Position>, ReadError> {
    let mut feed = hub.context.broker.tail(&hub.name, hub.delivery(), Start::Next);
    let attached = async {
        loop {
            if let FeedEvent::Attached { position } = feed.recv().await {
                return position;
            }
        }
    };
    timeout(END, attached).await.map_err(|_| ReadError("it can't be read".to_owned()))
}
