//! One ConfigMap per business in one namespace, selected by a label and followed by a watch.
//!
//! *Flow*: a complete list, then every change as it arrives; changes that arrive together are applied together, in one
//! step of the catalog. A broken watch is resumed with backoff and jitter, with another list if the API server no
//! longer has its position. *Guarantees*: a ConfigMap that can't be read keeps its business's last accepted
//! configuration and affects no other. While the API server is unreachable everything loaded stays. The label
//! `wirepost.dev/removed=true` removes a business immediately; a business whose ConfigMap is merely missing is kept for
//! a while, and the API server is asked again before it is removed. *Rights*: get, list and watch on ConfigMaps of that
//! namespace (`charts/wirepost/files/edge-rules.yaml`).

use std::{collections::VecDeque, future::pending, pin::pin, sync::Arc};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use wirepost_core::contract::config_map::SELECTOR;
use wirepost_runtime::readiness::Pending;

use crate::{
    catalog::{Catalog, Change},
    metrics::Metrics,
};

mod backoff;
mod index;
mod watch_state;

use index::{Actions, ConfigMapIndex, Ignored, Lookup};
use watch_state::WatchState;

/// Seconds after which the API server ends a watch and it is resumed. A silently dead connection is noticed only then;
/// kube's default is 290.
const WATCH_SECONDS: u32 = 60;
/// Longest pause of the API server within an answer, also for lists; above [`WATCH_SECONDS`].
const READ_TIMEOUT: Duration = Duration::from_secs(75);
/// Longest time to read one ConfigMap.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Events that are applied together at most, so that other tasks get to run.
const BATCH: usize = 64;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No configuration.
    #[error(
        "cannot find an API server for --config-namespace: set KUBECONFIG, or run in a pod with a service account: {0}"
    )]
    Config(#[from] Box<kube::config::InferConfigError>),
    /// The configuration can't be used.
    #[error("cannot use the API server's configuration: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// The ConfigMaps of a namespace, by KUBECONFIG or else by the pod's service account. Nothing is requested yet.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(namespace: &str) -> Result<Api<ConfigMap>, ConnectError> {
    let mut config = Config::infer().await.map_err(Box::new)?;
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    let client = Client::try_from(config).map_err(Box::new)?;
    Ok(Api::namespaced(client, namespace))
}

/// See the module.
pub struct ConfigMaps {
    api: Api<ConfigMap>,
    index: ConfigMapIndex,
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
    /// Until the first complete list.
    pending: Option<Pending>,
    /// One at a time.
    lookups: VecDeque<Lookup>,
    watch: WatchState,
    /// The failure that was last logged.
    failure: Option<String>,
}

type Answer = (String, Result<Option<ConfigMap>, String>);

impl ConfigMaps {
    /// Nothing is read yet. `pending` is dropped after the first complete list. `grace`: how long a business is kept
    /// whose ConfigMap is missing.
    pub fn new(
        api: Api<ConfigMap>,
        grace: Duration,
        catalog: Arc<Catalog>,
        metrics: Arc<Metrics>,
        pending: Pending,
    ) -> Self {
        let index = ConfigMapIndex::new(grace);
        let watch = WatchState::default();
        Self { api, index, catalog, metrics, pending: Some(pending), lookups: VecDeque::new(), watch, failure: None }
    }

    /// Follows the namespace until `cancel`.
    pub async fn run(mut self, cancel: CancellationToken) {
        let config = watcher::Config::default().labels(SELECTOR).timeout(WATCH_SECONDS);
        let events = watcher::watcher(self.api.clone(), config).backoff(backoff::after_failures());
        // It never ends on its own.
        let mut events = pin!(events.chain(stream::pending()));
        let mut asking: Option<BoxFuture<'static, Answer>> = None;
        loop {
            if asking.is_none() {
                asking = self.lookups.pop_front().map(|lookup| ask(self.api.clone(), lookup));
            }
            let due = self.index.next_due();
            let recovered = self.watch.next_due();
            let mut step = Step::default();
            tokio::select! {
                () = cancel.cancelled() => return,
                Some(event) = events.next() => self.take(event, &mut step),
                answer = async { if let Some(asking) = asking.as_mut() { asking.await } else { pending().await } } => {
                    asking = None;
                    self.answered(answer, &mut step.out);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.index.due(Instant::now(), &mut step.out);
                }
                () = sleep_until(recovered.unwrap_or_else(Instant::now)), if recovered.is_some() => {
                    if self.watch.due(Instant::now()) {
                        self.recovered();
                    }
                }
            }
            for _ in 1..BATCH {
                let Some(Some(event)) = events.next().now_or_never() else { break };
                self.take(event, &mut step);
            }
            self.carry_out(step);
            // The events of a list are all available already.
            tokio::task::yield_now().await;
        }
    }

