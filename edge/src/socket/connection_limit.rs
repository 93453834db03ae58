//! The edge-wide limit of connections.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// Permits for connections; each has its own number.
#[derive(Debug)]
pub struct ConnectionLimit {
    taken: Arc<AtomicUsize>,
    max: usize,
    // 0 is the lane of the edge itself.
    next: AtomicU64,
}

/// The permit of one connection; returned when dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    /// The connection's number, unique in this process.
    pub number: u64,
    taken: Arc<AtomicUsize>,
}

impl ConnectionLimit {
    /// At most `max` connections.
    pub fn new(max: usize) -> Self {
        Self { taken: Arc::default(), max, next: AtomicU64::new(1) }
    }

    /// Takes a permit; `None` if all are in use.
    pub fn permit(&self) -> Option<ConnectionPermit> {
        let more = |taken| (taken < self.max).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(ConnectionPermit { number: self.next.fetch_add(1, Ordering::Relaxed), taken: Arc::clone(&self.taken) })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}
