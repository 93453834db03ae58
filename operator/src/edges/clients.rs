//! How many clients each business has, as its status says it: about, and seldom, since each change is a write for the API
//! server.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::Edges;
use crate::fresh::Listed;

/// The first count, once edges have been asked.
const FIRST: Duration = Duration::from_secs(5);

/// In so many counts in a row there must be no edge before no business has clients: edges that are replaced may be gone
/// for a moment.
const COUNTS_WITHOUT_EDGES: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Clients {
    reported: Mutex<Reported>,
    every: Duration,
}

#[derive(Debug, Default)]
struct Reported {
    /// Business → what was reported last.
    numbers: HashMap<String, i64>,
    /// Counts in a row that found no edge.
    without_edges: u32,
}

impl Reported {
    fn nobody(&self) -> bool {
        self.without_edges >= COUNTS_WITHOUT_EDGES
    }
}

impl Clients {
    pub(super) fn new(every: Duration) -> Self {
        Self { reported: Mutex::default(), every }
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
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
        let reported = self.clients.reported();
        if reported.nobody() { Some(0) } else { reported.numbers.get(business).copied() }
    }

    /// Counts, and triggers the businesses whose number has changed.
    pub(super) fn count_clients(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() {
            drop(known);
            return self.count_without_edges();
        }
        let answering = || known.values().filter(|edge| edge.ready && edge.failure.is_none());
        let mut reported = self.clients.reported();
        let nobody = reported.nobody();
        // One that does not say how many it has, or has not been asked yet: then no number would be right.
        let unsure = answering().next().is_none() || answering().any(|edge| edge.connections.is_none());
        if !(unsure && nobody) {
            reported.without_edges = 0;
        }
        if unsure {
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
        let numbers = &mut reported.numbers;
        numbers.retain(|name, _| sums.contains_key(name.as_str()));
        let mut changed = HashSet::new();
        for (name, sum) in sums {
            let about = about(sum);
            let before = numbers.insert(name.to_owned(), about).or(nobody.then_some(0));
            if before != Some(about) {
                changed.insert(name.to_owned());
            }
        }
        drop((reported, known));
        self.triggers.trigger_businesses(&changed);
    }

    /// No edge is listed. One that the API server can't tell of may have clients, so that counts for nothing.
    fn count_without_edges(&self) {
        if !self.fresh.is_listed(Listed::Edges) || self.missing().is_unreadable() {
            return;
        }
        let mut reported = self.clients.reported();
        let before = reported.nobody();
        reported.without_edges = reported.without_edges.saturating_add(1);
        if before || !reported.nobody() {
            return;
        }
        reported.numbers.clear();
        drop(reported);
        self.triggers.trigger_all();
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
