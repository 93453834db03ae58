//! What is remembered until its end, so many at most. Whoever adds one pays little: all of them are looked at only once many
//! more have come, also where nearly all that there is room for is still needed.

use std::{collections::HashMap, hash::Hash};

use prometheus_client::metrics::counter::Counter;

/// What is over is removed when as many as this are kept, and again when their number has doubled.
const FIRST_SWEEP: usize = 1024;
/// The part of the room that is free after a look at all of them at the bound.
const FREED: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Expiring<K, V> {
    entries: HashMap<K, (V, i64)>,
    most: usize,
    sweep_at: usize,
    /// Those that the bound made it forget.
    forgotten: Counter,
    #[cfg(test)]
    looked_at: usize,
}

impl<K: Eq + Hash, V> Expiring<K, V> {
    pub(super) fn new(most: usize, forgotten: Counter) -> Self {
        Self {
            entries: HashMap::new(),
            most,
            sweep_at: FIRST_SWEEP,
            forgotten,
            #[cfg(test)]
            looked_at: 0,
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// The entry of this key with its end (ms since the epoch), which is made with these if there is none. Makes room first.
    pub(super) fn entry(&mut self, key: K, value: V, until: i64, now: i64) -> Entry<'_, V> {
        if self.entries.len() >= self.sweep_at.min(self.most) {
            self.sweep(now);
        }
        match self.entries.entry(key) {
            std::collections::hash_map::Entry::Occupied(old) => Entry::Old(old.into_mut()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert((value, until));
                Entry::New
            }
        }
    }

    fn sweep(&mut self, now: i64) {
        #[cfg(test)]
        {
            self.looked_at += self.entries.len();
        }
        let at_the_bound = self.entries.len() >= self.most;
        self.entries.retain(|_, (_, until)| *until > now);
        let room = self.most - self.most.div_ceil(FREED);
        if at_the_bound && self.entries.len() > room {
            // Those that end first matter for the shortest time.
            let too_many = self.entries.len() - room;
            let mut ends: Vec<i64> = self.entries.values().map(|(_, until)| *until).collect();
            let last = *ends.select_nth_unstable(too_many - 1).1;
            let before = self.entries.len();
            self.entries.retain(|_, (_, until)| *until > last);
            self.forgotten.inc_by((before - self.entries.len()) as u64);
        }
        self.sweep_at = (self.entries.len() * 2).max(FIRST_SWEEP);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(super) fn most(&self) -> usize {
        self.most
    }
}

/// What was there.
pub(super) enum Entry<'e, V> {
    /// Nothing.
    New,
    /// This, with its end.
    Old(&'e mut (V, i64)),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions of a day on an edge that always has as many as are remembered: each one that comes, one ends.
    #[test]
    fn at_the_bound_nobody_pays_for_all_the_others() {
        const MOST: usize = 8_192;
        let mut kept = Expiring::new(MOST, Counter::default());
        let comes = |kept: &mut Expiring<usize, ()>, n: usize| {
            let now = n as i64;
            assert!(matches!(kept.entry(n, (), now + MOST as i64 - 10, now), Entry::New));
        };
        (0..MOST).for_each(|n| comes(&mut kept, n));
        let before = kept.looked_at;
        (MOST..11 * MOST).for_each(|n| comes(&mut kept, n));
        let each = (kept.looked_at - before) / (10 * MOST);
        assert!(each <= 2 * FREED, "{each} are looked at for each that comes");
        assert!(kept.len() <= MOST);
    }
}
