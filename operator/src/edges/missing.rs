//! Edges that are no longer seen, and may still serve clients.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// Edges that have left, of which it is known what they ran; of more than that it is known of the last ones.
const MAX_MISSING: usize = 256;
/// For how long after a failure of the watch, which retries every few seconds, nothing is certain.
const UNREADABLE_FOR: Duration = Duration::from_secs(30);

/// Edges that the slices no longer name, or that can't be read there: a process that the control plane has lost may still serve clients.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// What they ran when they left, and when that was; the oldest first, of the time that they count, at most [`MAX_MISSING`].
    left: VecDeque<(Option<BTreeMap<String, String>>, Instant)>,
    /// There have been edges.
    pub(super) any: bool,
    /// When the slices could last not be read.
    pub(super) unreadable: Option<Instant>,
    /// How long an edge that has left may still run what it ran then.
    counts_for: Duration,
}

impl Missing {
    /// None so far. `counts_for`: how long an edge that has left may still run what it ran then.
    pub(super) fn new(counts_for: Duration) -> Self {
        Self { counts_for, ..Self::default() }
    }

    pub(super) fn leaves(&mut self, ran: Option<BTreeMap<String, String>>) {
        let now = Instant::now();
        self.left.push_back((ran, now));
        while self.left.len() > MAX_MISSING || self.left.front().is_some_and(|(_, left)| now - *left >= self.counts_for)
        {
            self.left.pop_front();
        }
    }

    /// Whether the slices could not be read a moment ago.
    pub(super) fn is_unreadable(&self) -> bool {
        self.unreadable.is_some_and(|failed| failed.elapsed() < UNREADABLE_FOR)
    }

    /// Whether an edge that is not known may run something else of this business. `ready`: how many are ready.
    pub(super) fn may_run_another(&self, ready: usize, business: &str, hash: &str) -> bool {
        let recent = |(_, left): &&(_, Instant)| left.elapsed() < self.counts_for;
        (ready == 0 && self.any)
            || self.is_unreadable()
            || self.left.iter().filter(recent).any(|(ran, _)| !runs(ran.as_ref(), business, hash))
    }
}

/// Whether an edge with this answer certainly runs that configuration of a business, or none of it.
pub(super) fn runs(hashes: Option<&BTreeMap<String, String>>, business: &str, hash: &str) -> bool {
    hashes.is_some_and(|hashes| hashes.get(business).is_none_or(|runs| runs == hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that is cut off from the control plane still reaches clients and broker.
    #[tokio::test(start_paused = true)]
    async fn an_edge_that_has_left_or_cannot_be_read_of_may_run_what_it_had() {
        let ran = |hash: &str| Some(BTreeMap::from([("pay".to_owned(), hash.to_owned())]));
        const COUNTS_FOR: Duration = Duration::from_mins(2);
        let mut missing = Missing::new(COUNTS_FOR);
        let others = |missing: &Missing, ready: usize| missing.may_run_another(ready, "pay", "new");
        assert!(!others(&missing, 0), "there never was an edge");
        missing.any = true;
        assert!(others(&missing, 0) && !others(&missing, 1));
        for harmless in [ran("new"), Some(BTreeMap::new())] {
            missing.leaves(harmless);
        }
        assert!(!others(&missing, 1));
        for unsure in [ran("old"), None] {
            missing.leaves(unsure);
            assert!(others(&missing, 1));
            tokio::time::advance(COUNTS_FOR).await;
            assert!(!others(&missing, 1));
        }
        missing.unreadable = Some(Instant::now());
        assert!(others(&missing, 1));
        for _ in 0..2 * MAX_MISSING {
            missing.leaves(None);
        }
        assert_eq!(missing.left.len(), MAX_MISSING);
    }
}
