//! A watch of access Secrets, in a namespace where the operator may watch Secrets: one that is deleted or edited by hand is restored within a
//! second instead of within [`Options::secret_check`](crate::reconcile::Options::secret_check).
//!
//! Only metadata is asked for, and only of Secrets that the operator made. Yet RBAC knows neither: the right to watch a namespace's Secrets
//! is the right to read them all, so it is given by a RoleBinding in that namespace alone (`operator.secretsWatch` in the chart).

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use wirepost_core::contract::config_map::OWNER_UID;

use crate::{api_client, reconcile::ResourceStates, triggers::Triggers};

/// Longest pause between attempts: the right may be missing for long.
const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// Follows the access Secrets of a namespace. It has no end of its own. Without the right it keeps asking, at last once a
/// minute: a RoleBinding may be created later.
pub async fn run(client: Client, namespace: String, states: Arc<ResourceStates>, triggers: Arc<Triggers>) {
    let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, &namespace);
    let events = watcher(secrets, api_client::watch(OWNER_UID)).backoff(api_client::backoff(MAX_BACKOFF));
    let mut events = Box::pin(events);
    let mut watch = Watch::default();
    let mut failing = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if failing && !matches!(event, watcher::Event::Init) {
                    tracing::info!(namespace, "watching access Secrets");
                    failing = false;
                }
                for uid in watch.take(event, || triggers.resources_of(&namespace)) {
                    states.secret_changed(&uid);
                    triggers.trigger_resource(&uid);
                }
            }
            Err(error) if !failing => {
                tracing::warn!(namespace, %error, "cannot watch access Secrets, so they are only checked from time to time");
                failing = true;
            }
            Err(_) => {}
        }
    }
}

/// What the watch has shown: name of a Secret → its version.
#[derive(Default)]
struct Watch(HashMap<String, Option<String>>);

impl Watch {
    /// Uids of the resources whose Secrets may have changed. `all`: the uids of the namespace's resources.
    fn take(
        &mut self,
        event: watcher::Event<PartialObjectMeta<Secret>>,
        all: impl FnOnce() -> Vec<String>,
    ) -> Vec<String> {
        let (secret, news) = match event {
            watcher::Event::Init => {
                self.0.clear();
                return Vec::new();
            }
            // What was deleted before this list is not in it, and what was changed before it may have been checked before that.
            watcher::Event::InitDone => return all(),
            watcher::Event::InitApply(secret) => {
                self.insert(&secret);
                return Vec::new();
            }
            watcher::Event::Apply(secret) => {
                let news = self.insert(&secret);
                (secret, news)
            }
            watcher::Event::Delete(secret) => {
                self.0.remove(secret.metadata.name.as_deref().unwrap_or_default());
                (secret, true)
            }
        };
        let owner = secret.metadata.labels.and_then(|mut labels| labels.remove(OWNER_UID));
        owner.filter(|_| news).into_iter().collect()
    }

    /// Whether this version was not known.
    fn insert(&mut self, secret: &PartialObjectMeta<Secret>) -> bool {
        let (name, version) = (secret.metadata.name.clone(), secret.metadata.resource_version.clone());
        self.0.insert(name.unwrap_or_default(), version.clone()) != Some(version)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use super::*;

    fn secret(version: &str) -> PartialObjectMeta<Secret> {
        let metadata = json!({"name": "pay", "resourceVersion": version, "labels": {OWNER_UID: "1"}});
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})).unwrap()
    }

    #[test]
    fn a_change_or_deletion_concerns_the_owner_and_a_list_everybody() {
        let mut watch = Watch::default();
        let mut take = |event| watch.take(event, || vec!["all".to_owned()]);
        assert!(take(Init).is_empty());
        assert!(take(InitApply(secret("1"))).is_empty());
        assert_eq!(take(InitDone), ["all"], "one may have been deleted since it was checked");
        assert_eq!(take(Apply(secret("2"))), ["1"]);
        assert!(take(Apply(secret("2"))).is_empty());
        assert_eq!(take(Delete(secret("2"))), ["1"]);
        assert_eq!(take(Apply(secret("3"))), ["1"]);
        assert!(take(Init).is_empty());
        assert!(take(InitApply(secret("3"))).is_empty());
        assert_eq!(take(InitDone), ["all"]);
    }
}
