//! Recently read pages of streams. The clients of a dead edge reconnect at the same time, and share them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::entry::Entry;
use crate::business::Business;

/// Bytes of all cached pages.
const CACHE_BYTES: usize = 32 << 20;
/// How long a page says that nothing follows it, for those who would only wait then.
const END_TIME: Duration = Duration::from_millis(500);
/// How long a page is kept.
const CACHE_TIME: Duration = Duration::from_secs(10);
/// Streams read at the same time that were silent the last time: a read of one that still is takes its whole time, and
/// holds nothing.
const SILENT_READERS: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct PageCache {
    readers: Semaphore,
    /// For streams that were silent the last time.
    silent: Semaphore,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    pages: VecDeque<Arc<CachedPage>>,
    bytes: usize,
    gauge: Gauge,
}

/// A bounded read of a stream, parsed into entries.
#[derive(Debug)]
pub(super) struct CachedPage {
    /// What its entries were judged by.
    judge: Arc<Business>,
    read_at: Instant,
    /// In stream order.
    pub(super) entries: Vec<Arc<Entry>>,
    /// First offset that the stream still had; `None` = it was empty.
    pub(super) first_offset: Option<u64>,
    /// What follows the entries is missing.
    pub(super) lost: bool,
    bytes: usize,
}

impl CachedPage {
    /// A page that was just read. Its entries count as kept for its lifetime.
    pub(super) fn new(judge: Arc<Business>, entries: Vec<Arc<Entry>>, first_offset: Option<u64>, lost: bool) -> Self {
        for entry in &entries {
            entry.keep(true);
        }
        let bytes = entries.iter().map(|entry| entry.cost()).sum();
        Self { judge, read_at: Instant::now(), entries, first_offset, lost, bytes }
    }

    /// Whether it has the record at `offset` and one after it, judged as this business judges. `end`: or has ended there a
    /// moment ago.
    fn serves(&self, business: &Arc<Business>, offset: u64, end: bool) -> bool {
        let is_last = |last: u64| last == offset && end && self.read_at.elapsed() < END_TIME;
        (Arc::ptr_eq(&self.judge, business) || self.judge.judges_as(business))
            && self.read_at.elapsed() < CACHE_TIME
            && self.entries.first().is_some_and(|first| first.position.offset <= offset)
            && self.entries.last().is_some_and(|last| last.position.offset > offset || is_last(last.position.offset))
    }
}

impl Drop for CachedPage {
    fn drop(&mut self) {
        // From now on only the clients that are being sent them keep them.
        for entry in &self.entries {
            entry.keep(false);
        }
    }
}

impl PageCache {
    /// At most `readers` pages are read at the same time, beside those of silent streams. `gauge`: bytes of cached ones.
    pub fn new(readers: usize, gauge: Gauge) -> Self {
        let cache = Mutex::new(Cache { gauge, ..Cache::default() });
        Self { readers: Semaphore::new(readers.max(1)), silent: Semaphore::new(SILENT_READERS), cache }
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the pages of a business.
    pub fn forget(&self, business: &str) {
        self.lock().retain(|page| page.judge.name() != business);
    }

    /// A page that has the record at `offset` and one after it, judged as this business judges. `end`: or has ended there a
    /// moment ago.
    pub(super) fn find(&self, business: &Arc<Business>, offset: u64, end: bool) -> Option<Arc<CachedPage>> {
        self.lock().pages.iter().find(|page| page.serves(business, offset, end)).cloned()
    }

    /// Keeps a page for other clients.
    pub(super) fn keep(&self, page: Arc<CachedPage>) {
        self.lock().keep(page);
    }

    /// The right to read one page from the broker; waits in turn. A stream that was silent the last time waits for others
    /// like it only.
    pub(super) async fn reader(&self, silent: bool) -> SemaphorePermit<'_> {
        let readers = if silent { &self.silent } else { &self.readers };
        #[expect(clippy::expect_used)]
        readers.acquire().await.expect("this semaphore is never closed")
    }

    /// Drops pages that are too old.
    pub(super) fn sweep(&self) {
        self.lock().retain(|page| page.read_at.elapsed() < CACHE_TIME);
    }
}

impl Cache {
    fn retain(&mut self, keep: impl Fn(&CachedPage) -> bool) {
        self.pages.retain(|page| keep(page));
        self.bytes = self.pages.iter().map(|page| page.bytes).sum();
        self.gauge.set(self.bytes as i64);
    }

    fn keep(&mut self, page: Arc<CachedPage>) {
        self.retain(|old| old.read_at.elapsed() < CACHE_TIME);
        self.bytes += page.bytes;
        self.pages.push_back(page);
        while self.bytes > CACHE_BYTES
            && let Some(old) = self.pages.pop_front()
        {
            self.bytes -= old.bytes;
        }
        self.gauge.set(self.bytes as i64);
    }
}
