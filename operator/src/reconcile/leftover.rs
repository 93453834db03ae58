//! What no reconcile comes for: resources whose finalizer was taken off by hand, or that lost the label which `--selector` wants.
//!
//! **Flow.** Every few sweeps, while there is an edge configuration without a resource or others' resources may exist beside ours, all
//! resources are listed, selected or not. Of an edge configuration whose resource
//! - is gone: after the grace the edges are told, then it goes; what is on the broker follows as unclaimed;
//! - is being deleted: the same, at once, and what it has on the broker goes first;
//! - is only not selected any more: nothing is taken from its clients, since a wrong selector is a mistake that is easily made; an event
//!   says so.
//!
//! A resource that is being deleted beyond the deadline, and that nobody lets go, is let go: another installation may have had it.
//! **Guarantees.** Only the edge configuration that was looked at is changed (by its `resourceVersion`), never a successor's.
//! **Bounds.** One list of metadata per look.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectMeta},
};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Context, Error, remove, some};
use crate::{
    config_map::{self, owner, owner_uid as uid},
    stored::Stored,
};

/// Between two looks, in sweeps.
const SWEEPS: u32 = 3;
/// Of the list.
const TIMEOUT: Duration = Duration::from_secs(4);

/// See the module.
#[derive(Default)]
struct Leftovers {
    /// Since when a resource is known to be gone, by its uid.
    gone: HashMap<String, Instant>,
    /// When the edges were told, by uid.
    told: HashMap<String, Instant>,
    /// Resources that are there and not selected, by uid.
    unselected: HashSet<String>,
}

/// Looks until `cancel`.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) {
    let mut leftovers = Leftovers::default();
    loop {
        tokio::select! {
            () = sleep(context.options.sweep * SWEEPS) => {}
            () = cancel.cancelled() => return,
        }
        // To its end: what was begun is finished while this replica leads.
        if context.writer.gate().is_ok() && context.ready().await {
            leftovers.look(&context).await;
        }
    }
}

impl Leftovers {
    async fn look(&mut self, context: &Context) {
        let maps = without_resource(context);
        let uids: HashSet<&str> = maps.iter().filter_map(|map| uid(map)).collect();
        self.gone.retain(|uid, _| uids.contains(uid.as_str()));
        self.told.retain(|uid, _| uids.contains(uid.as_str()));
        self.unselected.retain(|uid| uids.contains(uid.as_str()));
        if !maps.is_empty() || context.options.selects {
            match list(context).await {
                Ok(all) => {
                    for map in &maps {
                        if let Err(error) = self.one(context, map, &all).await {
                            let name = map.name_any();
                            tracing::warn!(config_map = name, %error, "stays for now, though nobody reconciles its resource");
                        }
                    }
                    for stored in all.values().filter(|stored| is_stuck(context, stored)) {
                        match context.writer.hold(stored, false).await {
                            Ok(()) => tracing::info!(resource = stored.owner(), "let go: nobody else did"),
                            Err(error) => tracing::warn!(resource = stored.owner(), %error, "not let go"),
                        }
                    }
                }
                Err(error) => tracing::warn!(error, "cannot list all resources; what has none stays for now"),
            }
        }
        context.metrics.unselected.set(i64::try_from(self.unselected.len()).unwrap_or(i64::MAX));
    }

