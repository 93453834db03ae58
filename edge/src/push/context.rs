//! What all hubs of a process share.

use std::sync::Arc;

use super::{backlog::BacklogBudget, log::LogBudget, pages::PageCache, rejection::Rejection};
use crate::{
    broker::Broker,
    business::peers::Peers,
    config::settings::Settings,
    metrics::{Metrics, label},
};

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
    /// Pages of streams for clients that catch up.
    pub pages: PageCache,
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
            backlog: BacklogBudget::new(settings.backlog_bytes, &metrics),
            pages: PageCache::new(settings.catch_up_readers, metrics.page_bytes.clone()),
            peers: Arc::default(),
            metrics,
            settings,
        }
    }
}
