//! The edges: found by the EndpointSlices of their Service, and asked what they run. Those that are not ready are asked too: a node that
//! is cut off from the control plane may still serve clients. Each is asked with one long poll at a time, so that a
//! change is known within milliseconds and an idle operator sends six requests a minute.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use wirepost_runtime::{readiness::Pending, tasks::Tasks};

use crate::{
    api_client,
    conditions::{EdgeProgress, Share},
    fresh::{Fresh, Listed},
    metrics::Metrics,
    triggers::Triggers,
};

mod clients;
mod missing;
mod poll;
mod slices;

use clients::Clients;
use missing::{Missing, runs};
use poll::ANSWER_TIMEOUT;
use slices::{Found, found};

/// What `/readyz` waits for.
pub const PART: &str = "edges";
/// EndpointSlices change in bursts; those within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug)]
pub struct Edges {
    http: reqwest::Client,
    service: String,
    /// The share of the ready edges that must run a generation before it counts as programmed.
    share: Share,
    /// Whether the edges were listed since this replica leads.
    fresh: Fresh,
    known: Mutex<HashMap<SocketAddr, Edge>>,
    missing: Mutex<Missing>,
    /// Every edge that existed at the start has answered, or failed to.
    first_poll: watch::Sender<bool>,
    /// Numbers of clients.
    clients: Clients,
    begun: Instant,
    triggers: Arc<Triggers>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Edge {
    name: String,
    /// Whether it takes new clients, according to its EndpointSlice.
    ready: bool,
    /// Business → hash; `None` before the first answer.
    hashes: Option<BTreeMap<String, String>>,
    /// The last answer before it stopped answering: it runs this, or something newer.
    last: Option<BTreeMap<String, String>>,
    /// Business → since when its hash is the present one, if it was seen to change.
    since: HashMap<String, Instant>,
    /// The first answer.
    answers_since: Instant,
    /// Ids of the keys that it takes; `None` = not known.
    keys: Option<Vec<String>>,
    /// Business → connections of its clients, as it said last; `None` = it never did.
    connections: Option<BTreeMap<String, u64>>,
    /// Why it does not answer.
    failure: Option<String>,
    cancel: CancellationToken,
}

impl Edges {
    /// Nothing is known yet. `missing_for`: how long an edge that has left counts as one that may run what it had then.
    /// `count_clients`: between two reports of how many clients there are.
    ///
    /// # Errors
    /// The HTTP client can't be created.
    pub fn try_new(
        service: String,
        share: Share,
        missing_for: Duration,
        count_clients: Duration,
        fresh: Fresh,
        triggers: Arc<Triggers>,
        metrics: Arc<Metrics>,
    ) -> reqwest::Result<Self> {
        let http = poll::client()?;
        let (first_poll, _) = watch::channel(false);
        let missing = Mutex::new(Missing::new(missing_for));
        let known = Mutex::default();
        let clients = Clients::new(count_clients);
        Ok(Self {
            http,
            service,
            share,
            fresh,
            known,
            missing,
            first_poll,
            clients,
            begun: Instant::now(),
            triggers,
            metrics,
        })
    }

    /// Returns when each edge that existed at the start was polled once, or soon after the start in any case: a status that reports edges
    /// behind would be wrong before.
    pub async fn first_poll_done(&self) {
        let mut first_poll = self.first_poll.subscribe();
        let _ = timeout_at(self.begun + ANSWER_TIMEOUT, first_poll.wait_for(|done| *done)).await;
    }

    fn update_first_poll(&self, known: &HashMap<SocketAddr, Edge>) {
        if known.values().filter(|edge| edge.ready).all(|edge| edge.hashes.is_some() || edge.failure.is_some()) {
            self.first_poll.send_if_modified(|done| !std::mem::replace(done, true));
        }
    }

    /// How many edges run this configuration of a business.
    pub fn progress(&self, business: &str, hash: &str) -> EdgeProgress {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let total = known.values().filter(|edge| edge.ready).count();
        let needed = self.share.of(total);
        let others = known
            .values()
            .any(|edge| !edge.ready && !runs(edge.hashes.as_ref().or(edge.last.as_ref()), business, hash))
            || self.missing().may_run_another(total, business, hash)
            || !self.fresh.is_listed(Listed::Edges);
        let mut progress = EdgeProgress { total, needed, others, ..EdgeProgress::default() };
        for edge in known.values().filter(|edge| edge.ready) {
            match (&edge.failure, edge.hashes.as_ref().map(|hashes| hashes.get(business))) {
                (_, Some(Some(runs))) if runs == hash => {
                    progress.programmed += 1;
                    let since = edge.since.get(business).copied().unwrap_or(edge.answers_since);
                    progress.since = progress.since.max(Some(since));
                }
                (Some(failure), _) => progress.unreachable.push((edge.name.clone(), failure.clone())),
                _ => progress.behind.push(edge.name.clone()),
            }
        }
        progress.behind.sort();
        progress.unreachable.sort();
        progress
    }

