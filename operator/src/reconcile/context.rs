//! What all reconciles share.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Client,
    runtime::reflector::{ObjectRef, Store},
};
use wirepost_topology::{OpenQueues, UserLimits};

use super::state::ResourceStates;
use crate::{
    access::ServiceEndpoints, broker::Broker, classes::Classes, config_map, crd_check::CrdGuard, edges::Edges,
    events::Events, metrics::Metrics, seed::Seeds, stored::StoredBusiness, writer::Writer,
};

/// Settings of all reconciles.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything of wirepost is.
    pub namespace: String,
    /// What the businesses' services are given.
    pub endpoints: ServiceEndpoints,
    /// Foreign queues that their owner need not open.
    pub open_queues: OpenQueues,
    /// How long a deletion may take.
    pub deletion_deadline: Duration,
    /// Whether a selector may leave resources to others.
    pub selects: bool,
    /// Between two sweeps; leftovers are searched every few of them.
    pub sweep: Duration,
    /// How long what no resource claims is left alone.
    pub orphan_grace: Duration,
    /// Within which each access Secret is checked, if nothing happens before.
    pub secret_check: Duration,
    /// How long a status waits before it reports what may be over soon.
    pub status_delay: Duration,
    /// Of the broker user of each business.
    pub user_limits: UserLimits,
}

/// See the module.
pub struct Context {
    /// Settings.
    pub options: Options,
    /// The cluster.
    pub client: Client,
    /// Writes to it.
    pub writer: Writer,
    /// The broker.
    pub broker: Broker,
    /// The edges.
    pub edges: Arc<Edges>,
    /// Kubernetes events.
    pub events: Events,
    /// Every resource.
    pub businesses: Store<StoredBusiness>,
    /// Every edge configuration.
    pub config_maps: Store<ConfigMap>,
    /// The platform team's policy.
    pub classes: Arc<Classes>,
    /// What the installed CRD lacks.
    pub crd: Arc<CrdGuard>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What credentials are derived from.
    pub seeds: Arc<Seeds>,
    /// What was learned so far.
    pub states: Arc<ResourceStates>,
}

impl Context {
    /// Returns when everything that a reconcile compares with was read once; `false` when that will not happen any more.
    pub(super) async fn ready(&self) -> bool {
        self.edges.first_poll_done().await;
        self.config_maps.wait_until_ready().await.is_ok()
            && self.businesses.wait_until_ready().await.is_ok()
            && self.classes.listed().await
            && self.crd.checked().await
    }

    /// The edge configuration of a business.
    pub(super) fn config_map(&self, business: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps.get(&ObjectRef::new(&config_map::name(business)).within(&self.options.namespace))
    }
}
