//! What a record keeps when its message is delivered again: its position and its time. From these follow the id of a push that has none,
//! and its time to live. A queue keeps neither.
//!
//! *Bound*: the last messages, as many as may be unsettled and as many more.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{Sequence, source::Delivery};
use crate::Position;

/// See the module.
#[derive(Debug)]
pub(super) struct Identities {
    recent: VecDeque<Identity>,
    most: usize,
}

#[derive(Debug)]
struct Identity {
    body: u64,
    position: Position,
    timestamp: i64,
    /// While it is delivered and not settled, on the present connection.
    tag: Option<u64>,
    /// Acknowledged. The broker may have lost that with the connection.
    done: bool,
}

impl Identities {
    /// At most this many messages are unsettled.
    pub(super) fn new(prefetch: u16) -> Self {
        Self { recent: VecDeque::new(), most: 2 * usize::from(prefetch) }
    }

    /// Position and time of a delivery: those that it had before, or new ones.
    pub(super) fn of(&mut self, delivery: &Delivery, sequence: &Sequence, now_ms: i64) -> (Position, i64) {
        let mut hasher = DefaultHasher::new();
        delivery.body.hash(&mut hasher);
        let body = hasher.finish();
        let before = self.before(body, delivery.redelivered).and_then(|index| self.recent.remove(index));
        let (position, timestamp) =
            before.map_or_else(|| (sequence.next(), now_ms), |before| (before.position, before.timestamp));
        if self.recent.len() == self.most {
            self.recent.pop_front();
        }
        self.recent.push_back(Identity { body, position, timestamp, tag: Some(delivery.tag), done: false });
        (position, timestamp)
    }

    /// The same message as it was delivered before. Those that were not acknowledged come first: two messages may be equal.
    fn before(&self, body: u64, redelivered: Option<bool>) -> Option<usize> {
        let find = |done| self.recent.iter().position(|one| one.tag.is_none() && one.body == body && one.done == done);
        match redelivered {
            Some(false) => None,
            None => find(false),
            Some(true) => find(false).or_else(|| find(true)),
        }
    }

    /// These were acknowledged, or put back into the queue.
    pub(super) fn settled(&mut self, (first, last): (u64, u64), done: bool) {
        for one in self.recent.iter_mut().filter(|one| one.tag.is_some_and(|tag| (first..=last).contains(&tag))) {
            (one.tag, one.done) = (None, done);
        }
    }

    /// The queue is lost with what was in it: nothing of it is delivered again, and an equal message is a new one.
    pub(super) fn forget(&mut self) {
        self.recent.clear();
    }

    /// The connection has ended: what was not settled is delivered again, with other tags.
    pub(super) fn disconnected(&mut self) {
        for one in &mut self.recent {
            one.tag = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;

    struct Queue {
        identities: Identities,
        sequence: Sequence,
        tag: u64,
    }

    impl Queue {
        fn deliver(&mut self, body: &'static str, redelivered: Option<bool>) -> (u64, i64) {
            self.tag += 1;
            let delivery =
                Delivery { tag: self.tag, redelivered, body: body.into(), defect: None, origin: Origin::default() };
            let (position, timestamp) = self.identities.of(&delivery, &self.sequence, self.tag as i64 * 1000);
            (position.offset, timestamp)
        }

        fn reconnect(&mut self) {
            self.identities.disconnected();
            self.tag = 0;
        }
    }

    fn queue() -> Queue {
        Queue { identities: Identities::new(3), sequence: Sequence::new(), tag: 0 }
    }

    #[test]
    fn what_is_delivered_again_is_the_same_as_before() {
        for redelivered in [Some(true), None] {
            let mut queue = queue();
            let first = ["a", "b", "a"].map(|body| queue.deliver(body, Some(false)));
            assert_eq!(first, [(1, 1000), (2, 2000), (3, 3000)], "equal messages are two");
            queue.identities.settled((1, 1), true);
            queue.reconnect();
            assert_eq!(["b", "a"].map(|body| queue.deliver(body, redelivered)), first[1..]);
            assert_eq!(queue.deliver("a", Some(false)).0, 4, "and an equal one that is new is another");
            // Put back into the queue on this connection.
            queue.identities.settled((1, 1), false);
            assert_eq!(queue.deliver("b", redelivered), first[1]);
        }
    }

    #[test]
    fn an_acknowledgement_that_was_lost_changes_nothing() {
        let mut queue = queue();
        let first = queue.deliver("a", Some(false));
        queue.identities.settled((1, 1), true);
        queue.reconnect();
        assert_eq!(queue.deliver("a", Some(true)), first);
        queue.identities.settled((1, 1), true);
        queue.reconnect();
        assert_eq!(queue.deliver("a", None).0, 2, "where it is not known, it is more likely a new one");
    }

    #[test]
    fn of_a_lost_queue_nothing_comes_again() {
        let mut queue = queue();
        let first = queue.deliver("a", Some(false));
        queue.reconnect();
        queue.identities.forget();
        assert_ne!(queue.deliver("a", None), first, "it was pushed after that");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut queue = queue();
        let first = queue.deliver("a", Some(false));
        queue.identities.settled((1, 1), true);
        for _ in 0..6 {
            queue.deliver("b", Some(false));
        }
        assert_eq!(queue.identities.recent.len(), 6);
        queue.reconnect();
        assert_ne!(queue.deliver("a", Some(true)), first);
    }
}
