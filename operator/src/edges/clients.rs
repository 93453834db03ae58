//! How many clients each business has, as its status says it: about, and seldom, since each change is a write for the API
//! server.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::Edges;

/// The first count, once edges have been asked.
const FIRST: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Clients {
    /// Business → what was reported last.
    reported: Mutex<HashMap<String, i64>>,
    every: Duration,
}

impl Clients {
    pub(super) fn new(every: Duration) -> Self {
        Self { reported: Mutex::default(), every }
    }

    fn reported(&self) -> MutexGuard<'_, HashMap<String, i64>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How old an edge's number may be.
    pub(super) fn heard_within(&self) -> Duration {
        self.every / 2
    }

    /// When to count.
    pub(super) fn ticks(&self) -> Interval {
        let mut ticks = interval_at(Instant::now() + FIRST.min(self.every), self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }
}

impl Edges {
    /// About how many connections the clients of a business have, as of the last count; `None`: not known.
    pub fn clients(&self, business: &str) -> Option<i64> {
        self.clients.reported().get(business).copied()
    }

    /// Counts, and triggers the businesses whose number has changed.
    pub(super) fn count_clients(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let answering = || known.values().filter(|edge| edge.ready && edge.failure.is_none());
        // One that does not say how many it has, or has not been asked yet: then no number would be right.
        if answering().next().is_none() || answering().any(|edge| edge.connections.is_none()) {
            return;
        }
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for edge in known.values() {
            // What does not answer counts as it was: its clients may still be there.
            for name in edge.hashes.iter().chain(&edge.last).flat_map(BTreeMap::keys) {
                sums.entry(name).or_default();
            }
            for (name, connections) in edge.connections.iter().flatten() {
                *sums.entry(name).or_default() += connections;
            }
        }
        let mut reported = self.clients.reported();
        reported.retain(|name, _| sums.contains_key(name.as_str()));
        let mut changed = HashSet::new();
        for (name, sum) in sums {
            let about = about(sum);
            if reported.insert(name.to_owned(), about) != Some(about) {
                changed.insert(name.to_owned());
            }
        }
        drop((reported, known));
        self.triggers.trigger_businesses(&changed);
    }
}

/// In two significant digits, rounded down; below 100 exactly.
fn about(number: u64) -> i64 {
    let mut unit = 1;
    while number / unit >= 100 {
        unit *= 10;
    }
    i64::try_from(number / unit * unit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_digits_are_enough() {
        let numbers = [0, 7, 99, 100, 101, 1_999, 20_000, 123_456];
        assert_eq!(numbers.map(about), [0, 7, 99, 100, 100, 1_900, 20_000, 120_000]);
    }
}
