//! Tickets that were used at this edge, until they would have expired. A ticket is good once; another edge knows
//! nothing of it, so within its lifetime it may be good once at each.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::expiring::{Entry, Expiring};

/// Tickets in memory at most for each [`LIFETIME`] that one lives, 12 MB: more than an edge admits in that time.
const MAX_KEPT: usize = 262_144;
/// Of a ticket, unless the settings say otherwise.
const LIFETIME: Duration = Duration::from_secs(30);
/// The bound grows with the lifetime up to this, which is 120 MB.
const MOST_LIFETIMES: u64 = 10;

/// See the module.
#[derive(Debug)]
pub struct UsedTickets(Expiring<[u8; 16], ()>);

impl UsedTickets {
    /// None yet, of tickets that live so long. `forgotten` counts those that the bound made it forget.
    pub fn new(lifetime: Duration, forgotten: &Counter) -> Self {
        let lifetimes = lifetime.as_secs().div_ceil(LIFETIME.as_secs()).clamp(1, MOST_LIFETIMES);
        Self::at_most(MAX_KEPT * lifetimes as usize, forgotten)
    }

    fn at_most(most: usize, forgotten: &Counter) -> Self {
        Self(Expiring::new(most, forgotten))
    }

    /// Whether it was used.
    pub fn contains(&self, business: &str, id: &[u8; 16]) -> bool {
        self.0.read(business, id, id[0].into(), |()| ()).is_some()
    }

    /// Uses it; false: it was used before.
    pub fn insert(&self, business: &str, id: [u8; 16], until: i64, now: i64) -> bool {
        self.0.add(business, id, id[0].into(), Entry { value: (), until }, now, |_, _| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_memory_is_bounded() {
        let forgotten = Counter::default();
        let used = UsedTickets::at_most(1_600, &forgotten);
        let id = |n: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_le_bytes());
            id
        };
        for n in 0..10_000 {
            let now = i64::from(n);
            assert!(!used.contains("pay", &id(n)) && used.insert("pay", id(n), now + 50, now));
            assert!(used.contains("pay", &id(n)) && !used.insert("pay", id(n), now + 50, now));
        }
        assert!(used.0.len() <= 1_600);
        assert_eq!(forgotten.get(), 0, "what is removed was over");
        for n in 10_000..20_000 {
            assert!(used.insert("pay", id(n), i64::from(20_000 + n), 0));
        }
        assert!(used.0.len() <= 1_600 && forgotten.get() > 0);
        assert!(used.contains("pay", &id(19_999)));
    }

    #[test]
    fn tickets_that_live_longer_are_remembered_longer() {
        let most = |seconds| UsedTickets::new(Duration::from_secs(seconds), &Counter::default()).0.most();
        assert_eq!([1, 30, 31, 300, 3_600].map(most), [1, 1, 2, 10, 10].map(|times| times * MAX_KEPT));
    }
}
