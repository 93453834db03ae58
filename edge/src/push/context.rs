//! What all hubs of a process share.

use std::sync::Arc;

use super::{backlog::BacklogBudget, log::LogBudget, pages::PageCache, rejection::Rejection};
use crate::{
    broker::Broker,
    budget::Budget,
    business::{census::Tallies, check_pool::CheckPool, events::Teller, peers::Peers},
    config::settings::Settings,
    ids,
    metrics::{Metrics, label},
    reads::Reads,
};

/// Bytes of pushes whose receipts are awaited, of all businesses.
const FOLLOWED_BYTES: usize = 64 << 20;

/// See the module.
pub struct HubContext {
    /// Reads and publishes.
    pub broker: Arc<dyn Broker>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Bounds and intervals.
    pub settings: Settings,
    /// Bytes on their way to all sockets.
    pub backlog: Arc<BacklogBudget>,
    /// Bytes of all logs.
    pub budget: Arc<LogBudget>,
    /// Pushes whose receipts are awaited.
    pub followed: Budget,
    /// Reads of those who judge them.
    pub judge_reads: Reads,
    /// Checks large content.
    pub checks: Arc<CheckPool>,
    /// Pages of streams for clients that catch up.
    pub pages: PageCache,
    /// What the events of each business have told.
    pub tallies: Tallies,
    /// This process: another one each time that an edge starts.
    pub instance: String,
    /// All businesses, as each of them sees the others.
    pub peers: Arc<Peers>,
}

impl HubContext {
    /// With the bounds from `settings`.
    pub fn new(broker: Arc<dyn Broker>, metrics: Arc<Metrics>, settings: Settings) -> Self {
        // Alerts watch their growth, see `Metrics`.
        for kind in Rejection::LABELS {
            metrics.rejected_pushes.get_or_create_owned(&label(kind));
        }
        Self {
            broker,
            budget: Arc::new(LogBudget::new(settings.log_bytes, metrics.log_bytes.clone())),
            followed: Budget::new(FOLLOWED_BYTES, metrics.followed_bytes.clone()),
            judge_reads: Reads::new(metrics.judge_reads_waiting.clone()),
            backlog: BacklogBudget::new(settings.backlog_bytes, &metrics),
            checks: Arc::new(CheckPool::new(metrics.checks_waiting.clone())),
            pages: PageCache::new(settings.catch_up_readers, metrics.page_bytes.clone()),
            tallies: Tallies::default(),
            instance: ids::new(),
            peers: Arc::default(),
            metrics,
            settings,
        }
    }

    /// Who tells the events.
    pub fn teller(&self) -> Teller<'_> {
        Teller { edge: &self.settings.edge, instance: &self.instance }
    }
}
