//! Bodies of messages calls in memory, those included that have been announced and not arrived.
//!
//! A business may hold as much as is free beside it: alone half of all, two a third each, and so on. So there is room for
//! one that comes, whatever the others do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::answer::Refusal;

/// Bytes of all bodies.
const MAX_BYTES: usize = 128 << 20;

/// See the module; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget(Arc<Mutex<Bodies>>);

#[derive(Debug, Default)]
struct Bodies {
    all: usize,
    by_business: HashMap<String, usize>,
}

/// The bytes of one body; returned when dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: Budget,
    business: String,
    bytes: usize,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The edge holds as much as it may.
    Edge,
    /// The business holds its part.
    Business,
}

impl Full {
    /// The answer.
    pub(super) fn refusal(self) -> Refusal {
        Refusal::overloaded(match self {
            Self::Edge => "this edge holds as many messages as it may, retry",
            Self::Business => "this edge holds as many messages of this business as it may, retry",
        })
    }
}

impl Budget {
    /// Room for a body of a business, which may hold `limit` bytes; a single body always fits that.
    pub(super) fn take(&self, business: &str, bytes: usize, limit: Option<usize>) -> Result<Held, Full> {
        let mut bodies = self.lock();
        let own = bodies.by_business.get(business).copied().unwrap_or_default();
        let free = MAX_BYTES.saturating_sub(bodies.all);
        if bytes > free {
            return Err(if own > free { Full::Business } else { Full::Edge });
        }
        if own > 0 && own + bytes > free.min(limit.unwrap_or(usize::MAX)) {
            return Err(Full::Business);
        }
        bodies.all += bytes;
        *bodies.by_business.entry(business.to_owned()).or_default() += bytes;
        Ok(Held { budget: self.clone(), business: business.to_owned(), bytes })
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut bodies = self.budget.lock();
        bodies.all -= self.bytes;
        if let Some(own) = bodies.by_business.get_mut(&self.business) {
            *own -= self.bytes;
            if *own == 0 {
                bodies.by_business.remove(&self.business);
            }
        }
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
        let budget = Budget::default();
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
        let budget = Budget::default();
        assert_eq!(fill(&budget, "shop", Some(3 << 20)).len(), 3);
        assert!(budget.take("shop", 8 << 20, Some(3 << 20)).is_ok());
    }
}
