//! What request handlers share.

use std::sync::Arc;

use wirepost_runtime::{readiness::Readiness, tasks::Tasks};

use super::{answer::Refusal, log_throttle::LogThrottle};
use crate::{
    broker::Broker,
    business::{Business, check_pool::CheckPool},
    catalog::Catalog,
    config::settings::Settings,
    identity::keys::KeyRing,
    metrics::Metrics,
    socket::{connection_limit::ConnectionLimit, shared::Shared},
};

/// One per process; handlers hold it as `Arc<State>`.
pub struct State {
    /// The process's settings.
    pub settings: Settings,
    /// The businesses.
    pub catalog: Arc<Catalog>,
    /// Signs and verifies tickets.
    pub keys: Arc<KeyRing>,
    /// Publishes and reads.
    pub broker: Arc<dyn Broker>,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// The answer of `/readyz`.
    pub readiness: Readiness,
    /// Checks large content.
    pub checks: Arc<CheckPool>,
    /// Throttles log lines that callers cause.
    pub log_throttle: LogThrottle,
    /// The edge-wide limit of connections.
    pub connection_limit: ConnectionLimit,
    /// What connections share.
    pub sockets: Arc<Shared>,
    /// Tasks of connections.
    pub connections: Tasks,
}

impl State {
    /// The business that a path names.
    pub(super) fn business(&self, name: &str) -> Result<Arc<Business>, Refusal> {
        self.catalog.get(name).ok_or_else(|| Refusal::absent(name, self.catalog.why_absent(name)))
    }
}