    fn take(&mut self, event: watcher::Result<Event<ConfigMap>>, step: &mut Step) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                self.metrics.config_watch_errors.inc();
                self.watch.failed(Instant::now());
                return self.failed(error.to_string(), is_forbidden(&error));
            }
        };
        // It reports an attempt, not an answer.
        if !matches!(event, Event::Init) {
            self.watch.heard();
            self.recovered();
        }
        let (now, out) = (Instant::now(), &mut step.out);
        match event {
            Event::Init => {
                self.watch.list_begins();
                self.index.list_begins();
            }
            Event::InitApply(config_map) => self.index.listed(config_map, now, out),
            Event::InitDone => {
                self.watch.list_ends();
                self.index.list_ends(now, out);
                step.complete = true;
            }
            Event::Apply(config_map) => self.index.apply(&config_map, now, out),
            Event::Delete(config_map) => {
                let name = config_map.metadata.name.unwrap_or_default();
                self.index.delete(&name, now, out);
            }
        }
    }

    fn answered(&mut self, (business, answer): Answer, out: &mut Actions) {
        let answer = answer.map_err(|reason| self.failed(reason, false));
        self.index.answered(&business, answer.as_ref().map(Option::as_ref).map_err(|&()| ()), Instant::now(), out);
    }

    fn carry_out(&mut self, step: Step) {
        let Step { complete, out: Actions { changes, lookups, ignored } } = step;
        self.lookups.extend(lookups);
        for one in ignored {
            self.metrics.bad_configs.inc();
            match one {
                Ignored::Broken { config_map, business, reason } => {
                    tracing::error!(
                        config_map,
                        business,
                        reason,
                        "configuration can't be read; the last good one stays in use"
                    );
                }
                Ignored::Duplicate { config_map, business, decides } => {
                    tracing::error!(
                        config_map,
                        business,
                        decides,
                        "another ConfigMap declares this business and is used; delete one of the two"
                    );
                }
            }
        }
        for change in &changes {
            match change {
                Change::Set(config) => tracing::debug!(business = config.business_type, "configuration changes"),
                Change::Remove(business) => tracing::info!(business, "business removed"),
                // It was logged as ignored.
                Change::Unreadable(_) => {}
            }
        }
        for bad in self.catalog.apply(changes) {
            tracing::error!(reason = %bad, "configuration can't be run; the last good one stays in use");
        }
        self.catalog.set_current(self.watch.is_current());
        if complete {
            self.pending = None;
        }
    }

    fn recovered(&mut self) {
        if self.failure.take().is_some() {
            tracing::info!("the configurations are followed again");
        }
    }

    /// Logged once, not at each attempt.
    fn failed(&mut self, reason: String, forbidden: bool) {
        if self.failure.as_ref() == Some(&reason) {
            return;
        }
        if forbidden {
            tracing::error!(
                reason,
                "the configurations can't be followed: this edge's account needs get, list and watch on configmaps of the namespace"
            );
        } else {
            tracing::warn!(reason, "the configurations are not followed at the moment; what is loaded stays in use");
        }
        self.failure = Some(reason);
    }
}

/// The result of one iteration of the loop.
#[derive(Default)]
struct Step {
    out: Actions,
    /// A list has ended.
    complete: bool,
}

fn ask(api: Api<ConfigMap>, lookup: Lookup) -> BoxFuture<'static, Answer> {
    let Lookup { config_map, business } = lookup;
    async move {
        let answer = match timeout(ANSWER_TIMEOUT, api.get_opt(&config_map)).await {
            Ok(answer) => answer.map_err(|error| format!("asking for ConfigMap {config_map}: {error}")),
            Err(_) => Err(format!("asking for ConfigMap {config_map}: no answer within {ANSWER_TIMEOUT:?}")),
        };
        (business, answer)
    }
    .boxed()
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => matches!(status.code, 401 | 403),
        _ => false,
    }
}
