//! What no reconcile comes for: resources whose finalizer was removed by hand, or that lost the label which `--selector` wants.
//!
//! **Flow.** Every few sweeps, while there is an edge configuration without a resource or others' resources may exist beside ours, all
//! resources are listed, selected or not. Of an edge configuration whose resource
//! - is gone: after the grace it becomes a tombstone, then it is deleted; what is on the broker follows as an orphan;
//! - is being deleted: the same, without the grace, and what it has on the broker is removed first;
//! - is only not selected any more: its clients keep everything, since a wrong selector is an easy mistake; an event reports it.
//!
//! A resource that now belongs to another installation loses this installation's finalizer when its edge configuration is gone; another's
//! finalizer is never touched. A reservation ends when two checks find nothing of the business on the broker.
//!
//! **Guarantees.** Only the edge configuration that was examined is changed (by its `resourceVersion`), never a successor's.
//! **Bounds.** One list of metadata per check.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectMeta},
};
use serde_json::Value;
use tokio::time::{Instant, error::Elapsed, sleep, timeout};
use tokio_util::sync::CancellationToken;

use wirepost_topology::{BusinessOwner, Evidence, Problem};

use super::{Context, Error, finalize};
use crate::{
    config_map::{self, owner, owner_uid as uid},
    stored::{SHARED_FINALIZER, StoredBusiness},
};

/// Between two checks, in sweeps.
const SWEEPS: u32 = 3;
/// Of the list.
const TIMEOUT: Duration = Duration::from_secs(4);

/// See the module.
#[derive(Default)]
struct Leftovers {
    /// Since when a resource is known to be gone, by its uid.
    gone: HashMap<String, Instant>,
    /// Since when its edge configuration is a tombstone, by uid.
    tombstoned_at: HashMap<String, Instant>,
    /// Resources that exist and are not selected, by uid.
    unselected: HashSet<String>,
    /// Reserved business types of which nothing was found on the broker.
    absent: HashSet<String>,
}

/// Checks again and again until `cancel`.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) {
    let mut leftovers = Leftovers::default();
    loop {
        tokio::select! {
            () = sleep(context.options.sweep * SWEEPS) => {}
            () = cancel.cancelled() => return,
        }
        // Not cancelled half-way: what was begun is finished while this replica leads.
        if context.writer.gate().is_ok() && context.ready().await {
            leftovers.check(&context).await;
        }
    }
}

