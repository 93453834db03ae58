//! Bytes on their way to all sockets. A push is counted once, no matter how many sockets it goes to.
//!
//! A push counts while only sockets keep it: a business's log and the page cache have bounds of their own. Control
//! frames count one by one. *At the limit*, of all or of one business, sockets whose peers are not reading are closed with
//! 4008 until an eighth of the budget is free: first of the business that has most, its largest queue first. Their
//! clients resume by cursor, on this edge or another.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::time::Instant;

use crate::metrics::{Metrics, label};

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

/// A queue, the bytes that are being written beside it, and whose it is.
type Stalling = (Arc<dyn Queue>, usize, Arc<Backlog>);

/// The budget of a process.
#[derive(Debug)]
pub struct BacklogBudget {
    max: i64,
    bytes: Gauge,
    closes: Counter,
    limited: Counter,
    /// Queues whose peer is not reading, by connection number.
    stalled: Mutex<HashMap<u64, Stalling>>,
    begun: Instant,
    /// Ms since `begun` from which on a control frame may shed again.
    next_look: AtomicU64,
}

/// The part of one business.
#[derive(Debug)]
pub struct Backlog {
    budget: Arc<BacklogBudget>,
    bytes: AtomicI64,
    max: AtomicI64,
}

impl BacklogBudget {
    /// A budget of `max` bytes.
    pub fn new(max: usize, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            max: i64::try_from(max).unwrap_or(i64::MAX),
            bytes: metrics.backlog_bytes.clone(),
            closes: metrics.backlog_closes.clone(),
            limited: metrics.business_limited.get_or_create_owned(&label("memory")),
            stalled: Mutex::default(),
            begun: Instant::now(),
            next_look: AtomicU64::new(0),
        })
    }

    /// The part of one business, yet without a limit of its own.
    pub fn of_business(self: &Arc<Self>) -> Arc<Backlog> {
        Arc::new(Backlog { budget: Arc::clone(self), bytes: AtomicI64::new(0), max: AtomicI64::new(i64::MAX) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Stalling>> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes stalled queues until so many bytes are free: of `only` one business, or first of the one that has most; its
    /// largest first.
    fn close(&self, mut wanted: i64, only: Option<&Backlog>) {
        let mut stalled: Vec<_> = {
            let stalled = self.lock();
            let of = |of: &Arc<Backlog>| only.is_none_or(|only| std::ptr::eq(only, Arc::as_ptr(of)));
            let held = |(queue, writing, business): &Stalling| {
                let business = of(business).then(|| business.bytes.load(Ordering::Relaxed))?;
                Some((business, queue.held()? + writing, Arc::clone(queue)))
            };
            stalled.values().filter_map(held).collect()
        };
        stalled.sort_unstable_by_key(|(business, bytes, _)| std::cmp::Reverse((*business, *bytes)));
        for (_, bytes, queue) in stalled {
            if wanted <= 0 {
                break;
            }
            wanted -= bytes as i64;
            self.closes.inc();
            queue.give_up();
        }
    }
}

impl Backlog {
    /// The only business of a budget of `max` bytes.
    pub fn new(max: usize, metrics: &Metrics) -> Arc<Self> {
        BacklogBudget::new(max, metrics).of_business()
    }

    /// Limits it to so many bytes of its own.
    pub fn limit(&self, bytes: Option<usize>) {
        self.max.store(bytes.map_or(i64::MAX, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)), Ordering::Relaxed);
    }

    /// These bytes are on their way.
    pub fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as i64, Ordering::Relaxed);
        self.budget.bytes.inc_by(bytes as i64);
    }

    /// These bytes are written or dropped.
    pub fn sub(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes as i64, Ordering::Relaxed);
        self.budget.bytes.dec_by(bytes as i64);
    }

    /// Marks the peer of `queue` as not reading for the lifetime of the guard, with `writing` bytes in the socket
    /// beside the queue.
    pub fn stalls(self: &Arc<Self>, queue: Arc<dyn Queue>, writing: usize) -> Stalled {
        let number = queue.number();
        self.budget.lock().insert(number, (queue, writing, Arc::clone(self)));
        self.shed();
        Stalled { number, budget: Arc::clone(&self.budget) }
    }

    /// Bytes beyond the limit of the business, and beyond the budget of all.
    fn over(&self) -> (i64, i64) {
        let own = self.bytes.load(Ordering::Relaxed).saturating_sub(self.max.load(Ordering::Relaxed));
        (own, self.budget.bytes.get() - self.budget.max)
    }

    /// [`Self::shed`] for callers that add little and often: once in [`PAUSE`] for all of them.
    pub fn shed_at_times(&self) {
        if matches!(self.over(), (..=0, ..=0)) {
            return;
        }
        let now = self.budget.begun.elapsed().as_millis() as u64;
        let look = |next: u64| (next <= now).then_some(now + PAUSE.as_millis() as u64);
        if self.budget.next_look.fetch_update(Ordering::Relaxed, Ordering::Relaxed, look).is_ok() {
            self.shed();
        }
    }

    /// Closes stalled queues while a budget is exceeded. The caller must not hold a queue's lock.
    pub fn shed(&self) {
        if let (own @ 1.., _) = self.over() {
            self.budget.limited.inc();
            self.budget.close(own + self.max.load(Ordering::Relaxed) / 8, Some(self));
        }
        if let (_, all @ 1..) = self.over() {
            self.budget.close(all + self.budget.max / 8, None);
        }
    }
}

/// Marks a connection whose peer is not reading, until it is dropped.
#[derive(Debug)]
pub struct Stalled {
    number: u64,
    budget: Arc<BacklogBudget>,
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.budget.lock().remove(&self.number);
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
