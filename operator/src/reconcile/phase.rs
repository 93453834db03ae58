//! Whether everything that is no longer declared may be removed from the broker: no edge may use it any more.

use std::time::Duration;

use tokio::time::Instant;
use wirepost_core::contract::configz::DECISIONS_VALID_FOR;
use wirepost_topology::keeper::Phase;

use super::Reconcile;
use crate::edges::{EdgeProgress, MISSING_FOR};

/// Longest wait for edges that do not get, or do not report, the present configuration: cut off from the API server, or from the operator.
/// After it their clients' messages may end in `unrouted`.
const EDGES_TIMEOUT: Duration = MISSING_FOR;

/// The edge configuration that was last written, or found to be as it should be.
#[derive(Clone, Debug)]
pub(super) struct Delivered {
    hash: String,
    at: Instant,
}

impl Delivered {
    /// This one, now; `before` stays what it is if it was the same one.
    pub(super) fn update(before: &mut Option<Self>, hash: String) {
        if before.as_ref().is_none_or(|before| before.hash != hash) {
            *before = Some(Self { hash, at: Instant::now() });
        }
    }

    /// When no edge uses anything of a former configuration any more.
    fn settled_at(&self, progress: &EdgeProgress) -> Instant {
        let EdgeProgress { total, programmed, since, others, .. } = progress;
        if programmed < total || *others {
            return self.at + EDGES_TIMEOUT;
        }
        since.map_or(self.at, |since| since.max(self.at)) + DECISIONS_VALID_FOR
    }
}

impl Reconcile<'_> {
    /// How much may be done now to make the broker have what this edge configuration needs.
    pub(super) fn phase(&self, business: &str, hash: &str) -> Phase {
        match self.until_settled(business, hash) {
            Some(Duration::ZERO) => Phase::Shrink,
            _ => Phase::Grow,
        }
    }

    /// How long until no edge uses anything else than this; `None`: it was not delivered yet.
    pub(super) fn until_settled(&self, business: &str, hash: &str) -> Option<Duration> {
        let Self { stored, context } = *self;
        let delivered = context.states.of(stored, |state| state.delivered.clone()).filter(|last| last.hash == hash)?;
        let mut progress = context.edges.progress(business, hash);
        if progress.total == 0 && stored.status().edges.is_some_and(|edges| edges.total > 0) {
            // They were there before this process.
            context.edges.were_seen();
            progress.others = true;
        }
        let settled_at = delivered.settled_at(&progress);
        Some(settled_at.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_edges_may_use_is_removed_when_the_last_of_them_has_long_had_the_configuration_or_takes_too_long() {
        let mut delivered = None;
        Delivered::update(&mut delivered, "a".to_owned());
        let begun = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        Delivered::update(&mut delivered, "a".to_owned());
        let delivered = delivered.unwrap();
        let settled = |total: usize, programmed: usize, since: Option<Duration>| {
            let since = since.map(|since| begun + since);
            delivered.settled_at(&EdgeProgress { total, programmed, since, ..EdgeProgress::default() }) - begun
        };
        assert_eq!(settled(2, 1, Some(Duration::ZERO)), EDGES_TIMEOUT);
        assert_eq!(settled(2, 2, Some(Duration::from_secs(9))), Duration::from_secs(9) + DECISIONS_VALID_FOR);
        assert_eq!(settled(0, 0, None), DECISIONS_VALID_FOR);
        let cut_off = EdgeProgress { total: 1, programmed: 1, others: true, ..EdgeProgress::default() };
        assert_eq!(delivered.settled_at(&cut_off) - begun, EDGES_TIMEOUT);
    }
}
