//! Which businesses have to be reconciled again, for reasons that are not in their resources. Each is in the set once, so that it is bounded
//! by the number of resources however often something happens.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{Stream, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::Notify;
use wirepost_core::contract::config_map::ANY_NAMESPACE;

use crate::{config_map, fresh::Listed, stored::StoredBusiness};

/// See the module.
#[derive(Debug)]
pub struct Triggers {
    pending: Mutex<HashSet<ObjectRef<StoredBusiness>>>,
    woken: Notify,
    all: Store<StoredBusiness>,
    edge_configurations: Store<ConfigMap>,
    /// Whether all resources and all edge configurations were listed once.
    listed: [AtomicBool; 2],
}

impl Triggers {
    /// For the resources in `all`.
    pub fn new(all: Store<StoredBusiness>, edge_configurations: Store<ConfigMap>) -> Self {
        let listed = [AtomicBool::new(false), AtomicBool::new(false)];
        Self { pending: Mutex::default(), woken: Notify::new(), all, edge_configurations, listed }
    }

    /// From now on a resource or edge configuration that is not listed does not exist.
    pub fn listed(&self, what: Listed) {
        if let Some(listed) = self.listed.get(what as usize) {
            listed.store(true, Ordering::Relaxed);
        }
    }

    /// Every resource.
    pub fn trigger_all(&self) {
        self.add(self.all.state().iter().map(|stored| ObjectRef::from(&**stored)));
    }

    /// The resources that claim these business types.
    pub fn trigger_businesses(&self, names: &HashSet<String>) {
        if !names.is_empty() {
            let claims = self.all.state_filter(|stored| names.contains(stored.business_type()));
            self.add(claims.iter().map(|stored| ObjectRef::from(&**stored)));
        }
    }

    /// The resources that claim this business type.
    pub fn trigger_business(&self, name: &str) {
        let claims = self.all.state_filter(|stored| stored.business_type() == name);
        self.add(claims.iter().map(|stored| ObjectRef::from(&**stored)));
    }

    /// The resource with this uid.
    pub fn trigger_resource(&self, uid: &str) {
        let resources = self.all.state_filter(|stored| stored.uid() == uid);
        self.add(resources.iter().map(|stored| ObjectRef::from(&**stored)));
    }

    /// The resources of a namespace; their uids.
    pub fn resources_of(&self, namespace: &str) -> Vec<String> {
        let resources = self.all.state_filter(|stored| stored.metadata.namespace.as_deref() == Some(namespace));
        resources.iter().map(|stored| stored.uid().to_owned()).collect()
    }

    /// How many resources there are.
    pub fn known(&self) -> i64 {
        i64::try_from(self.all.len()).unwrap_or(i64::MAX)
    }

    /// Business types that any resource claims or any edge may run; `None` while that is not known. An edge configuration counts, so that a
    /// selector that is wrong by mistake takes nothing away under clients; a reservation runs nothing, but what is reserved for nobody waits as
    /// it is for an administrator.
    pub fn claimed(&self) -> Option<BTreeSet<String>> {
        if !self.listed.iter().all(|listed| listed.load(Ordering::Relaxed)) {
            return None;
        }
        let resources = self.all.state();
        let configurations = self.edge_configurations.state();
        let run = configurations.iter().filter(|map| config_map::reserved_for(map).is_none_or(str::is_empty));
        let run = run.filter_map(|map| config_map::business(map).map(str::to_owned));
        // A resource that waits for a reserved business type must not block the one for which it is reserved.
        let reserved: HashSet<(&str, &str)> = configurations
            .iter()
            .filter_map(|map| Some((config_map::business(map)?, config_map::reserved_for(map)?)))
            .filter(|(_, namespace)| *namespace != ANY_NAMESPACE)
            .collect();
        let waits = |stored: &StoredBusiness| {
            let own = stored.metadata.namespace.as_deref().unwrap_or("default");
            reserved.iter().any(|(business, namespace)| *business == stored.business_type() && *namespace != own)
        };
        let claimed = resources.iter().filter(|stored| !waits(stored)).map(|stored| stored.business_type().to_owned());
        Some(claimed.chain(run).collect())
    }

