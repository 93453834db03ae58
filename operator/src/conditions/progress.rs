//! How many edges run a configuration, as the condition Programmed.

use tokio::time::Instant;
use wirepost_core::contract::condition::Reason;

use super::{ConditionState, summarize};

/// A share of the edges, in percent, rounded up to whole edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u8);

impl Share {
    /// Of 1 to 100 percent.
    pub fn new(percent: u8) -> Self {
        Self(percent.clamp(1, 100))
    }

    /// The share of this many edges.
    pub fn of(self, edges: usize) -> usize {
        (edges * usize::from(self.0)).div_ceil(100)
    }
}

/// How far the edges are with one business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeProgress {
    /// Ready edges.
    pub total: usize,
    /// How many of them must run this, so that it counts as programmed.
    pub needed: usize,
    /// Those that run exactly this.
    pub programmed: usize,
    /// When the last of these was seen to do so.
    pub since: Option<Instant>,
    /// Names of those that run something else.
    pub behind: Vec<String>,
    /// Names of those that do not answer, with the reason.
    pub unreachable: Vec<(String, String)>,
    /// Other edges may run something else: they are not ready, no longer seen, or can't be read. They may still serve clients.
    pub others: bool,
}

impl EdgeProgress {
    /// The condition Programmed.
    pub fn condition(&self) -> ConditionState {
        let Self { total, needed, programmed, since: _, behind, unreachable, others: _ } = self;
        if *total == 0 {
            return ConditionState::not_met(
                Reason::NoEdges,
                "no edge is ready: look at the edge Deployment's pods and their logs",
            );
        }
        if programmed == total {
            return ConditionState::met(Reason::Programmed, "every ready edge runs this generation");
        }
        if programmed >= needed {
            let others: Vec<String> = behind.iter().chain(unreachable.iter().map(|(edge, _)| edge)).cloned().collect();
            let text = format!(
                "enough edges run this generation: {programmed} of {total}, {needed} needed; not known to run it: {}",
                summarize(&others)
            );
            return ConditionState::met(Reason::Programmed, text);
        }
        if let Some((edge, reason)) = unreachable.first()
            && programmed + unreachable.len() >= *needed
        {
            let text = format!(
                "{} of {total} edges don't answer the operator, such as {edge}: {reason}; a NetworkPolicy must let it reach their admin port",
                unreachable.len()
            );
            return ConditionState::unknown(Reason::EdgesUnreachable, text);
        }
        let text = format!("waiting for {} of {total} edges: {}", behind.len(), summarize(behind));
        ConditionState::not_met(Reason::EdgesBehind, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_business_is_programmed_by_a_share_of_the_edges() {
        let of = |total: usize, programmed: usize, unreachable: usize| {
            let names = |n: usize| (0..n).map(|i| format!("edge-{i}"));
            let progress = EdgeProgress {
                total,
                needed: Share::new(80).of(total),
                programmed,
                since: None,
                behind: names(total - programmed - unreachable).collect(),
                unreachable: names(unreachable).map(|name| (name, "timeout".to_owned())).collect(),
                others: false,
            };
            let ConditionState { status, reason, .. } = progress.condition();
            (status, reason)
        };
        assert_eq!(of(0, 0, 0), ("False", Reason::NoEdges));
        for (total, enough) in [(1, 1), (2, 2), (4, 4), (5, 4), (10, 8), (11, 9)] {
            assert_eq!(of(total, enough, 0), ("True", Reason::Programmed), "{total}");
            assert_eq!(of(total, enough - 1, 0), ("False", Reason::EdgesBehind), "{total}");
            assert_eq!(of(total, enough - 1, 1), ("Unknown", Reason::EdgesUnreachable), "{total}");
        }
        assert_eq!(of(10, 5, 2), ("False", Reason::EdgesBehind), "the two that do not answer are not enough");
    }
}
