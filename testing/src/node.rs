//! A whole Kubernetes, where pods run: the one that `WIREPOST_TEST_CLUSTER_KUBECONFIG` names, and on it RabbitMQ and the chart, installed
//! as a platform team would.
//!
//! `scripts/with-cluster` sets the variables (`make cluster-test` does it); by hand: `eval "$(tests/cluster/cluster start main)"`.
//! Tests that use it are `#[ignore]`d, since not every machine can hold a cluster. They run one after another, as they share the
//! release: each holds the one permit for the cluster.

mod business;
pub mod crowd;
mod edges;
pub mod faults;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node as ApiNode, Secret, Service as ApiService};
use kube::Api;
use kube::api::ListParams;
use tokio::process::Command;
use wirepost_core::business::WsBusiness;

pub use business::Business;
pub use edges::{EDGE, EDGES, EdgeWatch, Fate, is_ready};

use crate::broker::PATIENCE;
use crate::cluster::Cluster;
use crate::operator::condition_of;
use crate::permits::{Kind, Permit};

/// Where operator, edges and broker are.
pub const SYSTEM: &str = "wirepost";
/// The release, which begins the name of every object of the chart.
pub const RELEASE: &str = "wirepost";

/// A cluster with nodes, seen by its administrator.
pub struct Node {
    /// Its API server.
    pub cluster: Cluster,
    /// Where Services of type `NodePort` are reached.
    pub address: IpAddr,
    /// Of kubectl and helm, before those in `PATH`.
    bin: Option<PathBuf>,
    /// More values for the chart, such as images that this cluster can pull.
    values: Option<PathBuf>,
    http: reqwest::Client,
    _permit: Permit,
}

