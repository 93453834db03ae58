//! The recent part of a business's stream in memory.
//!
//! Keeps entries in stream order. The first one is a *known* position: everything after it is here. Empty means that
//! the reader is not attached and nothing is known. All businesses share one budget of bytes ([`LogBudget`]); a log
//! that exceeds it drops its own oldest entries, except the last one, which stays as the known position.
//!
//! *Fairness*: first come, first served, but each log has a floor that the others leave to it, so that a quiet business
//! that filled the budget can't starve others. *Bound*: the budget, and one floor more for each log that started after
//! another one had filled it, until that one grows.

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

/// Bytes that each log may use regardless of the others; with many logs, an equal part of the budget.
const FLOOR: usize = 256 << 10;

/// Bytes of all logs together.
#[derive(Debug)]
pub struct LogBudget {
    used: AtomicUsize,
    /// Logs that are not empty.
    logs: AtomicUsize,
    max: usize,
    gauge: Gauge,
}

impl LogBudget {
    /// A budget of `max` bytes, shown by `gauge`.
    pub fn new(max: usize, gauge: Gauge) -> Self {
        Self { used: AtomicUsize::new(0), logs: AtomicUsize::new(0), max, gauge }
    }

    fn add(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.gauge.set(used as i64);
    }

    fn sub(&self, bytes: usize) {
        let used = self.used.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        self.gauge.set(used as i64);
    }

    /// Whether a log of this size must drop entries: it is above its floor, and the total is above what the others'
    /// floors leave.
    fn exceeded_by(&self, bytes: usize) -> bool {
        let logs = self.logs.load(Ordering::Relaxed).max(1);
        let floor = FLOOR.min(self.max / logs);
        bytes > floor && self.used.load(Ordering::Relaxed) > self.max - floor * (logs - 1)
    }
}

/// The log of one business.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    budget: Arc<LogBudget>,
    /// The reader has lost its connection behind the last entry: the stream may have ended there.
    interrupted: bool,
}

/// What the log knows about a position.
#[derive(Debug)]
pub enum Lookup {
    /// Nothing is known: the reader is not attached.
    Unattached,
    /// It is here; entries after it start at this index.
    Found(usize),
    /// Before the first entry.
    Older,
    /// After the last entry.
    Newer,
    /// The log covers the offset, and has another message there, or none.
    OtherStream,
}

