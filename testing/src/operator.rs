//! `wirepost-operator` as a process, and the world of one test around it: a system namespace, a namespace of a business team, a vhost, and
//! a label that tells this test's resources from those of all others.

pub mod edges;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;

use crate::broker::{PATIENCE, PrivateBroker, Vhost, eventually};
use crate::cluster::{Cluster, Namespace, Refusal, ServiceAccount, chart_rules};
use crate::process::Process;
use crate::setup::Setup;

/// The edges' Service.
pub const EDGE_SERVICE: &str = "wirepost-edge";
/// Tells this test's resources.
const LABEL: &str = "wirepost.dev/installation";

/// Everything that operators and edges of one test share.
pub struct World {
    pub cluster: Cluster,
    /// Where operator and edges are.
    pub system: Namespace,
    /// Where the business team is.
    pub team: Namespace,
    /// The operator's account, with exactly the chart's rules.
    pub account: ServiceAccount,
    /// The edges' account, with exactly the chart's rules.
    pub edge_account: ServiceAccount,
    /// The vhost, keys and files of the edges.
    pub setup: Setup,
    id: String,
}

impl World {
    /// On the shared broker and API server.
    pub async fn new() -> Result<Self> {
        Self::on(Cluster::connect().await?, Vhost::create().await?).await
    }

    /// On a private broker, which may be killed.
    pub async fn on_broker(broker: &PrivateBroker) -> Result<Self> {
        Self::on(Cluster::connect().await?, broker.vhost().await?).await
    }

    /// On these.
    pub async fn on(cluster: Cluster, vhost: Vhost) -> Result<Self> {
        let system = cluster.namespace("system").await?;
        let team = cluster.namespace("team").await?;
        let rules = (chart_rules("operator-cluster-rules")?, chart_rules("operator-system-rules")?);
        let account = cluster.service_account(&system.name, "wirepost-operator", &rules.0, &rules.1).await?;
        let rules = chart_rules("edge-rules")?;
        let edge_account = cluster.service_account(&system.name, "wirepost-edge", &[], &rules).await?;
        let setup = Setup::on(vhost, &[]).await?;
        let id = team.name.clone();
        Ok(Self { cluster, system, team, account, edge_account, setup, id })
    }

    /// Selects this test's resources.
    pub fn selector(&self) -> String {
        format!("{LABEL}={}", self.id)
    }

    /// Applies WsBusinesses to the team's namespace, as `kubectl apply` would.
    pub async fn apply(&self, yaml: &str) -> Result<(), Refusal> {
        self.apply_in(&self.team, yaml).await
    }

    /// The same in another namespace.
    pub async fn apply_in(&self, namespace: &Namespace, yaml: &str) -> Result<(), Refusal> {
        let mut labelled = String::new();
        for document in serde_yaml::Deserializer::from_str(yaml) {
            use serde::Deserialize;
            let mut value = Value::deserialize(document).unwrap_or_default();
            if value.is_null() {
                continue;
            }
            value["metadata"]["labels"][LABEL] = json!(self.id);
            // JSON is YAML.
            labelled.extend(["---\n", &value.to_string(), "\n"]);
        }
        namespace.apply_yaml(&labelled).await
    }

    /// Waits until a condition of a business has this status, and returns the resource.
    pub async fn condition(&self, name: &str, condition: &str, status: &str) -> Result<WsBusiness> {
        let what = format!("get {condition}={status} for its generation");
        self.wait(name, &what, |wsb| {
            condition_of(wsb, condition)
                .is_some_and(|c| c.status == status && c.observed_generation == wsb.metadata.generation)
        })
        .await
    }

    /// The same, with the condition's reason.
    pub async fn reason(&self, name: &str, condition: &str, reason: &str) -> Result<WsBusiness> {
        let what = format!("get {condition} with reason {reason}");
        self.wait(name, &what, |wsb| condition_of(wsb, condition).is_some_and(|c| c.reason == reason)).await
    }

    /// Waits until `is` holds for a business of the team.
    pub async fn wait(&self, name: &str, what: &str, is: impl Fn(&WsBusiness) -> bool) -> Result<WsBusiness> {
        self.cluster.wait_for(&self.team.name, name, what, is).await
    }

    /// The edge configuration of a business.
    pub async fn config_map(&self, business: &str) -> Result<Option<ConfigMap>> {
        let api: Api<ConfigMap> = self.cluster.api(&self.system.name);
        Ok(api.get_opt(&format!("wirepost-business-{business}")).await?)
    }

    /// The entries of a Secret of the team, read as the administrator.
    pub async fn secret(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        let api: Api<Secret> = self.cluster.api(&self.team.name);
        let secret = api.get_opt(name).await?;
        Ok(secret.map(|secret| {
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect()
        }))
    }

