//! A bounded queue that serves its keys in turn, each with some items, and keeps the order within each.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

/// An item with a deadline. Deadlines of one key never decrease.
pub(super) trait HasDeadline {
    fn deadline(&self) -> Instant;
}

/// The queue of one exchange.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    /// No list is empty: a key is present exactly while items of it wait.
    waiting: HashMap<u64, VecDeque<T>>,
    /// The same keys, each once; the first is served next.
    turns: VecDeque<u64>,
    /// Items that the first of them got in this turn.
    taken: u8,
    len: usize,
    capacity: usize,
}

impl<T: HasDeadline> FairQueue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { waiting: HashMap::new(), turns: VecDeque::new(), taken: 0, len: 0, capacity }
    }

    /// Returns the item if the queue is full.
    pub(super) fn push(&mut self, key: u64, item: T) -> Result<(), T> {
        if self.len >= self.capacity {
            return Err(item);
        }
        self.len += 1;
        let items = self.waiting.entry(key).or_default();
        if items.is_empty() {
            self.turns.push_back(key);
        }
        items.push_back(item);
        Ok(())
    }

    /// The next item of the key whose turn it is. `turn`: items of one key before the next one is served.
    pub(super) fn pop(&mut self, turn: u8) -> Option<T> {
        let key = *self.turns.front()?;
        let items = self.waiting.get_mut(&key)?;
        let item = items.pop_front();
        self.taken = self.taken.saturating_add(1);
        if items.is_empty() {
            self.waiting.remove(&key);
            self.turns.pop_front();
            self.taken = 0;
        } else if self.taken >= turn {
            self.turns.rotate_left(1);
            self.taken = 0;
        }
        self.len -= usize::from(item.is_some());
        item
    }

    /// Takes out everything whose deadline has passed.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<T> {
        let (mut expired, first) = (Vec::new(), self.turns.front().copied());
        self.waiting.retain(|_, items| {
            while items.front().is_some_and(|item| item.deadline() <= now) {
                expired.extend(items.pop_front());
            }
            !items.is_empty()
        });
        if !expired.is_empty() {
            self.len -= expired.len();
            let waiting = &self.waiting;
            self.turns.retain(|key| waiting.contains_key(key));
            if self.turns.front() != first.as_ref() {
                self.taken = 0;
            }
        }
        expired
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.turns.clear();
        (self.taken, self.len) = (0, 0);
        self.waiting.drain().flat_map(|(_, items)| items).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Item(u64, u64, Instant);

    impl HasDeadline for Item {
        fn deadline(&self) -> Instant {
            self.2
        }
    }

    #[test]
    fn keys_are_served_in_turn() {
        let now = Instant::now();
        let mut queue = FairQueue::new(10);
        for (key, number) in [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 1), (3, 1), (2, 2), (1, 6)] {
            queue.push(key, Item(key, number, now)).unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(4)).map(|item| (item.0, item.1)).collect();
        assert_eq!(order, [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (1, 5), (1, 6)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_gives_back_and_expiry_makes_room() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut queue = FairQueue::new(2);
        queue.push(1, Item(1, 1, now)).unwrap();
        queue.push(1, Item(1, 2, later)).unwrap();
        assert!(queue.push(2, Item(2, 1, later)).is_err());
        assert_eq!(queue.expired(now), [Item(1, 1, now)]);
        queue.push(2, Item(2, 1, later)).unwrap();
        assert_eq!(queue.drain().len(), 2);
        assert!(queue.pop(1).is_none());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_reordered_within_a_key(
            steps in proptest::collection::vec((0u8..4, 0u64..4), 0..200),
            capacity in 1usize..20,
        ) {
            let base = Instant::now();
            let mut queue = FairQueue::new(capacity);
            let (mut numbers, mut served, mut inside) = ([0u64; 4], [0u64; 4], 0usize);
            let mut clock = base;
            for (step, key) in steps {
                clock += Duration::from_millis(1);
                let out = match step {
                    0 | 1 => {
                        let number = numbers[key as usize] + 1;
                        if queue.push(key, Item(key, number, clock)).is_ok() {
                            numbers[key as usize] = number;
                            inside += 1;
                        } else {
                            prop_assert_eq!(inside, capacity);
                        }
                        vec![]
                    }
                    2 => queue.pop(3).into_iter().collect(),
                    _ => queue.expired(clock - Duration::from_millis(20)),
                };
                inside -= out.len();
                for item in out {
                    prop_assert_eq!(item.1, served[item.0 as usize] + 1);
                    served[item.0 as usize] = item.1;
                }
                prop_assert_eq!(queue.len, inside);
            }
        }
    }
}
