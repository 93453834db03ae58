//! Edge configurations of resources that this process does not see (any more): somebody took the finalizer off by hand, or the label that
//! `--selector` wants. Their reconcile never comes, so they are looked for.
//!
//! **Flow.** Every [`Options::sweep`](super::Options) the configurations without a resource are compared with all resources, also those
//! that are not selected. A resource that is gone: after the grace the edges are told, then the configuration goes; what is on the broker
//! follows as unclaimed. One that is being deleted is cleaned up and let go. One that is only not selected: nothing is taken from its
//! clients, since a wrong selector is a mistake that is easily made; an event says so.
//! **Bounds.** One list of resources per look, and only while there is such a configuration.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt, api::ListParams};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Context, Error, remove};
use crate::{
    config_map,
    stored::Stored,
    writer::{OWNER, OWNER_UID},
};

/// Of the list.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a configuration whose resource is gone, by the resource's uid.
struct Gone {
    since: Instant,
    /// When the edges were told.
    told: Option<Instant>,
}

/// Looks until `cancel`.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) {
    let mut gone = HashMap::new();
    let mut unselected = HashSet::new();
    loop {
        tokio::select! {
            () = sleep(context.options.sweep) => {}
            () = cancel.cancelled() => return,
        }
        let look = async {
            if context.writer.gate().is_err() || !context.ready().await {
                return;
            }
            if let Err(error) = look(&context, &mut gone, &mut unselected).await {
                tracing::warn!(%error, "edge configurations without a resource stay for now");
            }
            context.metrics.unselected.set(i64::try_from(unselected.len()).unwrap_or(i64::MAX));
        };
        tokio::select! {
            () = look => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn look(
    context: &Context,
    gone: &mut HashMap<String, Gone>,
    unselected: &mut HashSet<String>,
) -> Result<(), Error> {
    let left = left(context);
    let uids: HashSet<&str> = left.iter().filter_map(|map| uid(map)).collect();
    gone.retain(|uid, _| uids.contains(uid.as_str()));
    unselected.retain(|uid| uids.contains(uid.as_str()));
    if left.is_empty() {
        return Ok(());
    }
    let api: Api<Stored> = Api::all(context.client.clone());
    let all = match timeout(TIMEOUT, api.list(&ListParams::default())).await {
        Ok(Ok(all)) => all.items,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot list all resources");
            return Ok(());
        }
        Err(_) => return Ok(()),
    };
    let all: HashMap<&str, &Stored> = all.iter().map(|stored| (stored.uid(), stored)).collect();
    for map in &left {
        let Some(uid) = uid(map) else { continue };
        match all.get(uid) {
            Some(stored) if stored.metadata.deletion_timestamp.is_some() => {
                remove::run(stored, context).await?;
            }
            Some(stored) => {
                gone.remove(uid);
                if unselected.insert(uid.to_owned()) {
                    tracing::warn!(
                        business = stored.owner(),
                        "not selected any more; its edges and broker objects stay"
                    );
                    context.notices.unselected(stored, &map.name_any()).await;
                }
            }
            None => {
                let known = gone.entry(uid.to_owned()).or_insert_with(|| Gone { since: Instant::now(), told: None });
                end(context, map, known).await?;
            }
        }
    }
    Ok(())
}

/// Configurations that nobody reconciles. Those that were never ours have no uid.
fn left(context: &Context) -> Vec<Arc<ConfigMap>> {
    let resources: HashSet<String> = context.businesses.state().iter().map(|stored| stored.uid().to_owned()).collect();
    context.config_maps.state_filter(|map| uid(map).is_some_and(|uid| !resources.contains(uid)))
}

/// One step towards the end of a configuration whose resource is gone.
async fn end(context: &Context, map: &ConfigMap, known: &mut Gone) -> Result<(), Error> {
    if known.since.elapsed() < context.options.orphan_grace {
        return Ok(());
    }
    let Some(business) = config_map::business(map) else { return Ok(()) };
    let (name, owner) = (map.name_any(), map.annotations().get(OWNER).map(String::as_str).unwrap_or_default());
    // Not if it has become a successor's meanwhile: both writes are of what was looked at.
    if !config_map::is_tombstone(map) {
        tracing::info!(business, owner, "the resource is gone without a deletion; its edges let its clients go");
        let mut tombstone = config_map::tombstone(map);
        tombstone.metadata.resource_version.clone_from(&map.metadata.resource_version);
        known.told = Some(Instant::now());
        return Ok(context.writer.config_map(&tombstone).await?);
    }
    let waited = known.told.get_or_insert_with(Instant::now).elapsed();
    if context.edges.holding(business).is_empty() || waited >= remove::EDGE_WAIT {
        context.writer.delete_config_map(&name, map.metadata.resource_version.clone()).await?;
        tracing::info!(business, owner, "the edge configuration went; objects on the broker follow as unclaimed");
    }
    Ok(())
}

fn uid(map: &ConfigMap) -> Option<&str> {
    map.annotations().get(OWNER_UID).map(String::as_str)
}