    /// An operator of this name, yet to be started.
    pub fn operator(&self, name: &str) -> OperatorBuilder<'_> {
        let vhost = self.setup.vhost();
        let flags = [
            ("namespace", self.system.name.clone()),
            ("name", name.to_owned()),
            ("amqp", vhost.amqp()),
            ("management", vhost.broker.management.clone()),
            ("selector", self.selector()),
            ("admin-listen", "127.0.0.1:0".to_owned()),
            ("public-url", "https://ws.example.com".to_owned()),
            // Nobody waits in a test; but on a machine with many tests an API server may take seconds for an answer.
            ("lease-seconds", "8".to_owned()),
            ("sweep-seconds", "1".to_owned()),
            ("status-delay-seconds", "1".to_owned()),
            // Many tests make objects before an operator runs. The vhost is the test's own.
            ("adopt-vhost", "unmarked".to_owned()),
        ];
        let flags = flags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        OperatorBuilder {
            world: self,
            name: name.to_owned(),
            flags,
            env: Vec::new(),
            kubeconfig: self.account.kubeconfig.clone(),
            log: "info,wirepost_operator=debug,wirepost_topology=debug",
        }
    }

    /// An edge's admin port in an EndpointSlice of its own.
    pub async fn endpoint(&self, name: &str, admin: SocketAddr) -> Result<()> {
        let api: Api<EndpointSlice> = self.cluster.api(&self.system.name);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{EDGE_SERVICE}-{name}"), "labels": {"kubernetes.io/service-name": EDGE_SERVICE}},
            "ports": [{"name": "admin", "port": admin.port(), "protocol": "TCP"}],
            "endpoints": [{
                "addresses": [admin.ip().to_string()], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": name, "namespace": self.system.name},
            }],
        });
        let name = format!("{EDGE_SERVICE}-{name}");
        api.patch(&name, &PatchParams::apply("wirepost-test"), &Patch::Apply(slice)).await?;
        Ok(())
    }

    /// What happens when an edge's pod goes.
    pub async fn leave(&self, name: &str) -> Result<()> {
        let api: Api<EndpointSlice> = self.cluster.api(&self.system.name);
        api.delete(&format!("{EDGE_SERVICE}-{name}"), &DeleteParams::default()).await?;
        Ok(())
    }

    /// Everything that the vhost has: objects, permissions, and users with their passwords' hashes, which change with each writing.
    pub async fn broker_objects(&self) -> Result<Value> {
        let (broker, vhost) = (&self.setup.vhost().broker, &self.setup.vhost().name);
        let get = async |path: String| -> Result<Value> {
            Ok(serde_json::from_str(&broker.call("GET", &format!("/api/{path}"), "").await?)?)
        };
        let mut objects = get(format!("definitions/{vhost}")).await?;
        for list in objects.as_object_mut().into_iter().flat_map(|all| all.values_mut()).filter_map(Value::as_array_mut)
        {
            list.sort_by_key(ToString::to_string);
        }
        let mut permissions = get(format!("vhosts/{vhost}/permissions")).await?;
        let mut users = Vec::new();
        if let Some(permissions) = permissions.as_array_mut() {
            permissions.sort_by_key(ToString::to_string);
            for name in permissions.iter().filter_map(|p| p["user"].as_str()) {
                users.push(get(format!("users/{name}")).await?);
            }
        }
        Ok(json!({"objects": objects, "permissions": permissions, "users": users}))
    }

    /// What `kubectl describe` shows of a business of the team: its events, in no order.
    pub async fn events(&self, name: &str) -> Result<Vec<Event>> {
        let api: Api<Event> = self.cluster.api(&self.team.name);
        let mut events = api.list(&ListParams::default()).await?.items;
        events.retain(|event| event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some(name)));
        Ok(events)
    }
}

/// How often something was said in all: a repeated event is one object that counts.
pub fn times(events: &[Event], reason: &str) -> i32 {
    let of_reason = events.iter().filter(|event| event.reason.as_deref() == Some(reason));
    of_reason.map(|event| event.series.as_ref().map_or(1, |series| series.count)).sum()
}

/// A condition of a business.
pub fn condition_of<'a>(
    wsb: &'a WsBusiness,
    condition: &str,
) -> Option<&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    wsb.status.as_ref()?.conditions.iter().find(|c| c.type_ == condition)
}

/// See [`World::operator`].
pub struct OperatorBuilder<'a> {
    world: &'a World,
    name: String,
    flags: BTreeMap<String, String>,
    env: Vec<(&'static str, String)>,
    kubeconfig: PathBuf,
    log: &'static str,
}

