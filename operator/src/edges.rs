//! The edges: found by the EndpointSlices of their Service, asked what they run. Each is asked with one long poll at a time, so that a
//! change is known within milliseconds and an idle operator asks six times a minute.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, reflector, watcher},
};
use reqwest::{StatusCode, header};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wirepost_core::contract::configz::{Loaded, PATH};

use crate::{admin::Readiness, api, metrics::Metrics, triggers::Triggers};

/// What `/readyz` waits for.
pub const PART: &str = "edges";
/// The name of the admin port in the EndpointSlices.
const PORT: &str = "admin";
/// Seconds that an edge may hold our question.
const WAIT_SECONDS: u64 = 10;
/// Longest time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two questions to an edge that answers at once, and to one that does not answer.
const PAUSE: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(1);
/// Largest answer: 10,000 businesses.
const MAX_ANSWER: usize = 4 << 20;
/// EndpointSlices change in bursts.
const SETTLE: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug)]
pub struct Edges {
    http: reqwest::Client,
    service: String,
    known: Mutex<HashMap<SocketAddr, Edge>>,
    /// Every edge that there was at the start has answered, or did not.
    met: watch::Sender<bool>,
    begun: Instant,
    triggers: Arc<Triggers>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Edge {
    name: String,
    /// Business → hash; `None` before the first answer.
    hashes: Option<BTreeMap<String, String>>,
    /// Why it does not answer.
    trouble: Option<String>,
    cancel: CancellationToken,
}

/// How far the edges are with one business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Ready edges.
    pub total: usize,
    /// Those that run exactly this.
    pub programmed: usize,
    /// Names of those that run something else.
    pub behind: Vec<String>,
    /// Names of those that do not answer, with the reason.
    pub unreachable: Vec<(String, String)>,
}

