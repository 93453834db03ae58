//! The edges: found by the EndpointSlices of their Service, and asked what they run. Those that are not ready are asked too: a node that
//! is cut off from the control plane may still serve clients. Each is asked with one long poll at a time, so that a
//! change is known within milliseconds and an idle operator sends six requests a minute.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use reqwest::{StatusCode, header};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::contract::configz::{Loaded, PATH};
use wirepost_runtime::{readiness::Pending, tasks::Tasks};

use crate::{
    api_client,
    fresh::Fresh,
    metrics::Metrics,
    triggers::{Listed, Triggers},
};

/// What `/readyz` waits for.
pub const PART: &str = "edges";
/// The name of the admin port in the EndpointSlices.
const PORT: &str = "admin";
/// Seconds that an edge may keep a poll unanswered.
const WAIT_SECONDS: u64 = 10;
/// Longest time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two polls of an edge that answers immediately.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Between two polls of an edge that does not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Largest answer: 10,000 businesses.
const MAX_ANSWER: usize = 4 << 20;
/// Edges that have left, of which it is known what they ran; of more than that it is known of the last ones.
const MAX_MISSING: usize = 256;
/// For how long after a failure of the watch, which retries every few seconds, nothing is certain.
const UNREADABLE_FOR: Duration = Duration::from_secs(30);
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
    begun: Instant,
    triggers: Arc<Triggers>,
    metrics: Arc<Metrics>,
}

/// Edges that the slices no longer name, or that can't be read there: a process that the control plane has lost may still serve clients.
#[derive(Debug, Default)]
struct Missing {
    /// What they ran when they left, and when that was; the oldest first, of the time that they count, at most [`MAX_MISSING`].
    left: VecDeque<(Option<BTreeMap<String, String>>, Instant)>,
    /// There have been edges.
    any: bool,
    /// When the slices could last not be read.
    unreadable: Option<Instant>,
    /// How long an edge that has left may still run what it ran then.
    counts_for: Duration,
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
    /// Why it does not answer.
    failure: Option<String>,
    cancel: CancellationToken,
}

/// A share of the edges, in percent, rounded up to whole edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u8);

impl Share {
    /// Of 1 to 100 percent.
    pub fn new(percent: u8) -> Self {
        Self(percent.clamp(1, 100))
    }

    /// The share of this many edges.
    pub fn of(self, edges: usize) -> usize {
        (edges * usize::from(self.0)).div_ceil(100)
    }
}

/// How far the edges are with one business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeProgress {
    /// Ready edges.
    pub total: usize,
    /// How many of them must run this, so that it counts as programmed.
    pub needed: usize,
    /// Those that run exactly this.
    pub programmed: usize,
    /// When the last of these was seen to do so.
    pub since: Option<Instant>,
    /// Names of those that run something else.
    pub behind: Vec<String>,
    /// Names of those that do not answer, with the reason.
    pub unreachable: Vec<(String, String)>,
    /// Other edges may run something else: they are not ready, no longer seen, or can't be read. They may still serve clients.
    pub others: bool,
}

impl Edges {
    /// Nothing is known yet. `missing_for`: how long an edge that has left counts as one that may run what it had then.
    ///
    /// # Errors
    /// The HTTP client can't be created.
    pub fn try_new(
        service: String,
        share: Share,
        missing_for: Duration,
        fresh: Fresh,
        triggers: Arc<Triggers>,
        metrics: Arc<Metrics>,
    ) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let (first_poll, _) = watch::channel(false);
        let missing = Mutex::new(Missing { counts_for: missing_for, ..Missing::default() });
        let known = Mutex::default();
        Ok(Self { http, service, share, fresh, known, missing, first_poll, begun: Instant::now(), triggers, metrics })
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

