//! The queues of edges that read `Transient` businesses.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::Message;

/// A queue without a consumer lives this long.
const EXPIRES: Duration = Duration::from_mins(1);

/// A message in a queue.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) message: Message,
    pub(super) redelivered: bool,
}

/// A queue on one node.
struct Queue {
    node: usize,
    business: Option<String>,
    ready: VecDeque<Waiting>,
    /// The connection that consumes.
    consumer: Option<u64>,
    unused_since: Instant,
    /// Its node is down, of all queues for this one alone.
    lost: bool,
    /// Delivered and not settled.
    open: usize,
    /// What was open is lost with its node: it does not come back.
    spoiled: bool,
}

/// All of them, by name.
#[derive(Default)]
pub(super) struct Queues(BTreeMap<String, Queue>);

/// The answer to a call about a queue.
pub(super) enum Answer<T> {
    Done(T),
    Missing,
    /// It has a consumer.
    Taken,
    /// Its node is down: none comes.
    None,
}

impl Queues {
    fn expire(&mut self) {
        self.0.retain(|_, queue| queue.consumer.is_some() || queue.unused_since.elapsed() < EXPIRES);
    }

    fn with<T>(&mut self, name: &str, up: &[bool], act: impl FnOnce(&mut Queue) -> T) -> Answer<T> {
        self.expire();
        match self.0.get_mut(name) {
            None => Answer::Missing,
            Some(queue) if !queue.answers(up) => Answer::None,
            Some(queue) => Answer::Done(act(queue)),
        }
    }

    /// The number of messages in it.
    pub(super) fn count(&mut self, name: &str, up: &[bool]) -> Answer<usize> {
        self.with(name, up, |queue| queue.ready.len())
    }

    pub(super) fn declare(&mut self, name: &str, node: usize) {
        let unused_since = Instant::now();
        let queue = Queue {
            node,
            business: None,
            ready: VecDeque::new(),
            consumer: None,
            unused_since,
            lost: false,
            open: 0,
            spoiled: false,
        };
        self.0.entry(name.to_owned()).or_insert(queue);
    }

    pub(super) fn bind(&mut self, name: &str, business: &str, up: &[bool]) -> Answer<()> {
        self.with(name, up, |queue| queue.business = Some(business.to_owned()))
    }

    pub(super) fn purge(&mut self, name: &str, up: &[bool]) -> Answer<()> {
        self.with(name, up, |queue| queue.ready.clear())
    }

    /// Also while its node is down.
    pub(super) fn delete(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(super) fn consume(&mut self, name: &str, connection: u64, up: &[bool]) -> Answer<()> {
        let taken = self.with(name, up, |queue| {
            let free = queue.consumer.is_none_or(|consumer| consumer == connection);
            if free {
                queue.consumer = Some(connection);
            }
            !free
        });
        match taken {
            Answer::Done(true) => Answer::Taken,
            Answer::Done(false) => Answer::Done(()),
            Answer::Missing => Answer::Missing,
            _ => Answer::None,
        }
    }

    /// Whether this connection's consumer is still there.
    pub(super) fn is_consumed(&self, name: &str, connection: u64) -> bool {
        self.0.get(name).is_some_and(|queue| queue.consumer == Some(connection))
    }

    pub(super) fn next(&mut self, name: &str, up: &[bool]) -> Option<Waiting> {
        let next = self.with(name, up, |queue| {
            let next = queue.ready.pop_front();
            queue.open += usize::from(next.is_some());
            next
        });
        match next {
            Answer::Done(next) => next,
            _ => None,
        }
    }

    /// A connection has settled so many.
    pub(super) fn settled(&mut self, name: &str, connection: u64, count: usize) {
        if let Some(queue) = self.0.get_mut(name).filter(|queue| queue.consumer == Some(connection)) {
            queue.open = queue.open.saturating_sub(count);
        }
    }

    /// A connection gives back what it has not acknowledged, in order; with `leaves` its consumer ends.
    pub(super) fn give_back(&mut self, name: &str, connection: u64, messages: Vec<Waiting>, leaves: bool) {
        // What was delivered to a consumer that the queue does not know any more was lost with its node.
        let known = |queue: &&mut Queue| queue.consumer == Some(connection);
        let Some(queue) = self.0.get_mut(name).filter(known) else { return };
        queue.open = queue.open.saturating_sub(messages.len());
        for waiting in messages.into_iter().rev() {
            queue.ready.push_front(Waiting { redelivered: true, ..waiting });
        }
        if leaves {
            (queue.consumer, queue.unused_since) = (None, Instant::now());
        }
    }

    /// A node goes down: consumers of its queues are cancelled.
    pub(super) fn node_down(&mut self, node: usize) {
        self.0.values_mut().filter(|queue| queue.node == node).for_each(Queue::goes_down);
    }

    /// It comes back.
    pub(super) fn node_up(&mut self, node: usize) {
        self.0.retain(|_, queue| queue.node != node || !queue.spoiled);
    }

    /// The node of this business's queues goes down, or comes back.
    pub(super) fn lose(&mut self, business: &str, lost: bool) {
        for queue in self.0.values_mut().filter(|queue| queue.business.as_deref() == Some(business)) {
            queue.lost = lost;
            if lost {
                queue.goes_down();
            }
        }
        self.0.retain(|_, queue| lost || !queue.spoiled || queue.business.as_deref() != Some(business));
    }

    /// A message for this queue alone.
    pub(super) fn put(&mut self, name: &str, message: Message, up: &[bool]) -> Answer<()> {
        self.with(name, up, |queue| queue.ready.push_back(Waiting { message, redelivered: false }))
    }

    /// A push goes into every queue of the business: how many. `None`: one of them can't take it.
    pub(super) fn push(&mut self, business: &str, message: &Message, up: &[bool]) -> Option<usize> {
        self.expire();
        let bound = |queue: &&mut Queue| queue.business.as_deref() == Some(business);
        let queues: Vec<_> = self.0.values_mut().filter(bound).collect();
        if queues.iter().any(|queue| !queue.answers(up)) {
            return None;
        }
        let count = queues.len();
        for queue in queues {
            queue.ready.push_back(Waiting { message: message.clone(), redelivered: false });
        }
        Some(count)
    }
}

impl Queue {
    /// Its node goes down: its consumer is cancelled.
    fn goes_down(&mut self) {
        (self.consumer, self.unused_since) = (None, Instant::now());
        self.spoiled |= self.open > 0;
    }

    fn answers(&self, up: &[bool]) -> bool {
        up[self.node] && !self.lost
    }
}

impl Answer<()> {
    /// For calls that count nothing.
    pub(super) fn counted(self) -> Answer<usize> {
        match self {
            Self::Done(()) => Answer::Done(0),
            Self::Missing => Answer::Missing,
            Self::Taken => Answer::Taken,
            Self::None => Answer::None,
        }
    }
}
