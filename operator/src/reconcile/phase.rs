//! Whether everything that is no longer declared may be removed from the broker: only once no edge can use it.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;
use wirepost_core::{
    contract::{
        configz::DECISIONS_VALID_FOR,
        edge_config::{BusinessConfig, Delivery},
    },
    names,
};
use wirepost_topology::keeper::Phase;

use super::{Reconcile, state::ResourceState};
use crate::conditions::EdgeProgress;

/// The edge configuration that was last written, or found to be as it should be.
#[derive(Clone, Debug)]
pub(super) struct Delivered {
    /// Of this configuration.
    hash: String,
    /// Of the one that should be delivered; while routes wait it is another.
    declared: String,
    at: Instant,
    /// Queues and the exchange for several businesses that it publishes to, and the stream if it reads one.
    uses: BTreeSet<String>,
}

impl Delivered {
    /// This one, now, for the one with the hash `declared`; `before` keeps its time if it was the same one.
    pub(super) fn update(before: &mut Option<Self>, config: &BusinessConfig, declared: String) {
        let hash = config.hash();
        let at = before.as_ref().filter(|before| before.hash == hash).map_or_else(Instant::now, |before| before.at);
        let queues = config.routes.iter().filter_map(|route| route.queue.clone());
        let stream = (config.delivery == Delivery::Durable).then(|| names::stream(&config.business_type));
        let share = (!config.accepted_by.is_empty()).then(|| names::share_exchange(&config.business_type));
        let waits = config.routes.iter().any(|route| route.receipts_within_seconds.is_some());
        let receipts = waits.then(|| names::receipts_stream(&config.business_type));
        *before = Some(Self { hash, declared, at, uses: queues.chain(stream).chain(share).chain(receipts).collect() });
    }

    /// When no edge uses anything of a former configuration. `timeout`: the longest wait for edges that do not get, or do not report,
    /// the present one: cut off from the API server, or from the operator. After it their clients' messages may end in `unrouted`.
    fn settled_at(&self, progress: &EdgeProgress, timeout: Duration) -> Instant {
        let EdgeProgress { total, programmed, since, others, .. } = progress;
        if programmed < total || *others {
            return self.at + timeout;
        }
        since.map_or(self.at, |since| since.max(self.at)) + DECISIONS_VALID_FOR
    }
}

impl Reconcile<'_> {
    /// How much may be done now to make the broker have what this edge configuration needs, and what of before is in use meanwhile.
    pub(super) fn phase(&self, business: &str, hash: &str) -> (Phase, BTreeSet<String>) {
        match self.until_settled(business, hash) {
            Some(Duration::ZERO) => {
                let uses = |state: &mut ResourceState| state.delivered.as_ref().map(|last| last.uses.clone());
                (Phase::Shrink, self.context.states.of(self.stored, uses).unwrap_or_default())
            }
            _ => (Phase::Grow, BTreeSet::new()),
        }
    }

    /// How long until no edge uses anything else than this, or what was delivered of it as long as routes wait; `None`: nothing was
    /// delivered yet.
    pub(super) fn until_settled(&self, business: &str, hash: &str) -> Option<Duration> {
        let Self { stored, context } = *self;
        let last = context.states.of(stored, |state| state.delivered.clone());
        let delivered = last.filter(|last| last.declared == hash)?;
        let mut progress = context.edges.progress(business, &delivered.hash);
        if progress.total == 0 && stored.status().edges.is_some_and(|edges| edges.total > 0) {
            // They existed before this process.
            context.edges.were_seen();
            progress.others = true;
        }
        let settled_at = delivered.settled_at(&progress, context.options.edges_timeout);
        Some(settled_at.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use wirepost_core::compile::compile_one;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_edges_may_use_is_removed_when_the_last_of_them_has_long_had_the_configuration_or_takes_too_long() {
        const TIMEOUT: Duration = Duration::from_mins(2);
        let business = serde_json::from_value(serde_json::json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "pay"},
            "spec": {"clientTypes": ["app"],
                "routes": [{"messageType": "a", "sendType": "ClientToServer", "queue": {"name": "q"}}]},
        }));
        let config = compile_one(&business.unwrap()).unwrap().config;
        let mut delivered = None;
        Delivered::update(&mut delivered, &config, "what routes wait for".to_owned());
        let begun = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        Delivered::update(&mut delivered, &config, "all".to_owned());
        let delivered = delivered.unwrap();
        assert_eq!((delivered.at, &*delivered.declared), (begun, "all"));
        assert_eq!(delivered.uses, ["wirepost.pay.q.q", "wirepost.pay.stream"].map(str::to_owned).into());
        let settled = |total: usize, programmed: usize, since: Option<Duration>| {
            let since = since.map(|since| begun + since);
            delivered.settled_at(&EdgeProgress { total, programmed, since, ..EdgeProgress::default() }, TIMEOUT) - begun
        };
        assert_eq!(settled(2, 1, Some(Duration::ZERO)), TIMEOUT);
        assert_eq!(settled(2, 2, Some(Duration::from_secs(9))), Duration::from_secs(9) + DECISIONS_VALID_FOR);
        assert_eq!(settled(0, 0, None), DECISIONS_VALID_FOR);
        let cut_off = EdgeProgress { total: 1, programmed: 1, others: true, ..EdgeProgress::default() };
        assert_eq!(delivered.settled_at(&cut_off, TIMEOUT) - begun, TIMEOUT);
    }
}