    async fn follow(self: Arc<Self>, address: SocketAddr, cancel: CancellationToken) {
        let mut etag: Option<String> = None;
        loop {
            let asked = Instant::now();
            let answer = tokio::select! {
                answer = self.ask(address, etag.as_deref()) => answer,
                () = cancel.cancelled() => return,
            };
            let pause = match answer {
                Ok(Some((hashes, tag))) => {
                    etag = tag;
                    self.polled(address, Some(hashes));
                    POLL_INTERVAL
                }
                Ok(None) => {
                    self.polled(address, None);
                    POLL_INTERVAL
                }
                Err(error) => {
                    // What it answered before counts no more: the next answer must be complete.
                    etag = None;
                    self.poll_failed(address, error.to_string());
                    RETRY_INTERVAL
                }
            };
            tokio::select! {
                () = sleep(pause.saturating_sub(asked.elapsed())) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// `None` = nothing has changed.
    async fn ask(
        &self,
        address: SocketAddr,
        etag: Option<&str>,
    ) -> Result<Option<(BTreeMap<String, String>, Option<String>)>, PollError> {
        let request = match etag {
            Some(etag) => {
                self.http.get(format!("http://{address}{PATH}?wait={WAIT_SECONDS}")).header(header::IF_NONE_MATCH, etag)
            }
            None => self.http.get(format!("http://{address}{PATH}")),
        };
        let mut answer = request.send().await?;
        if answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        if !answer.status().is_success() {
            return Err(PollError::Status(answer.status()));
        }
        let etag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(PollError::TooLong);
            }
        }
        let loaded: Loaded = serde_json::from_slice(&body)?;
        Ok(Some((loaded.businesses, etag)))
    }

    fn polled(&self, address: SocketAddr, hashes: Option<BTreeMap<String, String>>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(edge) = known.get_mut(&address) else { return };
        let back = edge.failure.take().is_some() && edge.ready;
        if back {
            tracing::info!(edge = edge.name, "edge answers again");
        }
        let mut changed = HashSet::new();
        if let Some(hashes) = hashes {
            let now = Instant::now();
            let first = edge.hashes.is_none();
            if first {
                (edge.since, edge.answers_since) = (HashMap::new(), now);
            }
            let before = edge.hashes.take().unwrap_or_default();
            let differs = |(name, hash): &(&String, &String)| before.get(*name) != Some(hash);
            changed.extend(hashes.iter().filter(differs).map(|(name, _)| name.clone()));
            changed.extend(before.keys().filter(|name| !hashes.contains_key(*name)).cloned());
            if !first {
                edge.since.retain(|name, _| hashes.contains_key(name));
                let changed = changed.iter().filter(|name| hashes.contains_key(*name));
                edge.since.extend(changed.map(|name| (name.clone(), now)));
            }
            edge.hashes = Some(hashes);
        }
        self.count(&known);
        drop(known);
        if back {
            self.triggers.trigger_all();
        } else {
            self.triggers.trigger_businesses(&changed);
        }
    }

    fn poll_failed(&self, address: SocketAddr, reason: String) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(edge) = known.get_mut(&address) else { return };
        let first = edge.failure.is_none() && edge.ready;
        if first {
            tracing::warn!(edge = edge.name, reason, "edge does not answer");
        }
        // What it runs is not known now.
        edge.failure = Some(reason);
        if let Some(hashes) = edge.hashes.take() {
            edge.last = Some(hashes);
        }
        self.count(&known);
        drop(known);
        if first {
            self.triggers.trigger_all();
        }
    }

    fn count(&self, known: &HashMap<SocketAddr, Edge>) {
        self.update_first_poll(known);
        let unreachable = known.values().filter(|edge| edge.ready && edge.failure.is_some()).count();
        self.metrics.edges_unreachable.set(i64::try_from(unreachable).unwrap_or(i64::MAX));
    }
}

impl Missing {
    fn leaves(&mut self, ran: Option<BTreeMap<String, String>>) {
        let now = Instant::now();
        self.left.push_back((ran, now));
        while self.left.len() > MAX_MISSING || self.left.front().is_some_and(|(_, left)| now - *left >= self.counts_for)
        {
            self.left.pop_front();
        }
    }

