//! Which questions were put here already: whoever has recorded one can't put it again.

use std::collections::BTreeSet;

use crate::identity::peer_seal::{GOOD_FOR_MS, Seal};

/// Seals that are remembered: 2,000 questions a second for as long as a seal is good.
const MAX: usize = 1 << 16;

/// The seals of questions that would still be good. When there are too many, the oldest are forgotten, and none that is
/// as old as they are is taken any more: a seal is good for a shorter time then, and never twice.
#[derive(Debug)]
pub(super) struct Spent {
    most: usize,
    seals: BTreeSet<(i64, u128)>,
    /// Seals up to this time are forgotten.
    forgotten: i64,
}

impl Default for Spent {
    fn default() -> Self {
        Self { most: MAX, seals: BTreeSet::new(), forgotten: i64::MIN }
    }
}

impl Spent {
    /// Takes a good seal. Whether it was not taken before.
    pub(super) fn spend(&mut self, seal: &Seal, now: i64) -> bool {
        let horizon = now.saturating_sub_unsigned(GOOD_FOR_MS);
        while self.seals.first().is_some_and(|(made_at, _)| *made_at < horizon || self.seals.len() >= self.most) {
            let oldest = self.seals.pop_first();
            self.forgotten = oldest.map_or(self.forgotten, |(made_at, _)| made_at.max(self.forgotten));
        }
        seal.made_at > self.forgotten && self.seals.insert((seal.made_at, seal.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{
        keys::KeyRing,
        peer_seal::{self, Purpose},
    };

    #[test]
    fn a_seal_is_taken_once_however_many_come() {
        let keys = KeyRing::random();
        let made = |at: i64| {
            let text = peer_seal::seal(&keys, Purpose::Anyone, peer_seal::digest(b""), at);
            peer_seal::open(&keys, Purpose::Anyone, &text, at).unwrap()
        };
        let mut spent = Spent { most: 3, ..Spent::default() };
        let first = made(1000);
        assert!(spent.spend(&first, 1000) && !spent.spend(&first, 1000));
        assert!(spent.spend(&made(1000), 1000), "another one of the same time");
        // More than are remembered: the first is forgotten, and not taken again.
        for at in 1001..1010 {
            assert!(spent.spend(&made(at), 1010));
            assert!(!spent.spend(&first, 1010) && spent.seals.len() <= 3);
        }
        // Nothing is kept that is too old to be good.
        let late = 1010 + i64::try_from(GOOD_FOR_MS).unwrap();
        assert!(spent.spend(&made(late), late));
        assert_eq!(spent.seals.len(), 1);
    }
}
