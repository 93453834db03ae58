//! Compares a client's position with the stream.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    broker::{Position, ReadError},
    push::{entry::Entry, gap::Gap, hub::Hub, judge, mailbox::Mailbox, pages::CachedPage},
};

/// Longest read of a stream that was not silent the last time. After that it gives up its place to other businesses, and
/// takes as long as it needs beside them.
const QUICK_READ: Duration = Duration::from_secs(1);

/// What a page of the stream shows.
#[derive(Debug)]
pub(super) enum StreamRead {
    /// The position belongs to this stream.
    Continues {
        /// What follows it and addresses this connection.
        entries: Vec<Arc<Entry>>,
        /// The last position of the page; `None`: nothing follows.
        reached: Option<Position>,
    },
    /// The stream ends before it.
    BeyondEnd,
    /// Continuity can't be proven.
    Gap(Gap),
}

/// Reads from the message at `at` on and compares it. `ahead`: see [`Action::Read`](super::progress::Action::Read).
pub(super) async fn read(hub: &Hub, mailbox: &Mailbox, at: Position, ahead: bool) -> Result<StreamRead, ReadError> {
    let page = page(hub, at.offset, ahead).await?;
    let Some(start) = page.entries.iter().position(|entry| entry.position.offset >= at.offset) else {
        return Ok(if page.lost { StreamRead::Gap(Gap::Retention) } else { StreamRead::BeyondEnd });
    };
    let found = page.entries[start].position;
    Ok(if found == at && page.lost && page.entries.len() == start + 1 {
        StreamRead::Gap(Gap::Retention)
    } else if found == at {
        let entries = &page.entries[start + 1..];
        let reached = entries.last().map(|entry| entry.position);
        StreamRead::Continues { entries: hub.select(mailbox, entries), reached }
    } else if found.offset == at.offset {
        StreamRead::Gap(Gap::Incarnation)
    // After a truncation the broker's first offset may be one below what it serves.
    } else if page.first_offset.is_some_and(|first| first.saturating_add(1) >= at.offset) {
        StreamRead::Gap(Gap::Retention)
    } else {
        StreamRead::Gap(Gap::Incarnation)
    })
}

/// A page that begins at `offset` or before it, from the cache or the broker.
async fn page(hub: &Hub, offset: u64, ahead: bool) -> Result<Arc<CachedPage>, ReadError> {
    let context = &hub.context;
    if let Some(page) = context.pages.find(&hub.business(), offset, ahead) {
        return Ok(page);
    }
    let _first = hub.reads.permit(offset).await;
    if let Some(page) = context.pages.find(&hub.business(), offset, ahead) {
        return Ok(page);
    }
    let silent = hub.reads.is_silent();
    let _permit = context.pages.reader(silent).await;
    context.metrics.catch_up_reads.inc();
    let begun = Instant::now();
    let read = context.broker.read(&hub.name, offset, context.settings.catch_up_bytes);
    let read = if silent {
        read.await
    } else {
        let late = || Err(ReadError(format!("nothing came within {QUICK_READ:?}")));
        timeout(QUICK_READ, read).await.unwrap_or_else(|_| late())
    };
    // One that answers slowly stays among the silent ones: the next read would be given up and made again.
    hub.reads.set_silent(read.is_err() || begun.elapsed() > QUICK_READ);
    let read = read?;
    let business = hub.business();
    // Rejected pushes are counted where they are read first, by the live reader.
    let entries = judge::read(hub, &business, &read.records).await;
    let mut entries: Vec<_> = entries.into_iter().map(|(entry, _)| Arc::new(entry)).collect();
    hub.compress(&mut entries).await;
    let page = Arc::new(CachedPage::new(business, entries, read.first_offset, read.lost));
    context.pages.keep(Arc::clone(&page));
    hub.backlog.shed();
    Ok(page)
}