impl Node {
    /// Connects, once no other test uses the cluster.
    pub async fn connect() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let kubeconfig = variable("WIREPOST_TEST_CLUSTER_KUBECONFIG").context(
            "no cluster with nodes to test with: run `make cluster-test`, or the test under scripts/with-cluster",
        )?;
        let permit = Permit::take(Kind::Cluster).await?;
        let cluster = Cluster::at(&kubeconfig).await?;
        let nodes: Api<ApiNode> = Api::all(cluster.client.clone());
        let address = nodes.list(&ListParams::default()).await?.items.into_iter().find_map(|node| {
            let addresses = node.status?.addresses?;
            addresses.into_iter().find(|address| address.type_ == "InternalIP")?.address.parse().ok()
        });
        Ok(Self {
            cluster,
            address: address.context("no node has an InternalIP")?,
            bin: variable("WIREPOST_TEST_CLUSTER_BIN"),
            values: variable("WIREPOST_TEST_CLUSTER_VALUES"),
            // The Service chooses an edge for each call; on a connection that is kept, a call can also meet its edge's end.
            http: reqwest::Client::builder().no_proxy().timeout(PATIENCE).pool_max_idle_per_host(0).build()?,
            _permit: permit,
        })
    }

    /// Runs kubectl; its output. Errors hold what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run("kubectl", arguments).await
    }

    /// Runs helm; its output. Errors hold what it said.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.run("helm", arguments).await
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let path = self.bin.as_ref().map(|bin| bin.join(program)).filter(|path| path.exists());
        let output = Command::new(path.as_deref().unwrap_or(Path::new(program)))
            .args(arguments)
            .env("KUBECONFIG", &self.cluster.kubeconfig)
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("starting {program}"))?;
        let what = || format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), what());
        String::from_utf8(output.stdout).with_context(what)
    }

    /// Makes the system namespace hold RabbitMQ and the chart, with these `--set` values over `tests/cluster/values.yaml`, and waits until
    /// all of it is ready. What exists is upgraded; edges that are replaced by that have ended.
    pub async fn install(&self, set: &[&str]) -> Result<()> {
        let files = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cluster");
        self.namespace(SYSTEM).await?;
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        self.kubectl(&["label", "namespace", SYSTEM, "--overwrite", enforce]).await?;
        self.kubectl(&["apply", "--namespace", SYSTEM, "--filename", &format!("{files}/rabbitmq.yaml")]).await?;
        self.roll_out(SYSTEM, "statefulset/rabbitmq").await?;
        self.unlock().await?;
        self.upgrade(set).await?;
        self.none_going().await
    }

    /// Gives up what a run that was ended amid an upgrade has left: Helm upgrades nothing that is pending.
    async fn unlock(&self) -> Result<()> {
        let at = [RELEASE, "--namespace", SYSTEM];
        let listed = self.helm(&["list", "--pending", "--short", "--filter", RELEASE, "--namespace", SYSTEM]).await?;
        if listed.lines().all(|name| name != RELEASE) {
            return Ok(());
        }
        // There may be nothing to go back to.
        if self.helm(&[&["rollback"], &at[..], &["--force-conflicts"]].concat()).await.is_err() {
            self.helm(&[&["uninstall"], &at[..], &["--wait"]].concat()).await?;
        }
        Ok(())
    }

    /// Only the chart of [`Node::install`].
    pub async fn upgrade(&self, set: &[&str]) -> Result<()> {
        self.upgrade_to(concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/wirepost"), set).await
    }

    /// The same with the chart of that folder.
    pub async fn upgrade_to(&self, chart: &str, set: &[&str]) -> Result<()> {
        let values = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cluster/values.yaml");
        let mut arguments = vec!["upgrade", "--install", RELEASE, chart, "--namespace", SYSTEM, "--values", values];
        let more = self.values.as_deref().map(|path| path.to_string_lossy());
        if let Some(more) = &more {
            arguments.extend(["--values", more]);
        }
        // Replicas that a test, or the autoscaler, has set are somebody else's field for Helm, which gives up where it finds another number.
        arguments.extend(["--force-conflicts", "--wait", "--timeout", "3m"]);
        for one in set {
            arguments.extend(["--set", one]);
        }
        let installed = self.helm(&arguments).await;
        self.explained(SYSTEM, installed).await.map(drop)
    }

    /// Makes a namespace, where it is missing.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        self.cluster
            .apply_yaml(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"))
            .await
            .with_context(|| format!("namespace {name}"))
    }

    /// Waits until a `deployment/…` or `statefulset/…` is as declared.
    pub async fn roll_out(&self, namespace: &str, what: &str) -> Result<()> {
        let done = self.kubectl(&["rollout", "status", what, "--namespace", namespace, "--timeout", "180s"]).await;
        self.explained(namespace, done).await.map(drop)
    }

    /// Adds pods and events to an error.
    async fn explained<T>(&self, namespace: &str, result: Result<T>) -> Result<T> {
        let Err(error) = result else { return result };
        let pods = self.kubectl(&["get", "pods", "--namespace", namespace, "--output", "wide"]).await;
        let events = self.kubectl(&["get", "events", "--namespace", namespace, "--sort-by", "lastTimestamp"]).await;
        let tail = |text: String| text.lines().rev().take(15).map(|line| format!("{line}\n")).collect::<Vec<_>>();
        let events = tail(events.unwrap_or_default()).into_iter().rev().collect::<String>();
        Err(error.context(format!("{}\n{events}", pods.unwrap_or_default())))
    }

    /// Where a port of a Service is on the node; the Service must be of type `NodePort`.
    pub async fn node_port(&self, namespace: &str, service: &str, port: &str) -> Result<SocketAddr> {
        let found = self.cluster.api::<ApiService>(namespace).get(service).await?;
        let ports = found.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let found = ports.iter().find(|candidate| candidate.name.as_deref() == Some(port)).and_then(|p| p.node_port);
        let number = found.with_context(|| format!("{namespace}/{service} has no port {port} on its nodes"))?;
        Ok(SocketAddr::new(self.address, u16::try_from(number)?))
    }

    /// Waits until a WsBusiness is ready in its newest generation.
    pub async fn ready(&self, namespace: &str, name: &str) -> Result<WsBusiness> {
        let is = |wsb: &WsBusiness| {
            condition_of(wsb, "Ready")
                .is_some_and(|ready| ready.status == "True" && ready.observed_generation == wsb.metadata.generation)
        };
        self.cluster.wait_for(namespace, name, "get Ready=True for its generation", is).await
    }

    /// A business as its services know it: by the Secret that the operator made for them.
    pub async fn business(&self, namespace: &str, name: &str, secret: &str) -> Result<Business<'_>> {
        let found = self.cluster.api::<Secret>(namespace).get(secret).await.with_context(|| secret.to_owned())?;
        let entries = found.data.unwrap_or_default().into_iter();
        let secret = entries.map(|(key, value)| Ok((key, String::from_utf8(value.0)?))).collect::<Result<_>>()?;
        Ok(Business { node: self, name: name.to_owned(), secret })
    }
}
