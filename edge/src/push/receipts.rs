//! The messages that a connection may still report as `received`: those sent to it on routes that ask for receipts,
//! each once.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::counter::Counter;

/// Messages of one connection that wait for a receipt; beyond it the oldest is dropped. As many as may be queued for a
/// socket.
pub const MAX_AWAITED: usize = 1024;

/// Stands for a message: 8 bytes instead of an id of up to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHash(u64);

impl MessageHash {
    /// Of a message's id.
    pub fn of(id: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The messages that wait for a receipt. Allocates nothing before the first one.
#[derive(Debug, Default)]
pub struct Receipts {
    awaited: Mutex<VecDeque<MessageHash>>,
    forgotten: Option<Counter>,
}

impl Receipts {
    /// `forgotten` counts the messages that were dropped.
    pub fn new(forgotten: Counter) -> Self {
        Self { awaited: Mutex::default(), forgotten: Some(forgotten) }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<MessageHash>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message is on its way to the client.
    pub fn sent(&self, hash: MessageHash) {
        let mut awaited = self.lock();
        if awaited.len() >= MAX_AWAITED {
            awaited.pop_front();
            self.forgotten.as_ref().map(Counter::inc);
        }
        awaited.push_back(hash);
    }

    /// Moves out of `ids` what was sent to the client and not reported yet; the ids that remain can't be reported.
    pub fn take(&self, ids: &mut Vec<String>) -> Vec<String> {
        let mut awaited = self.lock();
        let taken = ids
            .extract_if(.., |id| {
                let hash = MessageHash::of(id);
                let place = awaited.iter().position(|awaited| *awaited == hash);
                place.and_then(|place| awaited.remove(place)).is_some()
            })
            .collect();
        if awaited.is_empty() {
            *awaited = VecDeque::new();
        }
        taken
    }

    /// These could not be reported: they may be asked for again.
    pub fn give_back(&self, ids: &[String]) {
        let mut awaited = self.lock();
        for id in ids.iter().rev() {
            if awaited.len() < MAX_AWAITED {
                awaited.push_front(MessageHash::of(id));
            } else {
                self.forgotten.as_ref().map(Counter::inc);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn each_message_is_reported_once() {
        let receipts = Receipts::default();
        for id in ["a", "b", "twice", "twice"] {
            receipts.sent(MessageHash::of(id));
        }
        let mut asked = ids(&["b", "foreign", "b", "twice"]);
        assert_eq!(receipts.take(&mut asked), ids(&["b", "twice"]));
        assert_eq!(asked, ids(&["foreign", "b"]));
        receipts.give_back(&ids(&["b", "twice"]));
        assert_eq!(receipts.take(&mut ids(&["b"])), ids(&["b"]));
        assert_eq!(receipts.take(&mut ids(&["a", "twice", "twice", "twice"])), ids(&["a", "twice", "twice"]));
        assert_eq!(receipts.lock().capacity(), 0, "an empty list keeps no memory");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_dropped() {
        let forgotten = Counter::default();
        let receipts = Receipts::new(forgotten.clone());
        for n in 0..=MAX_AWAITED {
            receipts.sent(MessageHash::of(&n.to_string()));
        }
        assert_eq!((receipts.lock().len(), forgotten.get()), (MAX_AWAITED, 1));
        assert!(receipts.take(&mut ids(&["0"])).is_empty());
        assert_eq!(receipts.take(&mut ids(&["1"])), ids(&["1"]));
    }
}
