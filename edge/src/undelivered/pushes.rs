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
    /// Nothing followed when it was read.
    pub(super) at_end: bool,
    /// Pushes before the records, or behind them, are gone. Without records or the end: what follows can't be read.
    pub(super) gap: bool,
    /// The stream is another one, of which these are the first records.
    pub(super) reset: bool,
}

/// What follows `after`; `None`: the stream's first messages.
pub(super) async fn read(hub: &Hub, after: Option<Position>) -> Result<Part, ReadError> {
    let broker = &*hub.context.broker;
    let mut page = broker.read(&hub.name, after.map_or(0, |after| after.offset), PAGE).await?;
    let mut part = Part { at_end: page.at_end, gap: page.lost, ..Part::default() };
    match (after, page.records.first().map(|first| first.position)) {
        (None, _) => {}
        (Some(after), Some(first)) if first == after => _ = page.records.remove(0),
        // Retention has passed it.
        (Some(after), Some(first)) if first.offset > after.offset => part.gap = true,
        (Some(_), _) => {
            page = broker.read(&hub.name, 0, PAGE).await?;
            part = Part { at_end: page.at_end, gap: true, reset: true, ..Part::default() };
        }
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
