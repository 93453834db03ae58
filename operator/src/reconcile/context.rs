//! What all reconciles share.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Client,
    runtime::reflector::{ObjectRef, Store},
};
use wirepost_core::{business::DeletionPolicy, contract::config_map::ANY_NAMESPACE};
use wirepost_topology::{OpenQueues, UserLimits};

use super::{finalize::deletion_age, state::ResourceStates};
use crate::{
    access::ServiceEndpoints,
    brake::{Brake, Verdict},
    broker::Broker,
    classes::Classes,
    config_map,
    crd_check::CrdGuard,
    edges::Edges,
    events::Events,
    installation,
    metrics::Metrics,
    seed::Seeds,
    stored::{SHARED_FINALIZER, StoredBusiness, finalizer},
    triggers::Triggers,
    writer::Writer,
};

/// How long another installation has to remove the finalizer that all used to share.
const SHARED_DEADLINE: Duration = Duration::from_mins(10);

/// Settings of all reconciles.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own on the command line")]
pub struct Options {
    /// Where everything of wirepost is.
    pub namespace: String,
    /// The Lease by which one replica leads.
    pub lease: String,
    /// Whether the brake is off: most businesses may end at the same time.
    pub brake: bool,
    /// The installation whose vhost is taken over: it is gone, so its finalizers are ours.
    pub former: Option<String>,
    /// An administrator has the vhost taken over, with everything in it that does not say whose it is.
    pub adopts: bool,
    /// What the businesses' services are given.
    pub endpoints: ServiceEndpoints,
    /// Foreign queues that their owner need not open.
    pub open_queues: OpenQueues,
    /// Hosts that edges may fetch key sets from in any case.
    pub trusted_issuers: Vec<String>,
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
    /// How long a status waits before it reports what often passes.
    pub status_delay: Duration,
    /// Between two reports of how many clients a business has.
    pub count_clients: Duration,
    /// How long what is no longer declared waits for edges that do not report the present configuration.
    pub edges_timeout: Duration,
    /// For the broker user of each business.
    pub user_limits: UserLimits,
    /// Nothing new is accepted without a class.
    pub require_class: bool,
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
    /// Whether many businesses may end at the same time.
    pub brake: Arc<Brake>,
    /// Which installation this is.
    pub installation: installation::Id,
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
    /// Whether the installed CRD of classes lacks fields.
    pub class_crd: Arc<CrdGuard>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What credentials are derived from.
    pub seeds: Arc<Seeds>,
    /// What was learned so far.
    pub states: Arc<ResourceStates>,
    /// Resources that have to be reconciled again.
    pub triggers: Arc<Triggers>,
}

impl Context {
    /// Returns when everything that a reconcile compares with was read once; `false` when that will not happen any more.
    pub(super) async fn ready(&self) -> bool {
        self.edges.first_poll_done().await;
        self.config_maps.wait_until_ready().await.is_ok()
            && self.businesses.wait_until_ready().await.is_ok()
            && self.classes.looked_for().await
            && self.installation.clone().wait_for(Option::is_some).await.is_ok()
            && self.crd.checked().await
    }

