//! Bytes on their way to all sockets. A push is counted once, no matter how many sockets it goes to.
//!
//! A push counts while only sockets keep it: a business's log and the page cache have bounds of their own. Control
//! frames count one by one. *At the limit*: sockets whose peers are not reading are closed with 4008, the largest queue
//! first, until an eighth of the budget is free. Their clients resume by cursor, on this edge or another.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Control frames trigger shedding at most this often: it walks through all stalled sockets.
const PAUSE: Duration = Duration::from_millis(50);

/// The queue of one peer.
pub trait Queue: fmt::Debug + Send + Sync {
    /// The connection's number, unique in this process.
    fn number(&self) -> u64;

    /// Bytes in it; `None`: it is closing.
    fn held(&self) -> Option<usize>;

    /// Closes the connection with 4008 and drops the queue.
    fn give_up(&self);
}

/// A queue, and the bytes that are being written beside it.
type Stalling = (Arc<dyn Queue>, usize);

/// The budget of a process.
#[derive(Debug)]
pub struct Backlog {
    max: i64,
    bytes: Gauge,
    closes: Counter,
    /// Queues whose peer is not reading, by connection number.
    stalled: Mutex<HashMap<u64, Stalling>>,
    begun: Instant,
    /// Ms since `begun` from which on a control frame may shed again.
    next_look: AtomicU64,
}

impl Backlog {
    /// A budget of `max` bytes.
    pub fn new(max: usize, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            max: i64::try_from(max).unwrap_or(i64::MAX),
            bytes: metrics.backlog_bytes.clone(),
            closes: metrics.backlog_closes.clone(),
            stalled: Mutex::default(),
            begun: Instant::now(),
            next_look: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Stalling>> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These bytes are on their way.
    pub fn add(&self, bytes: usize) {
        self.bytes.inc_by(bytes as i64);
    }

    /// These bytes are written or dropped.
    pub fn sub(&self, bytes: usize) {
        self.bytes.dec_by(bytes as i64);
    }

    /// Marks the peer of `queue` as not reading for the lifetime of the guard, with `writing` bytes in the socket
    /// beside the queue.
    pub fn stalls(self: &Arc<Self>, queue: Arc<dyn Queue>, writing: usize) -> Stalled {
        let number = queue.number();
        self.lock().insert(number, (queue, writing));
        self.shed();
        Stalled { number, backlog: Arc::clone(self) }
    }

    /// [`Self::shed`] for callers that add little and often: once in [`PAUSE`] for all of them.
    pub fn shed_at_times(&self) {
        if self.bytes.get() <= self.max {
            return;
        }
        let now = self.begun.elapsed().as_millis() as u64;
        let look = |next: u64| (next <= now).then_some(now + PAUSE.as_millis() as u64);
        if self.next_look.fetch_update(Ordering::Relaxed, Ordering::Relaxed, look).is_ok() {
            self.shed();
        }
    }

    /// Closes the largest stalled queues while the budget is exceeded. The caller must not hold a queue's lock.
    pub fn shed(&self) {
        let over = self.bytes.get() - self.max;
        if over <= 0 {
            return;
        }
        let mut stalled: Vec<_> = {
            let stalled = self.lock();
            let held = |(queue, writing): &Stalling| Some((queue.held()? + writing, Arc::clone(queue)));
            stalled.values().filter_map(held).collect()
        };
        stalled.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut wanted = over + self.max / 8;
        for (bytes, queue) in stalled {
            if wanted <= 0 {
                break;
            }
            wanted -= bytes as i64;
            self.closes.inc();
            queue.give_up();
        }
    }
}

/// Marks a connection whose peer is not reading, until it is dropped.
#[derive(Debug)]
pub struct Stalled {
    number: u64,
    backlog: Arc<Backlog>,
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.backlog.lock().remove(&self.number);
    }
}

/// The bytes of one push, counted for its lifetime.
#[derive(Debug)]
pub struct BacklogShare {
    bytes: usize,
    /// Whether a log or cache keeps it.
    kept: AtomicBool,
    backlog: Arc<Backlog>,
}

impl BacklogShare {
    /// Counts a push that is on its way.
    pub fn new(bytes: usize, backlog: &Arc<Backlog>) -> Self {
        backlog.add(bytes);
        Self { bytes, kept: AtomicBool::new(false), backlog: Arc::clone(backlog) }
    }

    /// Its size has changed.
    pub fn resize(&mut self, bytes: usize) {
        if !*self.kept.get_mut() {
            self.backlog.add(bytes);
            self.backlog.sub(self.bytes);
        }
        self.bytes = bytes;
    }

    /// Sets whether a log or cache (only one of them) keeps it from now on.
    pub fn keep(&self, kept: bool) {
        match (self.kept.swap(kept, Ordering::Relaxed), kept) {
            (false, true) => self.backlog.sub(self.bytes),
            (true, false) => self.backlog.add(self.bytes),
            _ => {}
        }
    }
}

impl Drop for BacklogShare {
    fn drop(&mut self) {
        if !*self.kept.get_mut() {
            self.backlog.sub(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests;
