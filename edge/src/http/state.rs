//! What request handlers share.

use std::sync::Arc;

use tokio::time::Instant;
use wirepost_runtime::{
    readiness::{DRAINING, Readiness},
    tasks::{Supervisor, Tasks},
};

use super::{answer::Refusal, description::Descriptions, log_throttle::LogThrottle};
use crate::{
    address::limits::AddressLimits,
    audit::Audit,
    broker::{Broker, Health},
    budget::Budget,
    business::{Business, check_pool::CheckPool},
    catalog::Catalog,
    config::settings::Settings,
    drain::Drain,
    identity::keys::KeyRing,
    metrics::Metrics,
    peers::{Load, Peers},
    push::context::HubContext,
    revocation::gate::Gate,
    socket::{
        connection_limit::ConnectionLimit,
        flood::FloodLimiter,
        inbound::Inbound,
        shared::{RECEIPT_BYTES, Shared},
    },
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
    /// Descriptions of businesses.
    pub descriptions: Descriptions,
    /// Throttles log lines that callers cause.
    pub log_throttle: LogThrottle,
    /// Limits of each client address.
    pub addresses: Arc<AddressLimits>,
    /// The edge-wide limit of connections.
    pub connection_limit: ConnectionLimit,
    /// What connections share.
    pub sockets: Arc<Shared>,
    /// Tasks of connections.
    pub connections: Tasks,
    /// The other edges.
    pub peers: Arc<Peers>,
    /// This process: another one each time that an edge starts.
    pub instance: String,
    /// When it began.
    begun: Instant,
}

impl State {
    /// Of an edge without a business yet.
    pub fn new(
        settings: Settings,
        keys: Arc<KeyRing>,
        broker: Arc<dyn Broker>,
        metrics: Arc<Metrics>,
        readiness: Readiness,
        addresses: Arc<AddressLimits>,
        supervisor: &Supervisor,
    ) -> Self {
        let context = Arc::new(HubContext::new(Arc::clone(&broker), Arc::clone(&metrics), settings.clone()));
        let checks = Arc::clone(&context.checks);
        let instance = context.instance.clone();
        let peers = Arc::new(Peers::new(&settings, &instance, Arc::clone(&keys), Arc::clone(&metrics)));
        Self {
            catalog: Arc::new(Catalog::new(context, supervisor)),
            addresses,
            connection_limit: ConnectionLimit::new(settings.max_connections),
            sockets: Arc::new(Shared {
                gate: Arc::new(Gate::new(Arc::clone(&keys), settings.ticket_ttl, &metrics)),
                checks: Arc::clone(&checks),
                limiter: Arc::new(FloodLimiter::default()),
                inbound: Inbound::new(settings.inbound_bytes, metrics.inbound_bytes.clone()),
                receipts: Budget::new(RECEIPT_BYTES, metrics.receipt_bytes.clone()),
                audit: Arc::new(Audit::new(Arc::clone(&metrics))),
                drain: Drain::default(),
            }),
            keys,
            checks,
            broker,
            metrics,
            readiness,
            descriptions: Descriptions::default(),
            log_throttle: LogThrottle::new(settings.log_pause),
            connections: supervisor.tasks(),
            peers,
            instance,
            begun: Instant::now(),
            settings,
        }
    }

    /// How this edge is, for the others.
    pub fn load(&self) -> Load {
        let count = |number: i64| u64::try_from(number).unwrap_or_default();
        Load {
            edge: self.settings.edge.clone(),
            instance: self.instance.clone(),
            connections: count(self.metrics.connections.get()),
            leaving: count(self.metrics.leaving.get()),
            max_connections: self.settings.max_connections as u64,
            seconds: self.begun.elapsed().as_secs(),
            draining: self.sockets.drain.has_begun() || self.readiness.waits_for(DRAINING),
            broker: *self.broker.health().borrow() == Health::Up,
            peers: self.peers.addresses(),
        }
    }

    /// The business that a path names.
    pub(super) fn business(&self, name: &str) -> Result<Arc<Business>, Refusal> {
        self.catalog.get(name).ok_or_else(|| Refusal::absent(name, self.catalog.why_absent(name)))
    }
}