    /// Whether the deletion of this resource may go on, given all others.
    pub(super) fn deletion(&self, stored: &StoredBusiness) -> Verdict {
        let others = self.business_types(false);
        let mut ending = self.business_types(true);
        // With a selector that may hide resources, only the check of leftovers knows which are gone.
        if !self.options.selects {
            let gone = self.without_resource();
            ending.extend(gone.iter().filter_map(|map| config_map::business(map).map(str::to_owned)));
        }
        ending.retain(|business| !others.contains(business));
        let map = self.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored));
        let has_begun = map.is_some_and(|map| config_map::is_tombstone(&map));
        self.brake.ask(stored.uid(), has_begun, &ending, &others)
    }

    /// The business types of all resources that are being deleted, or of all others.
    pub(super) fn business_types(&self, deleting: bool) -> BTreeSet<String> {
        let of = |other: &StoredBusiness| other.metadata.deletion_timestamp.is_some() == deleting;
        self.businesses.state_filter(of).iter().map(|other| other.business_type().to_owned()).collect()
    }

    /// Edge configurations whose resource is not reconciled here; no reservations.
    pub(super) fn without_resource(&self) -> Vec<Arc<ConfigMap>> {
        let uids: HashSet<String> = self.businesses.state().iter().map(|stored| stored.uid().to_owned()).collect();
        self.config_maps.state_filter(|map| {
            config_map::reserved_for(map).is_none() && config_map::owner_uid(map).is_some_and(|uid| !uids.contains(uid))
        })
    }

    /// This installation's finalizer. The id is known once [`Self::ready`].
    pub(super) fn finalizer(&self) -> String {
        finalizer(self.installation.borrow().as_deref().unwrap_or_default())
    }

    /// The finalizer of the installation whose vhost was taken over: nobody else can remove it any more.
    pub(super) fn former_finalizer(&self) -> Option<String> {
        self.options.former.as_deref().map(finalizer)
    }

    /// This installation's finalizers of a resource: its own, its predecessor's, and the formerly shared one if this installation set it. It
    /// did so on every resource that it runs: another would have left the resource and its finalizer alone.
    pub(super) fn own_finalizers(&self, stored: &StoredBusiness) -> Vec<String> {
        let runs = self.config_map(stored.business_type()).is_some_and(|map| config_map::is_of(&map, stored));
        // If this installation selects the resource and no other claims it, most likely too.
        let late = stored.metadata.deletion_timestamp.is_some()
            && deletion_age(stored) >= self.options.deletion_deadline.max(SHARED_DEADLINE);
        let shared = (runs || !self.options.selects || late).then(|| SHARED_FINALIZER.to_owned());
        let own = [Some(self.finalizer()), self.former_finalizer(), shared].into_iter().flatten();
        own.filter(|finalizer| stored.has_finalizer(finalizer)).collect()
    }

    /// The resource that owns the business type of this one, if it is another one seen here.
    pub(super) fn other_claimant(&self, stored: &StoredBusiness) -> Option<String> {
        let map = self.config_map(stored.business_type());
        let incumbent = map.as_deref().and_then(config_map::owner_uid);
        stored.other_claimant(&self.businesses, incumbent, |claimant| {
            // What was accepted goes on, even if its class forbids it now.
            let (runs, is_anothers) = self.states.of(claimant, |state| (state.accepted.is_some(), state.is_anothers));
            let is_anothers = is_anothers || map.as_deref().is_some_and(|map| is_for_another(map, claimant));
            runs || (!is_anothers && self.classes.may_own(claimant))
        })
    }

    /// The deletion policy of a resource's class, which counts if the resource has none. `None` for an unknown class.
    pub(super) fn deletion_default(&self, stored: &StoredBusiness) -> Option<DeletionPolicy> {
        let class = self.classes.of(stored.class_name()).ok().flatten()?;
        class.resource.spec.defaults.as_ref()?.deletion_policy
    }

    /// Other businesses that accept messages of this one. Each has its exchanges on the broker: its edge configuration
    /// is written after them.
    pub(super) fn acceptors(&self, business: &str) -> BTreeSet<String> {
        let accepts = |map: &ConfigMap| {
            !config_map::is_tombstone(map) && config_map::accepts_from(map).any(|accepted| accepted == business)
        };
        let maps = self.config_maps.state_filter(accepts);
        let names = maps.iter().filter_map(|map| config_map::business(map)).filter(|other| *other != business);
        names.map(str::to_owned).collect()
    }

    /// Whether a business runs.
    pub(super) fn runs(&self, business: &str) -> bool {
        self.config_map(business).is_some_and(|map| !config_map::is_tombstone(&map))
    }

    /// The edge configuration of a business.
    pub(super) fn config_map(&self, business: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps.get(&ObjectRef::new(&config_map::name(business)).within(&self.options.namespace))
    }
}

/// Whether it reserves the business type for another namespace than that of a resource which claims it.
fn is_for_another(map: &ConfigMap, claimant: &StoredBusiness) -> bool {
    let own = claimant.metadata.namespace.as_deref().unwrap_or("default");
    config_map::reserved_for(map).is_some_and(|namespace| namespace != own && namespace != ANY_NAMESPACE)
}