impl Edges {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// The HTTP client can't be made.
    pub fn try_new(service: String, triggers: Arc<Triggers>, metrics: Arc<Metrics>) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let (met, _) = watch::channel(false);
        Ok(Self { http, service, known: Mutex::default(), met, begun: Instant::now(), triggers, metrics })
    }

    /// Returns when each edge that there was at the start was heard of, or soon after the start in any case: a status that says that edges
    /// are behind would be wrong before.
    pub async fn met(&self) {
        let mut met = self.met.subscribe();
        let _ = timeout_at(self.begun + ANSWER_TIMEOUT, met.wait_for(|met| *met)).await;
    }

    fn look_whether_met(&self, known: &HashMap<SocketAddr, Edge>) {
        if known.values().all(|edge| edge.hashes.is_some() || edge.trouble.is_some()) {
            self.met.send_if_modified(|met| !std::mem::replace(met, true));
        }
    }

    /// Which edges run this configuration of a business.
    pub fn standing(&self, business: &str, hash: &str) -> Standing {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut standing = Standing { total: known.len(), ..Standing::default() };
        for edge in known.values() {
            match (&edge.trouble, edge.hashes.as_ref().map(|hashes| hashes.get(business))) {
                (_, Some(Some(runs))) if runs == hash => standing.programmed += 1,
                (Some(trouble), _) => standing.unreachable.push((edge.name.clone(), trouble.clone())),
                _ => standing.behind.push(edge.name.clone()),
            }
        }
        standing.behind.sort();
        standing.unreachable.sort();
        standing
    }

    /// Names of the edges that still run a business, or might.
    pub fn holding(&self, business: &str) -> Vec<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |edge: &&Edge| edge.hashes.as_ref().is_none_or(|hashes| hashes.contains_key(business));
        known.values().filter(holds).map(|edge| edge.name.clone()).collect()
    }

    /// Follows the edges until `cancel`.
    pub async fn run(
        self: Arc<Self>,
        client: Client,
        namespace: String,
        readiness: Arc<Readiness>,
        cancel: CancellationToken,
    ) {
        let slices: Api<EndpointSlice> = Api::namespaced(client, &namespace);
        let selector = format!("kubernetes.io/service-name={}", self.service);
        let (store, writer) = reflector::store();
        let events = watcher(slices, api::watch(&selector))
            .backoff(api::after_failures())
            .modify(|slice| slice.metadata.managed_fields = None)
            .reflect(writer);
        pin_mut!(events);
        let tasks = TaskTracker::new();
        let mut synced = false;
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        synced |= matches!(event, watcher::Event::InitDone);
                        due.get_or_insert_with(|| Instant::now() + SETTLE);
                    }
                    Some(Err(error)) => tracing::warn!(%error, "cannot watch the edges' EndpointSlices; trying again"),
                    None => break,
                },
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() && synced => {
                    due = None;
                    self.update(found(&store.state()), &tasks, &cancel);
                    readiness.done(PART);
                }
            }
        }
        self.update(BTreeMap::new(), &tasks, &cancel);
        tasks.close();
        tasks.wait().await;
    }

    fn update(self: &Arc<Self>, found: BTreeMap<SocketAddr, String>, tasks: &TaskTracker, cancel: &CancellationToken) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<SocketAddr> = known.keys().filter(|address| !found.contains_key(address)).copied().collect();
        let mut changed = !gone.is_empty();
        for address in gone {
            if let Some(edge) = known.remove(&address) {
                edge.cancel.cancel();
            }
        }
        for (address, name) in found {
            known.entry(address).or_insert_with(|| {
                changed = true;
                let cancel = cancel.child_token();
                tasks.spawn(Arc::clone(self).follow(address, cancel.clone()));
                Edge { name, hashes: None, trouble: None, cancel }
            });
        }
        self.metrics.edges.set(i64::try_from(known.len()).unwrap_or(i64::MAX));
        self.count(&known);
        drop(known);
        if changed {
            self.triggers.all();
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
                    self.answered(address, Some(hashes));
                    PAUSE
                }
                Ok(None) => {
                    self.answered(address, None);
                    PAUSE
                }
                Err(reason) => {
                    // What it said before counts no more: the next answer must say everything.
                    etag = None;
                    self.silent(address, reason);
                    RETRY
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
    ) -> Result<Option<(BTreeMap<String, String>, Option<String>)>, String> {
        let request = match etag {
            Some(etag) => {
                self.http.get(format!("http://{address}{PATH}?wait={WAIT_SECONDS}")).header(header::IF_NONE_MATCH, etag)
            }
            None => self.http.get(format!("http://{address}{PATH}")),
        };
        let mut answer = request.send().await.map_err(|error| cause(&error.without_url()))?;
        if answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        if !answer.status().is_success() {
            return Err(format!("{PATH} answers {}", answer.status()));
        }
        let etag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| cause(&error.without_url()))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(format!("{PATH} is longer than {MAX_ANSWER} bytes"));
            }
        }
        let loaded: Loaded =
            serde_json::from_slice(&body).map_err(|error| format!("{PATH} is not understood: {error}"))?;
        Ok(Some((loaded.businesses, etag)))
    }

    fn answered(&self, address: SocketAddr, hashes: Option<BTreeMap<String, String>>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(edge) = known.get_mut(&address) else { return };
        let back = edge.trouble.take().is_some();
        if back {
            tracing::info!(edge = edge.name, "edge answers again");
        }
        let mut changed = HashSet::new();
        if let Some(hashes) = hashes {
            let before = edge.hashes.take().unwrap_or_default();
            let differs = |(name, hash): &(&String, &String)| before.get(*name) != Some(hash);
            changed.extend(hashes.iter().filter(differs).map(|(name, _)| name.clone()));
            changed.extend(before.keys().filter(|name| !hashes.contains_key(*name)).cloned());
            edge.hashes = Some(hashes);
        }
        self.count(&known);
        drop(known);
        if back {
            self.triggers.all();
        } else {
            self.triggers.businesses(&changed);
        }
    }

    fn silent(&self, address: SocketAddr, reason: String) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(edge) = known.get_mut(&address) else { return };
        let first = edge.trouble.is_none();
        if first {
            tracing::warn!(edge = edge.name, reason, "edge does not answer");
        }
        // Whatever it ran, nobody knows now.
        edge.trouble = Some(reason);
        edge.hashes = None;
        self.count(&known);
        drop(known);
        if first {
            self.triggers.all();
        }
    }

    fn count(&self, known: &HashMap<SocketAddr, Edge>) {
        self.look_whether_met(known);
        let silent = known.values().filter(|edge| edge.trouble.is_some()).count();
        self.metrics.edges_unreachable.set(i64::try_from(silent).unwrap_or(i64::MAX));
    }
}

/// Addresses of the admin ports of ready edges, with the edges' names.
fn found(slices: &[Arc<EndpointSlice>]) -> BTreeMap<SocketAddr, String> {
    let mut found = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let port = ports.filter(|port| port.name.as_deref() == Some(PORT)).find_map(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let address = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
            if let (true, Some(address)) = (ready, address) {
                let name = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
                let address = SocketAddr::new(address, port);
                found.insert(address, name.unwrap_or_else(|| address.to_string()));
            }
        }
    }
    found
}

fn cause(error: &reqwest::Error) -> String {
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
    fn ready_endpoints_of_the_admin_port_are_edges() {
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
        let expected = [("198.18.0.1:9090", "edge-1"), ("198.18.0.3:9090", "198.18.0.3:9090")];
        assert_eq!(found, expected.map(|(address, name)| (address.parse().unwrap(), name.to_owned())).into());
    }
}
