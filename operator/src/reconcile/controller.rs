//! Which resources are reconciled, and when: those that changed, those that something else asks for, and those whose next check is due.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, TryStreamExt, pin_mut, stream};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt, applier,
        controller::{Config, Error, ReconcileRequest, trigger_self},
        reflector, watcher,
    },
};
use tokio_util::sync::CancellationToken;
use wirepost_runtime::readiness::Pending;

use super::{Context, error_policy, reconcile};
use crate::{
    api_client,
    fresh::{Fresh, Listed},
    metrics::Metrics,
    stored::StoredBusiness,
    triggers::Triggers,
};

/// Changes that come within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// Follows the resources of this installation.
pub struct Controller {
    /// Label selector of the resources; empty = all.
    pub selector: String,
    /// Resources that are reconciled at the same time.
    pub concurrency: u16,
    /// Fills [`Context::businesses`].
    pub store: reflector::store::Writer<StoredBusiness>,
    /// Further reasons to reconcile.
    pub triggers: Arc<Triggers>,
    /// Dropped when all resources were listed once.
    pub listed: Pending,
    /// Counts each list.
    pub fresh: Fresh,
    /// How the API server is reached.
    pub config: kube::Config,
}

impl Controller {
    /// Reconciles until `cancel`; what was begun is finished.
    pub async fn run(self, context: Arc<Context>, cancel: CancellationToken) {
        let config = Config::default().concurrency(self.concurrency).debounce(DEBOUNCE);
        let store = context.businesses.clone();
        let queue = self.queue(context.client.clone(), Arc::clone(&context.metrics), cancel);
        let run = |stored, context| Box::pin(reconcile(stored, context));
        let results = applier(run, error_policy, context, store, queue, config);
        pin_mut!(results);
        while let Some(result) = results.next().await {
            match result {
                // The error policy logs failures; a trigger may come for a resource that is gone.
                Ok(_) | Err(Error::ReconcilerFailed(..) | Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(%error, "the watch of resources is interrupted; trying again"),
            }
        }
    }

    fn queue(
        self,
        client: Client,
        metrics: Arc<Metrics>,
        cancel: CancellationToken,
    ) -> impl Stream<Item = Result<ReconcileRequest<StoredBusiness>, watcher::Error>> + Send + use<> {
        let Self { selector, concurrency: _, store, triggers, listed, fresh, config } = self;
        let mut listed = Some(listed);
        let all = |client, _: &str| Api::<StoredBusiness>::all(client);
        let changes = fresh
            .watch(client, config, Listed::Resources, all, "", api_client::watch(&selector))
            .backoff(api_client::watch_backoff())
            .reflect(store)
            .inspect_ok({
                let triggers = Arc::clone(&triggers);
                move |event| {
                    match event {
                        // A resource that waited for its business type has it now.
                        watcher::Event::Delete(gone) => triggers.trigger_business(gone.business_type()),
                        // Resources that were deleted while the watch was interrupted are missing only now.
                        watcher::Event::InitDone => {
                            triggers.listed(Listed::Resources);
                            fresh.listed(Listed::Resources);
                            triggers.trigger_all();
                            listed.take();
                        }
                        _ => {}
                    }
                    metrics.businesses.set(triggers.known());
                }
            })
            .applied_objects();
        stream::select(trigger_self(changes, ()), triggers.stream().map(|object| Ok(ReconcileRequest::from(object))))
            .take_until(cancel.cancelled_owned())
    }
}