    async fn one(&mut self, context: &Context, map: &ConfigMap, all: &HashMap<String, Stored>) -> Result<(), Error> {
        let Some(uid) = uid(map) else { return Ok(()) };
        let resource = all.get(uid);
        if let Some(stored) = resource.filter(|stored| stored.metadata.deletion_timestamp.is_none()) {
            self.gone.remove(uid);
            if self.unselected.insert(uid.to_owned()) {
                tracing::warn!(resource = stored.owner(), "not selected any more; its edges and broker objects stay");
                context.notices.unselected(stored, &map.name_any()).await;
            }
            return Ok(());
        }
        self.unselected.remove(uid);
        if has_successor(context, map) {
            // Its edges go on with this until it runs itself.
            self.gone.remove(uid);
            return Ok(());
        }
        let since = *self.gone.entry(uid.to_owned()).or_insert_with(Instant::now);
        if resource.is_none() && since.elapsed() < context.options.orphan_grace {
            return Ok(());
        }
        let Some(business) = config_map::business(map) else { return Ok(()) };
        let owner = owner(map);
        if !config_map::is_tombstone(map) {
            tracing::info!(business, owner, "nobody reconciles the resource any more; its edges let its clients go");
            let mut tombstone = config_map::tombstone(map);
            tombstone.metadata.resource_version.clone_from(&map.metadata.resource_version);
            self.told.insert(uid.to_owned(), Instant::now());
            return Ok(context.writer.config_map(&tombstone).await?);
        }
        let told = self.told.entry(uid.to_owned()).or_insert_with(Instant::now);
        if !context.edges.holding(business).is_empty() && told.elapsed() < remove::EDGE_WAIT {
            return Ok(());
        }
        // Nobody else may have the business type while this is there.
        if let Some(stored) = resource
            && !clean(business, stored, context).await
        {
            return Ok(());
        }
        context.writer.delete_config_map(&map.name_any(), map.metadata.resource_version.clone()).await?;
        tracing::info!(business, owner, "its edge configuration went; what is left on the broker follows as unclaimed");
        Ok(())
    }
}

/// Whether nothing is left on the broker, or the deadline has come.
async fn clean(business: &str, stored: &Stored, context: &Context) -> bool {
    let obstacle = match context.broker.remove(business, remove::deletes_messages(stored)).await {
        Ok(report) if report.is_clean() => return true,
        Ok(report) => some(&report.problems.iter().map(ToString::to_string).collect::<Vec<_>>()),
        Err(trouble) => trouble.to_string(),
    };
    let over = remove::age(stored) >= context.options.deletion_deadline;
    if over {
        context.notices.not_cleaned(stored, &obstacle).await;
    }
    over
}

/// Metadata of every resource, by uid.
async fn list(context: &Context) -> Result<HashMap<String, Stored>, String> {
    let api: Api<Stored> = Api::all(context.client.clone());
    // What the API server has at hand: nothing here hangs on the last second.
    let params = ListParams::default().match_any();
    let all = timeout(TIMEOUT, api.list_metadata(&params)).await;
    let all = all.map_err(|_| format!("no answer within {TIMEOUT:?}"))?.map_err(|error| error.to_string())?;
    let stored = |metadata: ObjectMeta| Stored { metadata, spec: Value::Null, status: Value::Null };
    Ok(all.items.into_iter().map(|one| stored(one.metadata)).map(|one| (one.uid().to_owned(), one)).collect())
}

/// Edge configurations that nobody reconciles.
fn without_resource(context: &Context) -> Vec<Arc<ConfigMap>> {
    let resources: HashSet<String> = context.businesses.state().iter().map(|stored| stored.uid().to_owned()).collect();
    context.config_maps.state_filter(|map| uid(map).is_some_and(|uid| !resources.contains(uid)))
}

/// Whether the resource was created again, and waits for the broker or for a better declaration.
fn has_successor(context: &Context, map: &ConfigMap) -> bool {
    let is = |stored: &Stored| {
        stored.metadata.deletion_timestamp.is_none()
            && stored.owner() == owner(map)
            && config_map::business(map) == Some(stored.business_type())
    };
    context.businesses.state_filter(is).iter().any(|stored| stored.rival(&context.businesses).is_none())
}

/// Whether a deletion has waited beyond the deadline for a finalizer that no installation takes off.
fn is_stuck(context: &Context, stored: &Stored) -> bool {
    let not_ours = || context.businesses.state_filter(|own| own.uid() == stored.uid()).is_empty();
    stored.metadata.deletion_timestamp.is_some()
        && stored.is_held()
        && remove::age(stored) >= context.options.deletion_deadline
        && not_ours()
}