impl Log {
    /// An unattached log.
    pub fn new(budget: Arc<LogBudget>) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, budget, interrupted: false }
    }

    /// Drops all entries. What is read next is read by a reader that is there, whether it attaches or has met a gap inside
    /// its subscription.
    pub fn clear(&mut self) {
        self.interrupted = false;
        self.drop_all();
    }

    fn drop_all(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        for entry in self.entries.drain(..) {
            entry.keep(false);
        }
        self.sub(self.bytes);
        self.budget.logs.fetch_sub(1, Ordering::Relaxed);
    }

    /// Appends the next entry and drops old ones beyond the budget.
    pub fn append(&mut self, entry: Arc<Entry>) {
        if self.entries.is_empty() {
            self.budget.logs.fetch_add(1, Ordering::Relaxed);
        }
        self.add(entry.cost());
        entry.keep(true);
        self.entries.push_back(entry);
        while self.budget.exceeded_by(self.bytes) && self.forget_oldest() {}
        // Other businesses use the whole budget: keep the position, not the message. Clients that need it read the
        // stream.
        if self.budget.exceeded_by(self.bytes)
            && let Some(last) = self.entries.pop_back()
        {
            let mark = Arc::new(Entry::mark(last.position));
            last.keep(false);
            self.sub(last.cost());
            self.add(mark.cost());
            self.entries.push_back(mark);
        }
    }

    /// Drops all entries, and keeps the newest position: from now on the log begins behind it.
    pub fn keep_position(&mut self) {
        if let Some(position) = self.position() {
            self.drop_all();
            self.append(Arc::new(Entry::mark(position)));
        }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.budget.add(bytes);
    }

    fn sub(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.sub(bytes);
    }

    /// Drops the oldest entry; the last one stays.
    pub fn forget_oldest(&mut self) -> bool {
        if self.entries.len() < 2 {
            return false;
        }
        if let Some(entry) = self.entries.pop_front() {
            entry.keep(false);
            self.sub(entry.cost());
        }
        true
    }

    /// The newest position.
    pub fn position(&self) -> Option<Position> {
        self.entries.back().map(|entry| entry.position)
    }

    /// The newest position, if the reader is there. While it is interrupted, the stream may have been replaced, or may have
    /// gone on far beyond that position.
    pub fn end_of_reading(&self) -> Option<Position> {
        self.position().filter(|_| !self.interrupted)
    }

    /// The reader has lost its connection.
    pub fn interrupted(&mut self) {
        self.interrupted = true;
    }

    /// The reader goes on behind the last entry.
    pub fn goes_on(&mut self) {
        self.interrupted = false;
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
            Ok(_) | Err(_) => Lookup::OtherStream,
        }
    }

    /// Entries from an index that [`Log::lookup`] gave.
    pub fn since(&self, index: usize) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.range(index..)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.drop_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::push::backlog::{Backlog, BacklogShare};
    use crate::push::{
        audience::{Audience, Recipients},
        entry::Push,
    };

    fn at(offset: u64) -> Position {
        Position { offset, fingerprint: offset }
    }

    /// Appends messages of 1 KiB with these offsets.
    fn fill(log: &mut Log, offsets: std::ops::Range<u64>) {
        for offset in offsets {
            let push = Push {
                audience: Audience { recipients: Recipients::Everyone, client_types: vec!["app".into()] },
                frame: "x".repeat(1024).into(),
                compressed: None,
                expires_at: None,
                judge: None,
                receipt: None,
                share: BacklogShare::new(1024, &Backlog::new(0, &Metrics::default())),
            };
            log.append(Arc::new(Entry { position: at(offset), push: Some(push) }));
        }
    }

    fn used(budget: &LogBudget) -> usize {
        budget.used.load(Ordering::Relaxed)
    }

    #[test]
    fn a_quiet_log_that_filled_the_budget_leaves_the_others_their_floor() {
        let budget = Arc::new(LogBudget::new(1 << 20, Gauge::default()));
        let (mut quiet, mut other) = (Log::new(Arc::clone(&budget)), Log::new(Arc::clone(&budget)));
        fill(&mut quiet, 0..2000);
        assert!(quiet.bytes > (1 << 20) - 2048, "alone it may have everything");
        fill(&mut other, 0..100);
        assert!(matches!(other.lookup(at(0)), Lookup::Found(1)), "{:?}", other.lookup(at(0)));
        fill(&mut other, 100..2000);
        assert!((FLOOR - 2048..=FLOOR).contains(&other.bytes), "{}", other.bytes);
        assert!(used(&budget) <= (1 << 20) + FLOOR);
        fill(&mut quiet, 2000..2001);
        assert!(used(&budget) <= 1 << 20, "once it grows it drops entries");
        drop(quiet);
        fill(&mut other, 2000..4000);
        assert!(other.bytes > (1 << 20) - 2048, "what others leave is for the remaining logs");
        drop(other);
        assert_eq!((used(&budget), budget.logs.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn many_logs_get_equal_shares() {
        let budget = Arc::new(LogBudget::new(1 << 20, Gauge::default()));
        let mut logs: Vec<_> = (0..16).map(|_| Log::new(Arc::clone(&budget))).collect();
        for offsets in [0..2000, 2000..2001] {
            for log in &mut logs {
                fill(log, offsets.clone());
            }
        }
        let share = (1 << 20) / 16;
        assert!(logs.iter().all(|log| (share - 2048..=share).contains(&log.bytes)));
    }

    #[test]
    fn the_end_of_reading_is_known_while_the_reader_is_there() {
        let mut log = Log::new(Arc::new(LogBudget::new(1 << 20, Gauge::default())));
        assert_eq!(log.end_of_reading(), None);
        fill(&mut log, 0..3);
        assert_eq!(log.end_of_reading(), Some(at(2)));
        log.interrupted();
        log.keep_position();
        assert_eq!(
            (log.end_of_reading(), log.position()),
            (None, Some(at(2))),
            "a changed declaration tells nothing of it"
        );
        log.goes_on();
        assert_eq!(log.end_of_reading(), Some(at(2)));
    }

    #[test]
    fn what_is_read_behind_a_gap_is_the_end_of_reading() {
        for interrupted in [false, true] {
            let mut log = Log::new(Arc::new(LogBudget::new(1 << 20, Gauge::default())));
            fill(&mut log, 0..3);
            if interrupted {
                log.interrupted();
            }
            log.clear();
            assert_eq!(log.end_of_reading(), None, "nothing is known");
            fill(&mut log, 20..21);
            assert_eq!(log.end_of_reading(), Some(at(20)));
        }
    }

    #[test]
    fn without_any_budget_the_position_is_still_known() {
        let budget = Arc::new(LogBudget::new(0, Gauge::default()));
        let mut log = Log::new(Arc::clone(&budget));
        fill(&mut log, 0..3);
        assert_eq!(log.position(), Some(at(2)));
        assert_eq!(used(&budget), Entry::mark(at(2)).cost());
    }
}