    /// Whether an edge that is not known may run something else of this business. `ready`: how many are ready.
    fn may_run_another(&self, ready: usize, business: &str, hash: &str) -> bool {
        let recent = |(_, left): &&(_, Instant)| left.elapsed() < self.counts_for;
        (ready == 0 && self.any)
            || self.unreadable.is_some_and(|failed| failed.elapsed() < UNREADABLE_FOR)
            || self.left.iter().filter(recent).any(|(ran, _)| !runs(ran.as_ref(), business, hash))
    }
}

/// Whether an edge with this answer certainly runs that configuration of a business, or none of it.
fn runs(hashes: Option<&BTreeMap<String, String>>, business: &str, hash: &str) -> bool {
    hashes.is_some_and(|hashes| hashes.get(business).is_none_or(|runs| runs == hash))
}

/// An edge in an EndpointSlice.
#[derive(Debug, PartialEq)]
struct Found {
    name: String,
    ready: bool,
}

/// Edges by the address of their admin port.
fn found(slices: &[Arc<EndpointSlice>]) -> BTreeMap<SocketAddr, Found> {
    let mut found = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let port = ports.filter(|port| port.name.as_deref() == Some(PORT)).find_map(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let address = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
            let Some(address) = address else { continue };
            let name = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            let address = SocketAddr::new(address, port);
            let edge = Found { name: name.unwrap_or_else(|| address.to_string()), ready };
            // While slices are rewritten an edge may be in two of them.
            let both = found.remove(&address).is_some_and(|other: Found| other.ready);
            found.insert(address, Found { ready: ready || both, ..edge });
        }
    }
    found
}

/// Why an edge's answer is missing.
#[derive(Debug, thiserror::Error)]
enum PollError {
    /// The way to it. The address is in the log already.
    #[error("{}", with_causes(.0))]
    Http(reqwest::Error),
    #[error("{PATH} answers {0}")]
    Status(StatusCode),
    #[error("{PATH} is longer than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("{PATH} is not understood: {0}")]
    Body(#[from] serde_json::Error),
}

impl From<reqwest::Error> for PollError {
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error.without_url())
    }
}

fn with_causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_the_admin_port_are_edges() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 9090}],
            "endpoints": [
                {"addresses": ["198.18.0.1"], "conditions": {"ready": true}, "targetRef": {"name": "edge-1"}},
                {"addresses": ["198.18.0.2"], "conditions": {"ready": false}},
                {"addresses": ["198.18.0.3"]},
            ],
        }))
        .unwrap();
        let found = found(&[Arc::new(slice)]);
        let expected = [
            ("198.18.0.1:9090", "edge-1", true),
            ("198.18.0.2:9090", "198.18.0.2:9090", false),
            ("198.18.0.3:9090", "198.18.0.3:9090", true),
        ];
        let edge = |name: &str, ready| Found { name: name.to_owned(), ready };
        assert_eq!(found, expected.map(|(address, name, ready)| (address.parse().unwrap(), edge(name, ready))).into());
    }

    /// A node that is cut off from the control plane still reaches clients and broker.
    #[tokio::test(start_paused = true)]
    async fn an_edge_that_has_left_or_cannot_be_read_of_may_run_what_it_had() {
        let ran = |hash: &str| Some(BTreeMap::from([("pay".to_owned(), hash.to_owned())]));
        const COUNTS_FOR: Duration = Duration::from_mins(2);
        let mut missing = Missing { counts_for: COUNTS_FOR, ..Missing::default() };
        let others = |missing: &Missing, ready: usize| missing.may_run_another(ready, "pay", "new");
        assert!(!others(&missing, 0), "there never was an edge");
        missing.any = true;
        assert!(others(&missing, 0) && !others(&missing, 1));
        for harmless in [ran("new"), Some(BTreeMap::new())] {
            missing.leaves(harmless);
        }
        assert!(!others(&missing, 1));
        for unsure in [ran("old"), None] {
            missing.leaves(unsure);
            assert!(others(&missing, 1));
            tokio::time::advance(COUNTS_FOR).await;
            assert!(!others(&missing, 1));
        }
        missing.unreadable = Some(Instant::now());
        assert!(others(&missing, 1));
        for _ in 0..2 * MAX_MISSING {
            missing.leaves(None);
        }
        assert_eq!(missing.left.len(), MAX_MISSING);
    }
}
