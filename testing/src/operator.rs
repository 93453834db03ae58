//! The world of one test around `wirepost-operator`, which runs as a process: a system namespace, a namespace of a business team, a vhost, and
//! a label that tells this test's resources from those of all others.

pub mod edges;
mod process;

pub use process::{Operator, OperatorBuilder};

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Result;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_core::names;

use crate::broker::{PrivateBroker, Vhost};
use crate::cluster::{Cluster, Namespace, Refusal, ServiceAccount, chart_rules};
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

    /// Everything that the vhost has but for the edges' user: objects, permissions, and users with their passwords' hashes, which change with
    /// each writing.
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
            permissions.retain(|permission| !permission["user"].as_str().is_some_and(names::is_edge_user));
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