    /// There have been edges: an operator before this one reported them.
    pub fn were_seen(&self) {
        self.missing().any = true;
    }

    fn missing(&self) -> MutexGuard<'_, Missing> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the edges that still run a business, or might.
    pub fn running(&self, business: &str) -> Vec<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let holds =
            |edge: &&Edge| edge.ready && edge.hashes.as_ref().is_none_or(|hashes| hashes.contains_key(business));
        known.values().filter(holds).map(|edge| edge.name.clone()).collect()
    }

    /// Whether every edge takes tickets that this key signed. An edge that does not say counts as one that doesn't.
    pub fn take_key(&self, id: &str) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = |edge: &Edge| {
            edge.failure.is_none() && edge.keys.as_ref().is_some_and(|keys| keys.iter().any(|key| key == id))
        };
        self.fresh.is_listed(Listed::Edges) && known.values().all(takes)
    }

    /// Labels of the EndpointSlices.
    pub fn selector(&self) -> String {
        format!("kubernetes.io/service-name={}", self.service)
    }

    /// Follows the edges by this watch of their EndpointSlices until `cancel`. Each is polled by a task of `tasks`. `pending`: dropped when the
    /// edges were found once.
    pub async fn run(
        self: Arc<Self>,
        slices: impl Stream<Item = watcher::Result<watcher::Event<EndpointSlice>>> + Send,
        pending: Pending,
        tasks: Tasks,
        cancel: CancellationToken,
    ) {
        let mut pending = Some(pending);
        let (store, writer) = reflector::store();
        let events = slices
            .backoff(api_client::watch_backoff())
            .modify(|slice| slice.metadata.managed_fields = None)
            .reflect(writer);
        pin_mut!(events);
        let mut synced = false;
        let mut due: Option<Instant> = None;
        let mut counts = self.clients.ticks();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                event = events.next() => match event {
                    Some(Ok(watcher::Event::InitDone)) => {
                        synced = true;
                        due = None;
                        self.update(found(&store.state()), &tasks, &cancel);
                        pending.take();
                        let first = !self.fresh.is_listed(Listed::Edges);
                        self.fresh.listed(Listed::Edges);
                        if first {
                            self.triggers.trigger_all();
                        }
                    }
                    Some(Ok(_)) => {
                        due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                    }
                    Some(Err(error)) => {
                        self.missing().unreadable = Some(Instant::now());
                        tracing::warn!(%error, "cannot watch the edges' EndpointSlices; trying again");
                    }
                    None => break,
                },
                _ = counts.tick() => self.count_clients(),
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() && synced => {
                    due = None;
                    self.update(found(&store.state()), &tasks, &cancel);
                }
            }
        }
        self.update(BTreeMap::new(), &tasks, &cancel);
    }

    fn update(self: &Arc<Self>, found: BTreeMap<SocketAddr, Found>, tasks: &Tasks, cancel: &CancellationToken) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<SocketAddr> = known.keys().filter(|address| !found.contains_key(address)).copied().collect();
        let mut changed = !gone.is_empty();
        for address in gone {
            if let Some(edge) = known.remove(&address) {
                edge.cancel.cancel();
                self.missing().leaves(edge.hashes.or(edge.last));
            }
        }
        for (address, Found { name, ready }) in found {
            let edge = known.entry(address).or_insert_with(|| {
                changed = true;
                let cancel = cancel.child_token();
                tasks.run("edge poll", &cancel, Arc::clone(self).follow(address, cancel.clone()));
                let answers_since = Instant::now();
                Edge {
                    name,
                    ready,
                    hashes: None,
                    last: None,
                    since: HashMap::new(),
                    answers_since,
                    keys: None,
                    connections: None,
                    failure: None,
                    cancel,
                }
            });
            changed |= std::mem::replace(&mut edge.ready, ready) != ready;
        }
        let ready = known.values().filter(|edge| edge.ready).count();
        self.missing().any |= ready > 0;
        self.metrics.edges.set(i64::try_from(ready).unwrap_or(i64::MAX));
        self.count(&known);
        drop(known);
        if changed {
            self.triggers.trigger_all();
        }
    }

    fn count(&self, known: &HashMap<SocketAddr, Edge>) {
        self.update_first_poll(known);
        let unreachable = known.values().filter(|edge| edge.ready && edge.failure.is_some()).count();
        self.metrics.edges_unreachable.set(i64::try_from(unreachable).unwrap_or(i64::MAX));
    }
}
