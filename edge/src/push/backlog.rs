//! Bytes on their way to all sockets together, each push counted once, to however many sockets it goes.
//!
//! A push counts while nothing but sockets holds it: what a business's log or the cache of pieces holds is bounded there. Control frames count
//! for themselves. *At the limit*: sockets whose peers take nothing at the moment are closed with 4008, who holds most first, until an eighth of
//! the budget is free. Their clients resume by cursor, on this edge or another.

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

/// Control frames look for sockets to close at most this often: a look goes through all that stall.
const PAUSE: Duration = Duration::from_millis(50);

/// What waits for one peer.
pub trait Queue: fmt::Debug + Send + Sync {
    /// The connection's number, unique in this process.
    fn number(&self) -> u64;

    /// Bytes that it holds; `None`: it is closing.
    fn held(&self) -> Option<usize>;

    /// Closes the connection with 4008 and drops what it holds.
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
    /// Queues whose peer takes nothing at the moment, by number.
    stalled: Mutex<HashMap<u64, Stalling>>,
    begun: Instant,
    /// Ms since `begun` from which on a control frame looks again.
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

    /// So many bytes more are on their way.
    pub fn add(&self, bytes: usize) {
        self.bytes.inc_by(bytes as i64);
    }

    /// So many bytes less.
    pub fn sub(&self, bytes: usize) {
        self.bytes.dec_by(bytes as i64);
    }

    /// The peer of `queue` takes nothing for as long as what is returned lives, while `writing` bytes beside those of the queue wait for it.
    pub fn stalls(self: &Arc<Self>, queue: Arc<dyn Queue>, writing: usize) -> Stalled {
        let number = queue.number();
        self.lock().insert(number, (queue, writing));
        self.shed();
        Stalled { number, backlog: Arc::clone(self) }
    }

    /// [`Self::shed`] for whoever adds little and often: once in [`PAUSE`] for all of them.
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

    /// Closes who holds most, where the budget is exceeded. For whoever added to it and holds no queue's lock.
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

/// A connection whose peer takes nothing.
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

/// The bytes of one push, for as long as it lives.
#[derive(Debug)]
pub struct BacklogShare {
    bytes: usize,
    /// Whether a log or cache holds it.
    kept: AtomicBool,
    backlog: Arc<Backlog>,
}

impl BacklogShare {
    /// It is on its way.
    pub fn new(bytes: usize, backlog: &Arc<Backlog>) -> Self {
        backlog.add(bytes);
        Self { bytes, kept: AtomicBool::new(false), backlog: Arc::clone(backlog) }
    }

    /// Whether a log or cache, and only one of them, holds it from now on.
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
