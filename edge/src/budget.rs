//! Bytes that an edge holds for its businesses. A business may hold as much as is free beside it: alone half of all, two a
//! third each, and so on. So there is room for one that comes, whatever the others do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::gauge::Gauge;

/// See the module; cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: usize,
    used: Arc<Mutex<Used>>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    by_business: HashMap<Arc<str>, usize>,
}

/// Some of the bytes; returned when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    business: Arc<str>,
    bytes: usize,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The edge holds as much as it may.
    Edge,
    /// The business holds its part.
    Business,
}

impl Budget {
    /// So many bytes; `gauge` shows those in use.
    pub fn new(bytes: usize, gauge: Gauge) -> Self {
        Self { bytes, used: Arc::default(), gauge }
    }

    /// Room for something of a business, which may hold `limit` bytes; a single thing always fits that.
    ///
    /// # Errors
    /// See [`Full`].
    pub fn take(&self, business: &str, bytes: usize, limit: Option<usize>) -> Result<Held, Full> {
        let mut used = self.lock();
        let own = used.by_business.get(business).copied().unwrap_or_default();
        let free = self.bytes.saturating_sub(used.all);
        if bytes > free {
            return Err(if own > free { Full::Business } else { Full::Edge });
        }
        if own > 0 && own + bytes > free.min(limit.unwrap_or(usize::MAX)) {
            return Err(Full::Business);
        }
        used.all += bytes;
        let business: Arc<str> =
            used.by_business.get_key_value(business).map_or_else(|| business.into(), |(key, _)| Arc::clone(key));
        *used.by_business.entry(Arc::clone(&business)).or_default() += bytes;
        self.show(&used);
        Ok(Held { budget: self.clone(), business, bytes })
    }

    fn show(&self, used: &Used) {
        self.gauge.set(i64::try_from(used.all).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        used.all -= self.bytes;
        if let Some(own) = used.by_business.get_mut(&self.business) {
            *own -= self.bytes;
            if *own == 0 {
                used.by_business.remove(&self.business);
            }
        }
        self.budget.show(&used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(budget: &Budget, business: &str, limit: Option<usize>) -> Vec<Held> {
        std::iter::from_fn(|| budget.take(business, 1 << 20, limit).ok()).collect()
    }

    #[test]
    fn one_business_leaves_room_for_the_next() {
        let budget = Budget::new(128 << 20, Gauge::default());
        let shop = fill(&budget, "shop", None);
        assert_eq!(shop.len(), 64);
        assert_eq!(budget.take("shop", 1 << 20, None).unwrap_err(), Full::Business);
        let other = fill(&budget, "other", None);
        assert_eq!(other.len(), 32);
        assert!(budget.take("third", 8 << 20, None).is_ok());
        drop((shop, other));
        assert!(budget.lock().by_business.is_empty() && budget.lock().all == 0);
    }

    #[test]
    fn a_declared_limit_holds_and_one_body_always_fits_it() {
        let budget = Budget::new(128 << 20, Gauge::default());
        assert_eq!(fill(&budget, "shop", Some(3 << 20)).len(), 3);
        assert!(budget.take("shop", 8 << 20, Some(3 << 20)).is_ok());
    }
}
