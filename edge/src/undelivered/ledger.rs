//! The pushes whose receipts are awaited, in memory, and the place from which another edge would have to begin.
//!
//! A push stays until its time is up, also when it was received: a service that is not sure whether a push arrived gives it
//! again with the same id, and the client, which has it, does not report it again.
//!
//! *Bound*: the bytes of all businesses have a [`Budget`](crate::budget::Budget).

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use super::checkpoint::From;
use crate::{budget::Held, push::followed::Followed};

/// What a push costs beside its words.
const OVERHEAD: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    hasher: RandomState,
    open: HashMap<u64, Open>,
    /// In the order in which their time is up.
    due: BTreeMap<(i64, u64), u64>,
    /// Numbers them.
    last: u64,
    /// Where reading stood when some of them were read, the oldest first.
    begins: VecDeque<Begin>,
}

#[derive(Debug)]
struct Open {
    /// `None`: received.
    awaited: Option<Followed>,
    /// Number of its [`Begin`].
    begin: u64,
    _room: Held,
}

#[derive(Debug)]
struct Begin {
    number: u64,
    from: From,
    open: usize,
}

/// Bytes that a push takes.
pub(super) fn bytes(push: &Followed) -> usize {
    push.id.len() + push.unique_id.len() + push.message_type.len() + OVERHEAD
}

impl Ledger {
    fn key(&self, unique_id: &str, id: &str) -> u64 {
        self.hasher.hash_one((unique_id, id))
    }

    /// What is followed from now on was read from there on.
    pub(super) fn begin(&mut self, from: From) {
        match self.begins.back_mut() {
            Some(last) if last.open == 0 => last.from = from,
            last => {
                let number = last.map_or(0, |last| last.number + 1);
                self.begins.push_back(Begin { number, from, open: 0 });
            }
        }
    }

    /// Where another edge begins.
    pub(super) fn from(&self) -> Option<From> {
        self.begins.front().map(|begin| begin.from)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether this push is awaited already, or was and its time is not up.
    pub(super) fn knows(&self, push: &Followed) -> bool {
        self.open.contains_key(&self.key(&push.unique_id, &push.id))
    }

    /// Awaits a receipt. A push that it [knows](Self::knows) keeps its time.
    pub(super) fn follow(&mut self, push: Followed, room: Held) {
        let key = self.key(&push.unique_id, &push.id);
        let Some(begin) = self.begins.back_mut().filter(|_| !self.open.contains_key(&key)) else { return };
        begin.open += 1;
        self.last += 1;
        self.due.insert((push.due, self.last), key);
        self.open.insert(key, Open { awaited: Some(push), begin: begin.number, _room: room });
    }

    /// A receipt has come.
    pub(super) fn receive(&mut self, unique_id: &str, id: &str) {
        if let Some(open) = self.open.get_mut(&self.key(unique_id, id)) {
            open.awaited = None;
        }
    }

    /// The stream of receipts is another one: no place of the former one is of use.
    pub(super) fn forget_receipts(&mut self) {
        for begin in &mut self.begins {
            begin.from.receipts = None;
        }
    }

    /// Takes out what was not received until `now`, looking at so many at most. True: there is more.
    pub(super) fn take_due(&mut self, now: i64, max: usize) -> (Vec<Followed>, bool) {
        let mut missing = Vec::new();
        let mut looked_at = 0;
        while looked_at < max
            && let Some(first) = self.due.first_entry().filter(|first| first.key().0 <= now)
        {
            looked_at += 1;
            let Some(open) = self.open.remove(&first.remove()) else { continue };
            // Their numbers follow each other.
            let index = self.begins.front().map(|first| open.begin.saturating_sub(first.number));
            let index = index.and_then(|index| usize::try_from(index).ok());
            if let Some(begin) = index.and_then(|index| self.begins.get_mut(index)) {
                begin.open -= 1;
            }
            missing.extend(open.awaited);
        }
        // The last one says where reading stands.
        while self.begins.len() > 1 && self.begins.front().is_some_and(|first| first.open == 0) {
            self.begins.pop_front();
        }
        (missing, looked_at == max)
    }
}
