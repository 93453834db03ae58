//! The watch of edge configurations: what others change in them is written again.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use wirepost_runtime::readiness::Pending;

use crate::{
    acceptances::Acceptances,
    api_client,
    config_map::business,
    fresh::{Fresh, Listed},
    triggers::Triggers,
};

/// Follows the edge configurations of a namespace by this watch, without an end. `listed`: dropped once all are listed.
pub async fn follow(
    watch: impl Stream<Item = watcher::Result<watcher::Event<ConfigMap>>>,
    store: reflector::store::Writer<ConfigMap>,
    triggers: Arc<Triggers>,
    fresh: Fresh,
    listed: Pending,
) {
    let mut listed = Some(listed);
    let mut acceptances = Acceptances::default();
    let events = watch
        .backoff(api_client::watch_backoff())
        .modify(|config_map| config_map.metadata.managed_fields = None)
        .reflect(store);
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(changed)) => {
                if let Some(business) = business(&changed) {
                    triggers.trigger_business(business);
                }
                triggers.trigger_businesses(&acceptances.applied(&changed));
            }
            Ok(watcher::Event::Delete(gone)) => {
                if let Some(business) = business(&gone) {
                    triggers.trigger_business(business);
                    triggers.trigger_businesses(&acceptances.gone(business));
                }
            }
            // All are triggered at its end.
            Ok(watcher::Event::Init) => acceptances.begin(),
            Ok(watcher::Event::InitApply(present)) => drop(acceptances.applied(&present)),
            Ok(watcher::Event::InitDone) => {
                triggers.listed(Listed::EdgeConfigurations);
                fresh.listed(Listed::EdgeConfigurations);
                listed.take();
                triggers.trigger_all();
            }
            Err(error) => tracing::warn!(%error, "the watch of edge configurations is interrupted; trying again"),
        }
    }
}
