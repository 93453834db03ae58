//! The edges as pods: which exist, what their metrics say, and how the others ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use kube::api::ListParams;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Node, SYSTEM};
use crate::broker::eventually;

/// Label selector of the edges' pods.
pub const EDGES: &str = "app.kubernetes.io/component=edge";
/// Their Deployment, which begins their names.
pub const EDGE: &str = "wirepost-edge";

impl Node {
    /// Edges that are not terminating.
    pub async fn edges(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = self.cluster.api(SYSTEM);
        let found = pods.list(&ListParams::default().labels(EDGES)).await?.items;
        Ok(found.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// Waits until no edge is terminating: it would accept clients for a while, and then move them.
    pub(super) async fn none_going(&self) -> Result<()> {
        let pods: Api<Pod> = self.cluster.api(SYSTEM);
        let mut going = pods.list(&ListParams::default().labels(EDGES)).await?.items;
        going.retain(|pod| pod.metadata.deletion_timestamp.is_some());
        self.gone(&going, Duration::from_mins(1)).await
    }

    /// Waits until these pods are gone, drained or killed.
    pub async fn gone(&self, pods: &[Pod], limit: Duration) -> Result<()> {
        let api: Api<Pod> = self.cluster.api(SYSTEM);
        for pod in pods {
            let name = pod.name_any();
            let gone = || async { Ok(api.get_opt(&name).await?.is_none_or(|other| other.uid() != pod.uid())) };
            eventually(&format!("{name} is gone"), limit, gone).await?;
        }
        Ok(())
    }

    /// A series of an edge's metrics, its name with all of its labels.
    pub async fn metric(&self, pod: &str, series: &str) -> Result<f64> {
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:9090/proxy/metrics");
        let text = self.kubectl(&["get", "--raw", &path]).await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("{pod} has no {series}"))?.parse()?)
    }

    /// Sets the number of edges, without waiting for them.
    pub async fn scale(&self, edges: u32) -> Result<()> {
        let (to, what) = (format!("--replicas={edges}"), format!("deployment/{EDGE}"));
        self.kubectl(&["scale", &what, &to, "--namespace", SYSTEM]).await.map(drop)
    }

    /// Memory of each edge in bytes, as the kubelet sees it: without what the kernel can reclaim immediately.
    pub async fn memory(&self) -> Result<BTreeMap<String, u64>> {
        let nodes: Api<ApiNode> = Api::all(self.cluster.client.clone());
        let mut memory = BTreeMap::new();
        for node in nodes.list(&ListParams::default()).await? {
            let path = format!("/api/v1/nodes/{}/proxy/stats/summary", node.name_any());
            let stats: Value = serde_json::from_str(&self.kubectl(&["get", "--raw", &path]).await?)?;
            for pod in stats["pods"].as_array().into_iter().flatten() {
                let name = pod["podRef"]["name"].as_str().unwrap_or_default();
                if let (true, Some(bytes)) = (name.starts_with(EDGE), pod["memory"]["workingSetBytes"].as_u64()) {
                    memory.insert(name.to_owned(), bytes);
                }
            }
        }
        Ok(memory)
    }

    /// Sockets of each edge that is ready and not going.
    pub async fn connections(&self) -> Result<BTreeMap<String, u64>> {
        let mut connections = BTreeMap::new();
        for pod in self.edges().await?.iter().filter(|pod| is_ready(pod)) {
            let pod = pod.name_any();
            let open = self.metric(&pod, "wirepost_edge_connections").await?;
            connections.insert(pod, open as u64);
        }
        Ok(connections)
    }
}

/// Whether a pod counts as an endpoint.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// What is known of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// The image that it runs.
    pub image: String,
    /// Restarts of its container.
    pub restarts: i32,
    /// Exit code and reason of the container that ended last.
    pub ended: Option<(i32, String)>,
    /// Whether the pod is gone.
    pub gone: bool,
}

/// Watches the edges' pods until it is dropped.
pub struct EdgeWatch {
    seen: Arc<Mutex<BTreeMap<String, Fate>>>,
    task: JoinHandle<()>,
}

impl EdgeWatch {
    /// From now on.
    pub async fn of(node: &Node) -> Result<Self> {
        let api: Api<Pod> = node.cluster.api(SYSTEM);
        let seen = Arc::<Mutex<BTreeMap<String, Fate>>>::default();
        let (ready, started) = oneshot::channel();
        let notes = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut ready = Some(ready);
            let events = watcher(api, watcher::Config::default().labels(EDGES));
            pin_mut!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => note(&notes, &pod, false),
                    Ok(watcher::Event::Delete(pod)) => note(&notes, &pod, true),
                    Ok(watcher::Event::InitDone) => drop(ready.take().map(|ready| ready.send(()))),
                    Ok(watcher::Event::Init) => {}
                    Err(error) => eprintln!("the watch of the edges: {error}"),
                }
            }
        });
        started.await?;
        Ok(Self { seen, task })
    }

    /// What is known now.
    pub fn fates(&self) -> BTreeMap<String, Fate> {
        lock(&self.seen).clone()
    }
}

impl Drop for EdgeWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<BTreeMap<String, Fate>>) -> MutexGuard<'_, BTreeMap<String, Fate>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(seen: &Mutex<BTreeMap<String, Fate>>, pod: &Pod, gone: bool) {
    let mut seen = lock(seen);
    let fate = seen.entry(pod.name_any()).or_default();
    fate.gone = gone;
    if let Some(container) = pod.spec.as_ref().and_then(|spec| spec.containers.first()) {
        fate.image = container.image.clone().unwrap_or_default();
    }
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let Some(container) = statuses.and_then(|statuses| statuses.first()) else { return };
    fate.restarts = container.restart_count;
    let mut ended = [&container.state, &container.last_state].into_iter().flatten();
    if let Some(ended) = ended.find_map(|state| state.terminated.as_ref()) {
        fate.ended = Some((ended.exit_code, ended.reason.clone().unwrap_or_default()));
    }
}
