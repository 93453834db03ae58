//! What request handlers and connections share.

use std::sync::Arc;

use wirepost_runtime::{readiness::Readiness, tasks::Tasks};

use super::seldom::Seldom;
use crate::{
    broker::Broker,
    business::judge::Judge,
    catalog::Catalog,
    config::settings::Settings,
    drain::Drain,
    identity::keys::KeyRing,
    metrics::Metrics,
    socket::{charge::Charges, inbound::Inbound, places::Places},
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
    /// Where shutdown stands.
    pub drain: Drain,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// The edge-wide limit of connections.
    pub places: Places,
    /// What identities owe for input that brings nothing.
    pub charges: Arc<Charges>,
    /// Checks large content.
    pub judge: Judge,
    /// Room for clients' messages that have begun.
    pub inbound: Arc<Inbound>,
    /// When to write a log line that strangers cause.
    pub seldom: Seldom,
    /// Tasks of connections.
    pub connections: Tasks,
}
