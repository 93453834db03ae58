//! The edge-wide limit of connections.
//!
//! The last tenth of it is for businesses that have less than an equal part of all: a business that fills the rest keeps
//! no other one out.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// The part of all connections that is reserved: one in so many.
const RESERVED: usize = 10;

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All are in use.
    Edge,
    /// What is left is for other businesses.
    Share,
}

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

    /// Takes a permit for a business that has `own` connections already and is one of `businesses`.
    ///
    /// # Errors
    /// Why there is none for it.
    pub fn permit(&self, own: usize, businesses: usize) -> Result<ConnectionPermit, Full> {
        // Alone it may have everything.
        let equal = self.max / businesses.max(1);
        let max = if own < equal { self.max } else { self.max - self.max / RESERVED };
        let more = |taken| (taken < max).then_some(taken + 1);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|taken| if taken < self.max { Full::Share } else { Full::Edge })?;
        Ok(ConnectionPermit { number: self.next.fetch_add(1, Ordering::Relaxed), taken: Arc::clone(&self.taken) })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tenth_is_for_businesses_that_have_little() {
        let limit = ConnectionLimit::new(20);
        let mut large = Vec::new();
        while let Ok(permit) = limit.permit(large.len(), 4) {
            large.push(permit);
        }
        assert_eq!((large.len(), limit.permit(large.len(), 4).unwrap_err()), (18, Full::Share));
        let small: Vec<_> = (0..2).map(|own| limit.permit(own, 4).unwrap()).collect();
        assert_eq!(limit.permit(2, 4).unwrap_err(), Full::Edge);
        drop((large, small));
        let alone: Vec<_> = std::iter::successors(limit.permit(0, 1).ok(), |_| limit.permit(0, 1).ok()).collect();
        assert_eq!(alone.len(), 20);
    }
}
