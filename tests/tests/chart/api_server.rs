//! What is rendered, as a real API server sees it: every field is known and every object valid. Nothing is stored (`dryRun`), but for the
//! ServiceAccounts that pods need.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{self, Pod};
use kube::api::{DynamicObject, ObjectMeta, Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use kube::{Api, Client};
use serde_json::{Value, json};
use wirepost_testing::cluster::{Cluster, Namespace};

use crate::render::{Rendered, examples, id, render_in};

/// Kinds of others, whose definitions this API server does not have.
const FOREIGN: [&str; 4] = ["cert-manager.io", "gateway.networking.k8s.io", "keda.sh", "monitoring.coreos.com"];

async fn dry_run(client: &Client, namespace: &str, object: &Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    let types = object.types.clone().context("no kind")?;
    let (resource, capabilities) = discovery::pinned_kind(client, &GroupVersionKind::try_from(&types)?).await?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    let parameters = PatchParams {
        dry_run: true,
        force: true,
        field_manager: Some("helm".to_owned()),
        field_validation: Some(ValidationDirective::Strict),
    };
    api.patch(object.metadata.name.as_deref().context("no name")?, &parameters, &Patch::Apply(&object)).await?;
    Ok(())
}

#[tokio::test]
async fn every_manifest_is_valid() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("chart").await?;
    let more = [
        ("the defaults", ""),
        (
            "everything",
            "{broker: {bundled: true}, bundledBroker: {password: x}, edge: {service: {type: LoadBalancer, externalTrafficPolicy: Local, loadBalancerSourceRanges: [192.0.2.0/24]}, autoscaling: {connections: {average: 9, source: External, selector: {a: b}}}}, ingress: {enabled: true, host: ws.example.com}, networkPolicy: {egress: {enabled: true}, publicFrom: [{ipBlock: {cidr: 192.0.2.0/24}}]}}",
        ),
    ];
    let more = more.map(|(name, values)| (name.to_owned(), values.to_owned()));
    for (name, values) in examples()?.into_iter().chain(more) {
        for object in render_in(&namespace.name, &values)?.0 {
            let version = object["apiVersion"].as_str().unwrap_or_default();
            if !FOREIGN.iter().any(|group| version.starts_with(group)) {
                dry_run(&cluster.client, &namespace.name, &object)
                    .await
                    .with_context(|| format!("{name}: {}", id(&object)))?;
            }
        }
    }
    Ok(())
}

async fn admitted(cluster: &Cluster, namespace: &Namespace, rendered: &Rendered) -> Result<()> {
    let accounts: Api<v1::ServiceAccount> = cluster.api(&namespace.name);
    for account in ["default", "wirepost-edge", "wirepost-operator"] {
        let metadata = ObjectMeta { name: Some(account.to_owned()), ..ObjectMeta::default() };
        let account = v1::ServiceAccount { metadata, ..v1::ServiceAccount::default() };
        accounts.create(&PostParams::default(), &account).await?;
    }
    let pods = rendered.pods();
    ensure!(pods.len() == 3, "{} pods", pods.len());
    for (id, mut template) in pods {
        template["metadata"]["name"] = json!("pod");
        if id.starts_with("StatefulSet/") {
            // In the place of the claim's.
            let volumes = template["spec"]["volumes"].as_array_mut().context("no volumes")?;
            volumes.push(json!({"name": "data", "emptyDir": {}}));
        }
        let pod: Pod = serde_json::from_value(template)?;
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        cluster.api::<Pod>(&namespace.name).create(&dry_run, &pod).await.with_context(|| id)?;
    }
    Ok(())
}

/// By the admission that enforces it.
#[tokio::test]
async fn pods_meet_pod_security_restricted() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("restricted").await?;
    let enforce = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let namespaces: Api<v1::Namespace> = Api::all(cluster.client.clone());
    namespaces.patch(&namespace.name, &PatchParams::default(), &Patch::Merge(enforce)).await?;
    admitted(&cluster, &namespace, &render_in(&namespace.name, "broker: {bundled: true}")?).await
}
