//! What is remembered of each business until its end, so many at most. Whoever adds one pays little: all of them are looked
//! at only once many more have come, also where nearly all that there is room for is still needed. At the bound those of
//! the business that has most are forgotten first: no business makes an edge forget what is another one's.
//!
//! In parts, each with a lock and a bound of its own, so that a look at one part holds up few.

use std::{
    collections::{HashMap, hash_map},
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::counter::Counter;

/// Parts.
const PARTS: usize = 16;
/// What is over is removed when as many as this are kept, and again when their number has doubled.
const FIRST_SWEEP: usize = 64;
/// Where a look at all of a part at its bound leaves less than this part of the room free, a larger part is made free.
const SCARCE: usize = 64;
const FREED: usize = 8;

/// See the module. Keys are random: their first bits choose the part.
#[derive(Debug)]
pub(super) struct Expiring<K, V>(Vec<Mutex<Part<K, V>>>);

#[derive(Debug)]
struct Part<K, V> {
    businesses: HashMap<String, HashMap<K, Entry<V>>>,
    count: usize,
    most: usize,
    sweep_at: usize,
    /// Those that the bound made it forget.
    forgotten: Counter,
    #[cfg(test)]
    looked_at: usize,
}

/// A value, and its end, ms since the epoch.
#[derive(Debug)]
pub(super) struct Entry<V> {
    pub(super) value: V,
    pub(super) until: i64,
}

impl<K: Eq + Hash, V> Expiring<K, V> {
    pub(super) fn new(most: usize, forgotten: &Counter) -> Self {
        let part = || Part {
            businesses: HashMap::new(),
            count: 0,
            most: most.div_ceil(PARTS),
            sweep_at: FIRST_SWEEP,
            forgotten: forgotten.clone(),
            #[cfg(test)]
            looked_at: 0,
        };
        Self((0..PARTS).map(|_| Mutex::new(part())).collect())
    }

    fn part(&self, bits: u64) -> MutexGuard<'_, Part<K, V>> {
        let index = usize::try_from(bits % PARTS as u64).unwrap_or_default();
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered. `bits`: some of the key.
    pub(super) fn read<R>(&self, business: &str, key: &K, bits: u64, read: impl FnOnce(&V) -> R) -> Option<R> {
        self.part(bits).businesses.get(business)?.get(key).map(|entry| read(&entry.value))
    }

    /// Remembers one; where it is there already, changes that. Whether it is new. Makes room first.
    pub(super) fn add(
        &self,
        business: &str,
        key: K,
        bits: u64,
        new: Entry<V>,
        now: i64,
        change: impl FnOnce(&mut Entry<V>, Entry<V>),
    ) -> bool {
        let part = &mut *self.part(bits);
        if part.count >= part.sweep_at.min(part.most) {
            part.sweep(now);
        }
        if !part.businesses.contains_key(business) {
            part.businesses.insert(business.to_owned(), HashMap::new());
        }
        let Some(of_business) = part.businesses.get_mut(business) else { return true };
        match of_business.entry(key) {
            hash_map::Entry::Occupied(mut old) => {
                change(old.get_mut(), new);
                false
            }
            hash_map::Entry::Vacant(free) => {
                free.insert(new);
                part.count += 1;
                true
            }
        }
    }

    #[cfg(test)]
    fn sum(&self, of: impl Fn(&Part<K, V>) -> usize) -> usize {
        self.0.iter().map(|part| of(&part.lock().unwrap())).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sum(|part| part.count)
    }

    #[cfg(test)]
    pub(super) fn most(&self) -> usize {
        self.sum(|part| part.most)
    }
}

impl<K: Eq + Hash, V> Part<K, V> {
    fn sweep(&mut self, now: i64) {
        #[cfg(test)]
        {
            self.looked_at += self.count;
        }
        self.retain(|entries| entries.retain(|_, entry| entry.until > now));
        if self.count > self.most.saturating_sub(self.most.div_ceil(SCARCE)) {
            let room = self.most.saturating_sub(self.most.div_ceil(FREED));
            while self.count > room && self.forget_some_of_the_largest(self.count - room) {}
        }
        self.sweep_at = (self.count * 2).max(FIRST_SWEEP);
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut HashMap<K, Entry<V>>)) {
        self.businesses.retain(|_, entries| {
            keep(entries);
            !entries.is_empty()
        });
        self.count = self.businesses.values().map(HashMap::len).sum();
    }

    /// Of the business that has most, those that end first: they matter for the shortest time. So many at most, and no
    /// more than make it as small as the next one. False: there is none.
    fn forget_some_of_the_largest(&mut self, most: usize) -> bool {
        let mut sizes: Vec<usize> = self.businesses.values().map(HashMap::len).collect();
        sizes.sort_unstable_by(|one, other| other.cmp(one));
        let (Some(first), second) = (sizes.first(), sizes.get(1).copied().unwrap_or_default()) else { return false };
        let Some(largest) = self.businesses.values_mut().find(|entries| entries.len() == *first) else { return false };
        // Of several that have as many, a part of each.
        let mut left = most.min((first - second).max(first.div_ceil(FREED)));
        let mut ends: Vec<i64> = largest.values().map(|entry| entry.until).collect();
        let last = *ends.select_nth_unstable(left - 1).1;
        let before = largest.len();
        // Those that end before the last one all go, and of those that end with it as many as are still too many.
        largest.retain(|_, entry| entry.until >= last);
        left -= before - largest.len();
        largest.retain(|_, entry| {
            let goes = entry.until == last && left > 0;
            left -= usize::from(goes);
            !goes
        });
        let gone = before - largest.len();
        self.count -= gone;
        self.forgotten.inc_by(gone as u64);
        gone > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 16_384;

    fn add(kept: &Expiring<usize, ()>, business: &str, n: usize, until: i64, now: i64) {
        assert!(kept.add(business, n, n as u64, Entry { value: (), until }, now, |_, _| ()));
    }

    fn has(kept: &Expiring<usize, ()>, business: &str, n: usize) -> bool {
        kept.read(business, &n, n as u64, |()| ()).is_some()
    }

    /// Sessions of a day on an edge that always has as many as are remembered: each one that comes, one ends.
    #[test]
    fn at_the_bound_nobody_pays_for_all_the_others() {
        let kept = Expiring::new(MOST, &Counter::default());
        let comes = |n: usize| add(&kept, "pay", n, n as i64 + MOST as i64 - 10, n as i64);
        (0..MOST).for_each(comes);
        let before = kept.sum(|part| part.looked_at);
        (MOST..11 * MOST).for_each(comes);
        let each = (kept.sum(|part| part.looked_at) - before) / (10 * MOST);
        assert!(each <= 2 * SCARCE, "{each} are looked at for each that comes");
        assert!(kept.len() <= MOST);
    }

    #[test]
    fn where_as_many_end_as_come_nothing_is_forgotten() {
        let forgotten = Counter::default();
        let kept = Expiring::new(MOST, &forgotten);
        for n in 0..5 * MOST {
            add(&kept, "pay", n, n as i64 + MOST as i64 * 9 / 10, n as i64);
        }
        assert_eq!(forgotten.get(), 0);
    }

    #[test]
    fn a_business_that_has_most_is_forgotten_first_and_one_end_of_all_is_not_all_of_them() {
        let forgotten = Counter::default();
        let kept = Expiring::new(MOST, &forgotten);
        (0..1000).for_each(|n| add(&kept, "quiet", n, 10, 0));
        // They end later, and all at the same time.
        (0..4 * MOST).for_each(|n| add(&kept, "greedy", n, 1_000, 0));
        assert!((0..1000).all(|n| has(&kept, "quiet", n)), "nothing of another one's");
        assert!(kept.len() <= MOST && kept.len() >= MOST * 7 / 8, "{}", kept.len());
        assert_eq!(kept.len() as u64 + forgotten.get(), 1000 + 4 * MOST as u64);
        // Of several as large ones a part of each.
        (0..MOST).for_each(|n| add(&kept, "another", n, 1_000, 0));
        let of = |business: &str| (0..4 * MOST).filter(|n| has(&kept, business, *n)).count();
        assert!(of("another") > MOST / 4 && of("greedy") > MOST / 4, "{} {}", of("another"), of("greedy"));
    }
}