    /// Whether this installation has a record that it created what is on the broker, at a time when vhosts had no marker.
    pub fn made(&self, live: &[&str], left: &[&str]) -> bool {
        let uids = self.all.state().iter().map(|stored| stored.uid().to_owned()).collect();
        made(live, left, &self.edge_configurations.state(), &uids)
    }

    fn add(&self, refs: impl Iterator<Item = ObjectRef<StoredBusiness>>) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).extend(refs);
        self.woken.notify_one();
    }

    /// What was triggered, for the controller. One reader.
    pub fn stream(self: Arc<Self>) -> impl Stream<Item = ObjectRef<StoredBusiness>> + Send + 'static {
        stream::unfold((self, Vec::new()), async |(triggers, mut ready)| {
            loop {
                if let Some(next) = ready.pop() {
                    return Some((next, (triggers, ready)));
                }
                // A permit is kept while nothing waits for it, so that nothing is missed between the two lines.
                ready.extend(triggers.pending.lock().unwrap_or_else(PoisonError::into_inner).drain());
                if ready.is_empty() {
                    triggers.woken.notified().await;
                }
            }
        })
    }
}

/// Whether these edge configurations show that most businesses of a vhost are an installation's. `live`: those that receive; `left`: those
/// with any object; `uids`: of all resources.
///
/// An edge configuration is written after the broker's objects, so it proves that they were created. At least one must belong to an existing
/// resource, since a backup restored from another cluster has other uids. Some businesses may have none: leftovers of `wirepost dev`, or a
/// business that ended while the broker was away. They get the grace of any orphan. If no business receives, reservations are the record.
fn made(live: &[&str], left: &[&str], configurations: &[Arc<ConfigMap>], uids: &HashSet<String>) -> bool {
    let of: HashMap<&str, &ConfigMap> =
        configurations.iter().filter_map(|map| Some((config_map::business(map)?, &**map))).collect();
    let are_most = |known: usize, all: usize| known * 2 > all;
    if live.is_empty() {
        let is_reserved =
            |business: &&&str| of.get(**business).is_some_and(|map| config_map::reserved_for(map).is_some());
        return are_most(left.iter().filter(is_reserved).count(), left.len());
    }
    let known: Vec<&ConfigMap> = live.iter().filter_map(|business| of.get(business).copied()).collect();
    let is_of_a_resource = |map: &&ConfigMap| config_map::owner_uid(map).is_some_and(|uid| uids.contains(uid));
    are_most(known.len(), live.len()) && known.iter().any(is_of_a_resource)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn most_businesses_of_an_upgraded_installation_are_known_by_their_edge_configurations() {
        let map = |business: &str, uid: &str| {
            from_value::<ConfigMap>(json!({"metadata": {
                "name": config_map::name(business),
                "annotations": {"wirepost.dev/owner": format!("shop/{business}"), "wirepost.dev/owner-uid": uid},
            }}))
            .unwrap()
        };
        let uids = HashSet::from(["1".to_owned()]);
        let is_made = |live: &[&str], left: &[&str], maps: &[ConfigMap]| {
            let maps: Vec<_> = maps.iter().cloned().map(Arc::new).collect();
            made(live, left, &maps, &uids)
        };
        let pay = map("pay", "1");
        assert_eq!(config_map::owner_uid(&pay), Some("1"));
        assert!(is_made(&["pay"], &["pay"], std::slice::from_ref(&pay)));
        let most = [pay.clone(), map("chat", "gone")];
        assert!(is_made(&["pay", "chat", "dev"], &["pay", "chat", "dev"], &most), "what somebody tried stops nobody");
        assert!(!is_made(&["pay", "a", "b"], &["pay", "a", "b"], &most), "most may be another's");
        assert!(!is_made(&["chat"], &["chat"], &[map("chat", "of another cluster")]), "a restored copy");
        assert!(!is_made(&["pay"], &["pay"], &[]));
        assert!(is_made(&[], &["pay"], &[config_map::reservation(&pay)]), "what is left of a deleted business");
        assert!(!is_made(&[], &["pay"], &[pay]) && !is_made(&[], &["pay"], &[]));
    }
}
