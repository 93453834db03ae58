//! Tickets that were used at this edge, until they would have expired. A ticket is good once; another edge knows
//! nothing of it, so within its lifetime it may be good once at each.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

/// Tickets in memory at most for each [`LIFETIME`] that one lives, 12 MB: more than an edge admits in that time.
const MAX_KEPT: usize = 262_144;
/// Of a ticket, unless the settings say otherwise.
const LIFETIME: Duration = Duration::from_secs(30);
/// The bound grows with the lifetime up to this, which is 120 MB.
const MOST_LIFETIMES: u64 = 10;
/// Expired ones are removed when as many as this are kept, and again when their number has doubled.
const FIRST_SWEEP: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct UsedTickets {
    used: Mutex<Used>,
    most: usize,
    forgotten: Counter,
}

#[derive(Debug)]
struct Used {
    /// Id → expiry, ms since the epoch.
    ids: HashMap<[u8; 16], i64>,
    sweep_at: usize,
}

impl UsedTickets {
    /// None yet, of tickets that live so long. `forgotten` counts those that the bound made it forget.
    pub fn new(lifetime: Duration, forgotten: Counter) -> Self {
        let used = Mutex::new(Used { ids: HashMap::new(), sweep_at: FIRST_SWEEP });
        let lifetimes = lifetime.as_secs().div_ceil(LIFETIME.as_secs()).clamp(1, MOST_LIFETIMES);
        Self { used, most: MAX_KEPT * lifetimes as usize, forgotten }
    }

    /// Whether it was used.
    pub fn contains(&self, id: &[u8; 16]) -> bool {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).ids.contains_key(id)
    }

    /// Uses it; false: it was used before.
    pub fn insert(&self, id: [u8; 16], expires_at: i64, now: i64) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.ids.len() >= used.sweep_at.min(self.most) {
            used.ids.retain(|_, until| *until > now);
            if used.ids.len() >= self.most {
                // Those that end first: they are good for the shortest time.
                let half = used.ids.len() / 2;
                let mut ends: Vec<i64> = used.ids.values().copied().collect();
                let middle = *ends.select_nth_unstable(half).1;
                let before = used.ids.len();
                used.ids.retain(|_, until| *until > middle);
                self.forgotten.inc_by((before - used.ids.len()) as u64);
            }
            used.sweep_at = (used.ids.len() * 2).max(FIRST_SWEEP);
        }
        used.ids.insert(id, expires_at).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_memory_is_bounded() {
        let used = UsedTickets { most: 100, ..UsedTickets::new(LIFETIME, Counter::default()) };
        let id = |n: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            id
        };
        for n in 0..1000 {
            let now = i64::from(n);
            assert!(!used.contains(&id(n)) && used.insert(id(n), now + 50, now));
            assert!(used.contains(&id(n)) && !used.insert(id(n), now + 50, now));
        }
        assert!(used.used.lock().unwrap().ids.len() <= 100);
        assert_eq!(used.forgotten.get(), 0, "what is removed was over");
        for n in 1000..2000 {
            assert!(used.insert(id(n), i64::from(10_000 + n), 0));
        }
        assert!(used.used.lock().unwrap().ids.len() <= 100 && used.forgotten.get() > 0);
        assert!(used.contains(&id(1999)));
    }

    #[test]
    fn tickets_that_live_longer_are_remembered_longer() {
        let most = |seconds| UsedTickets::new(Duration::from_secs(seconds), Counter::default()).most;
        assert_eq!([1, 30, 31, 300, 3_600].map(most), [1, 1, 2, 10, 10].map(|times| times * MAX_KEPT));
    }
}
