//! The recent part of a business's stream in memory.
//!
//! Holds entries in stream order. The first one is a position that is *known*: everything behind it is here. Empty means that the reader is
//! not attached and nothing is known. All businesses share one budget of bytes ([`LogBudget`]); a log that exceeds it forgets its own oldest
//! entries, down to the last one, which stays as the known position.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use prometheus_client::metrics::gauge::Gauge;

use super::entry::Entry;
use crate::broker::Position;

/// Bytes of all logs together.
#[derive(Debug)]
pub struct LogBudget {
    used: AtomicUsize,
    max: usize,
    gauge: Gauge,
}

impl LogBudget {
    /// A budget of `max` bytes, shown by `gauge`.
    pub fn new(max: usize, gauge: Gauge) -> Self {
        Self { used: AtomicUsize::new(0), max, gauge }
    }

    fn add(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.gauge.set(used as i64);
    }

    fn sub(&self, bytes: usize) {
        let used = self.used.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        self.gauge.set(used as i64);
    }

    fn exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.max
    }
}

/// The log of one business.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Arc<Entry>>,
    budget: Arc<LogBudget>,
}

/// What the log knows of a position.
#[derive(Debug)]
pub enum Lookup {
    /// Nothing is known: the reader is not attached.
    Unattached,
    /// It is here; entries behind it begin at this index.
    Found(usize),
    /// Older than what is here.
    Older,
    /// Newer than what is here.
    Newer,
    /// The log covers the offset and knows another message, or none, there.
    Foreign,
}

impl Log {
    /// An unattached log.
    pub fn new(budget: Arc<LogBudget>) -> Self {
        Self { entries: VecDeque::new(), budget }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let bytes = self.entries.drain(..).map(|entry| entry.cost()).sum();
        self.budget.sub(bytes);
    }

    /// Appends the next entry and forgets old ones beyond the budget.
    pub fn append(&mut self, entry: Arc<Entry>) {
        self.budget.add(entry.cost());
        self.entries.push_back(entry);
        while self.budget.exceeded() && self.forget_oldest() {}
        // Other businesses fill the budget: keep the position, not the message. Who needs it reads the stream.
        if self.budget.exceeded()
            && let Some(last) = self.entries.back_mut()
            && last.push.is_some()
        {
            let mark = Arc::new(Entry::mark(last.position));
            self.budget.sub(last.cost());
            self.budget.add(mark.cost());
            *last = mark;
        }
    }

    /// Forgets the oldest entry; the last one stays.
    pub fn forget_oldest(&mut self) -> bool {
        if self.entries.len() < 2 {
            return false;
        }
        if let Some(entry) = self.entries.pop_front() {
            self.budget.sub(entry.cost());
        }
        true
    }

    /// The newest position.
    pub fn position(&self) -> Option<Position> {
        self.entries.back().map(|entry| entry.position)
    }

    /// Looks for a client's position.
    pub fn lookup(&self, at: Position) -> Lookup {
        let (Some(first), Some(last)) = (self.entries.front(), self.entries.back()) else { return Lookup::Unattached };
        if at.offset < first.position.offset {
            return Lookup::Older;
        }
        if at.offset > last.position.offset {
            return Lookup::Newer;
        }
        match self.entries.binary_search_by_key(&at.offset, |entry| entry.position.offset) {
            Ok(index) if self.entries[index].position == at => Lookup::Found(index + 1),
            Ok(_) | Err(_) => Lookup::Foreign,
        }
    }

    /// Entries from an index that [`Log::lookup`] gave.
    pub fn since(&self, index: usize) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.range(index..)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.clear();
    }
}