impl OperatorBuilder<'_> {
    /// Sets a flag of `wirepost-operator`, named without its dashes.
    #[expect(clippy::needless_pass_by_value, reason = "numbers read better without a &")]
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl ToString) -> Self {
        self.flags.insert(name.to_owned(), value.to_string());
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: String) -> Self {
        self.env.push((name, value));
        self
    }

    /// Logs as in a cluster, for measurements.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.log = "info";
        self
    }

    /// Sets its log filter.
    #[must_use]
    pub fn log_filter(mut self, filter: &'static str) -> Self {
        self.log = filter;
        self
    }

    /// How it reaches the API server: such as [`ServiceAccount::kubeconfig_through`] a proxy.
    #[must_use]
    pub fn kubeconfig(mut self, kubeconfig: PathBuf) -> Self {
        self.kubeconfig = kubeconfig;
        self
    }

    /// Starts it and waits until it is ready; it may or may not lead.
    pub async fn start(self) -> Result<Operator> {
        let operator = self.start_unready().await?;
        eventually("the operator is ready", PATIENCE, || async { Ok(operator.readyz().await?.0 == 200) }).await?;
        Ok(operator)
    }

    /// Starts it and waits until it listens.
    pub async fn start_unready(self) -> Result<Operator> {
        let process = Process::spawn("wirepost-operator", &self.name, self.world.setup.dir(), |command| {
            command
                .args(self.flags.iter().map(|(name, value)| format!("--{name}={value}")))
                .envs(self.env.iter().map(|(name, value)| (name, value)))
                .env("KUBECONFIG", &self.kubeconfig)
                .env("WIREPOST_LOG", self.log);
        })?;
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut operator = Operator { admin: nowhere, process, http };
        let mut found = None;
        eventually("the operator listens", PATIENCE, || {
            found = operator.log().lines().find_map(|line| line.split("admin=").nth(1)?.trim().parse().ok());
            let (listens, ended) = (found.is_some(), operator.exit_status());
            // A dead process will not change.
            async move { ended?.map_or(Ok(listens), |status| panic!("the operator ended with {status}")) }
        })
        .await?;
        operator.admin = found.unwrap_or(nowhere);
        Ok(operator)
    }
}

/// A running operator; killed when dropped. A failing test shows the end of its log.
#[derive(Debug)]
pub struct Operator {
    /// Where the probes are.
    pub admin: SocketAddr,
    process: Process,
    http: reqwest::Client,
}

impl Deref for Operator {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Operator {
    /// The admin port: status and body.
    pub async fn admin(&self, path: &str) -> Result<(u16, String)> {
        let answer = self.http.get(format!("http://{}{path}", self.admin)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// `/readyz`.
    pub async fn readyz(&self) -> Result<(u16, String)> {
        self.admin("/readyz").await
    }

    /// The value of a series, as `/metrics` writes it (`wirepost_operator_leader`, or with labels); 0 while it is not there.
    pub async fn metric(&self, series: &str) -> Result<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?.unwrap_or_default())
    }

    /// Whether it says that it leads. What has ended does not.
    pub async fn leading(&self) -> bool {
        self.metric("wirepost_operator_leader").await.is_ok_and(|leads| leads > 0.0)
    }

    /// Writes to the API server and changes on the broker so far.
    pub async fn writes(&self) -> Result<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let written = |line: &&str| {
            ["wirepost_operator_api_writes_total", "wirepost_operator_broker_changes_total"]
                .iter()
                .any(|name| line.starts_with(name))
        };
        let values = text.lines().filter(written).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// Errors if the API server has ever refused it something for want of a right.
    pub fn had_every_right(&self) -> Result<()> {
        let log = self.log();
        let refused: Vec<&str> = log.lines().filter(|line| line.to_lowercase().contains("forbidden")).collect();
        ensure!(refused.is_empty(), "{} lacked a right:\n{}", self.name, refused.join("\n"));
        Ok(())
    }

    /// Waits until it has read the whole broker this many more times.
    pub async fn looks(&self, times: u32) -> Result<()> {
        const LOOKS: &str = "wirepost_operator_broker_look_seconds_count";
        let before = self.metric(LOOKS).await?;
        let looked = || async { Ok(self.metric(LOOKS).await? >= before + f64::from(times)) };
        eventually("the operator has looked at the broker again", PATIENCE, looked).await
    }

    /// Waits until it leads.
    pub async fn leads(&self) -> Result<()> {
        let leads = || async { Ok(self.metric("wirepost_operator_leader").await? > 0.0) };
        eventually("the operator leads", PATIENCE, leads).await
    }
}