impl Leftovers {
    async fn check(&mut self, context: &Context) {
        self.end_reservations(context).await;
        let maps = context.without_resource();
        let uids: HashSet<&str> = maps.iter().filter_map(|map| uid(map)).collect();
        self.gone.retain(|uid, _| uids.contains(uid.as_str()));
        self.tombstoned_at.retain(|uid, _| uids.contains(uid.as_str()));
        self.unselected.retain(|uid| uids.contains(uid.as_str()));
        if !maps.is_empty() || context.options.selects {
            match list(context).await {
                Ok(all) => {
                    for map in &maps {
                        self.tell_unselected(context, map, &all).await;
                    }
                    // Count all that are gone before the first of them ends.
                    let gone: Vec<&ConfigMap> =
                        maps.iter().map(|map| &**map).filter(|map| self.is_gone(context, map, &all)).collect();
                    let due: Vec<&ConfigMap> =
                        gone.iter().copied().filter(|map| self.is_due(context, map, &all)).collect();
                    let begins = due.iter().any(|map| !config_map::is_tombstone(map));
                    let may_begin = begins && may_begin(context, &gone);
                    for map in due {
                        // The brake holds them: most likely the CustomResourceDefinition is gone, or a selector is wrong.
                        if !may_begin && !config_map::is_tombstone(map) {
                            continue;
                        }
                        if let Err(error) = self.end(context, map, &all).await {
                            let name = map.name_any();
                            tracing::warn!(config_map = name, %error, "cannot remove an edge configuration without a resource; trying again");
                        }
                    }
                    for stored in all.values().filter(|stored| is_let_go(context, stored)) {
                        match context.writer.finalizers(stored, None, &[&context.finalizer()]).await {
                            Ok(()) => tracing::info!(
                                resource = stored.owner(),
                                "removed this installation's finalizer: the resource no longer belongs to it"
                            ),
                            Err(error) => {
                                tracing::warn!(resource = stored.owner(), %error, "cannot remove this installation's finalizer; trying again");
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot list all resources, so edge configurations without a resource are kept for now");
                }
            }
        }
        context.metrics.unselected.set(i64::try_from(self.unselected.len()).unwrap_or(i64::MAX));
    }

    async fn end_reservations(&mut self, context: &Context) {
        let reserved = context.config_maps.state_filter(|map| config_map::reserved_for(map).is_some());
        let mut absent = HashSet::new();
        for map in reserved {
            let Some(business) = config_map::business(&map) else { continue };
            if context.broker.is_present(business) != Some(false) {
                continue;
            }
            if !self.absent.contains(business) {
                absent.insert(business.to_owned());
                continue;
            }
            match context.writer.delete_config_map(&map.name_any(), map.metadata.resource_version.clone()).await {
                Ok(()) => tracing::info!(business, "nothing of the business is left; its business type is free again"),
                Err(error) => {
                    tracing::warn!(business, %error, "cannot end the reservation of the business type; trying again");
                }
            }
        }
        self.absent = absent;
    }

    /// Whether no resource will come back for this edge configuration.
    fn is_gone(&mut self, context: &Context, map: &ConfigMap, all: &HashMap<String, StoredBusiness>) -> bool {
        let Some(uid) = uid(map) else { return false };
        if all.get(uid).is_some_and(|stored| stored.metadata.deletion_timestamp.is_none()) {
            self.gone.remove(uid);
            return false;
        }
        self.unselected.remove(uid);
        if has_successor(context, map) {
            // Its edges go on with this until it runs itself.
            self.gone.remove(uid);
            return false;
        }
        self.gone.entry(uid.to_owned()).or_insert_with(Instant::now);
        true
    }

    /// Whether its resource has been gone for long enough. A resource that is being deleted needs no grace.
    fn is_due(&self, context: &Context, map: &ConfigMap, all: &HashMap<String, StoredBusiness>) -> bool {
        let Some(uid) = uid(map) else { return false };
        all.contains_key(uid) || self.gone.get(uid).is_some_and(|since| since.elapsed() >= context.options.orphan_grace)
    }

    /// Logs each resource once that exists but is no longer selected.
    async fn tell_unselected(&mut self, context: &Context, map: &ConfigMap, all: &HashMap<String, StoredBusiness>) {
        let Some(stored) = uid(map).and_then(|uid| all.get(uid)) else { return };
        if stored.metadata.deletion_timestamp.is_none() && self.unselected.insert(stored.uid().to_owned()) {
            tracing::warn!(
                resource = stored.owner(),
                "the resource is no longer selected; its edge configuration and broker objects stay"
            );
            context.events.unselected(stored, &map.name_any()).await;
        }
    }

    /// One step of the end of an edge configuration that is due.
    async fn end(
        &mut self,
        context: &Context,
        map: &ConfigMap,
        all: &HashMap<String, StoredBusiness>,
    ) -> Result<(), Error> {
        let Some(uid) = uid(map) else { return Ok(()) };
        let resource = all.get(uid);
        let Some(business) = config_map::business(map) else { return Ok(()) };
        let owner = owner(map);
        if !config_map::is_tombstone(map) {
            tracing::info!(
                business,
                owner,
                "the resource is gone or no longer reconciled; the edges disconnect its clients"
            );
            let mut tombstone = config_map::tombstone(map);
            tombstone.metadata.resource_version.clone_from(&map.metadata.resource_version);
            self.tombstoned_at.insert(uid.to_owned(), Instant::now());
            context.writer.config_map(&tombstone).await?;
            context.brake.ended(business, uid);
            return Ok(());
        }
        let tombstoned_at = self.tombstoned_at.entry(uid.to_owned()).or_insert_with(Instant::now);
        if !context.edges.running(business).is_empty() && tombstoned_at.elapsed() < finalize::EDGE_TIMEOUT {
            return Ok(());
        }
        // No other resource gets the business type as long as this exists.
        if let Some(stored) = resource
            // As it was last declared: lists leave the spec out.
            && let declared = config_map::declared(map, stored).unwrap_or_else(|| stored.clone())
            && !clean(business, &declared, context).await
        {
            return Ok(());
        }
        let mut reservation = config_map::reservation(map);
        reservation.metadata.resource_version.clone_from(&map.metadata.resource_version);
        context.writer.config_map(&reservation).await?;
        tracing::info!(business, owner, "the edge configuration is removed; its broker objects are orphans now");
        if let Some(stored) = resource {
            let mut own = vec![context.finalizer(), SHARED_FINALIZER.to_owned()];
            own.extend(context.former_finalizer());
            context.writer.finalizers(stored, None, &own.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        }
        Ok(())
    }
}

/// Whether nothing is left on the broker, or the deadline is over.
async fn clean(business: &str, stored: &StoredBusiness, context: &Context) -> bool {
    // Its edge configuration is the record.
    let namespace = stored.metadata.namespace.as_deref().unwrap_or("default").to_owned();
    let owner = BusinessOwner { namespace, evidence: Evidence::Record };
    let obstacle = match context.broker.remove(business, owner, stored.deletes_messages(None)).await {
        Ok(report) if report.problems.iter().all(Problem::is_kept_stream) => return true,
        Ok(report) => finalize::problems(&report),
        Err(failure) => failure.to_string(),
    };
    let over = finalize::deletion_age(stored) >= context.options.deletion_deadline;
    if over {
        context.events.not_cleaned(stored, &obstacle).await;
    }
    over
}

/// Why resources can't be listed.
#[derive(Debug, thiserror::Error)]
enum ListError {
    #[error("the API server did not answer within {TIMEOUT:?}")]
    Timeout(#[from] Elapsed),
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Metadata of every resource, by uid.
async fn list(context: &Context) -> Result<HashMap<String, StoredBusiness>, ListError> {
    let api: Api<StoredBusiness> = Api::all(context.client.clone());
    // From the API server's cache: nothing here depends on the last second.
    let params = ListParams::default().match_any();
    let all = timeout(TIMEOUT, api.list_metadata(&params)).await??;
    let stored = |metadata: ObjectMeta| StoredBusiness { metadata, spec: Value::Null, status: Value::Null };
    Ok(all.items.into_iter().map(|one| stored(one.metadata)).map(|one| (one.uid().to_owned(), one)).collect())
}

/// Whether all that are gone may end together with the requested deletions. Tombstones count as ending: nobody uses them.
fn may_begin(context: &Context, gone: &[&ConfigMap]) -> bool {
    let name = |map: &ConfigMap| config_map::business(map).map(str::to_owned);
    let mut ending: BTreeSet<String> = gone.iter().copied().filter_map(name).collect();
    ending.extend(context.business_types(true));
    let run = context.config_maps.state_filter(|map| !config_map::is_tombstone(map));
    let others = run.iter().filter_map(|map| name(map)).filter(|business| !ending.contains(business)).collect();
    context.brake.may_end(&ending, &others)
}

/// Whether it is an edge configuration, not a reservation.
fn runs(map: &ConfigMap) -> bool {
    config_map::reserved_for(map).is_none()
}

/// Whether the resource was created again, and waits for the broker or for a better declaration.
fn has_successor(context: &Context, map: &ConfigMap) -> bool {
    let is = |stored: &StoredBusiness| {
        stored.metadata.deletion_timestamp.is_none()
            && stored.owner() == owner(map)
            && config_map::business(map) == Some(stored.business_type())
    };
    context.businesses.state_filter(is).iter().any(|stored| context.other_claimant(stored).is_none())
}

/// Whether a resource has this installation's finalizer and nothing else of it: it belongs to another now, and no edge configuration is
/// left.
fn is_let_go(context: &Context, stored: &StoredBusiness) -> bool {
    stored.has_finalizer(&context.finalizer())
        && context.businesses.state_filter(|own| own.uid() == stored.uid()).is_empty()
        && context.config_maps.state_filter(|map| runs(map) && uid(map) == Some(stored.uid())).is_empty()
}
