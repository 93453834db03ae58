//! What the operator's ServiceAccount may do with Secrets: its role and the admission policy together, on a real API server.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wirepost_testing::cluster::{Cluster, Namespace};

use crate::releases::helm;
use crate::render::RELEASE;

const OURS: &str = "servicebinding.io/rabbitmq";

/// The administrator's client, as the operator.
async fn operator(cluster: &Cluster, namespace: &Namespace) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(&cluster.kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{}:wirepost-operator", namespace.name));
    Ok(Client::try_from(config)?)
}

fn secret(name: &str, kind: &str, labels: &Value) -> Result<Secret> {
    let metadata =
        json!({"name": name, "labels": labels, "annotations": {"kubernetes.io/service-account.name": "default"}});
    Ok(serde_json::from_value(json!({"metadata": metadata, "type": kind, "stringData": {"password": "word"}}))?)
}

async fn create(secrets: &Api<Secret>, name: &str, kind: &str, labels: &Value) -> Result<kube::Result<Secret>> {
    Ok(secrets.create(&PostParams::default(), &secret(name, kind, labels)?).await)
}

/// As the operator writes, and probes in a dry run.
async fn apply(secrets: &Api<Secret>, name: &str, body: Value, dry_run: bool) -> kube::Result<Secret> {
    let mut patch = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    crate::render::merge(&mut patch, body);
    let params = if dry_run {
        PatchParams::apply("wirepost-operator-probe").dry_run()
    } else {
        PatchParams::apply("wirepost-operator").force()
    };
    secrets.patch(name, &params, &Patch::Apply(patch)).await
}

fn access() -> Value {
    json!({"type": OURS, "metadata": {"labels": {"wirepost.dev/owner-uid": "u"}}, "data": {"password": "d29yZA=="}})
}

/// By the policy (or the role), and for no other reason.
fn refused<T>(what: &str, result: kube::Result<T>) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        Err(error) => bail!("{what}: {error}"),
        Ok(_) => bail!("{what} is allowed"),
    }
}

/// The API server hears of a new policy with some delay.
async fn in_force(secrets: &Api<Secret>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let Ok(_) = create(secrets, "early", "Opaque", &json!({})).await? else { return Ok(()) };
        ensure!(Instant::now() < deadline, "the policy never takes effect");
        secrets.delete("early", &DeleteParams::default()).await.ok();
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn the_operator_stores_access_secrets_and_no_others() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let (system, team) = (cluster.namespace("system").await?, cluster.namespace("team").await?);
    helm(&cluster, &system, "install", RELEASE, &[])?;
    let client = operator(&cluster, &system).await?;
    let (own, secrets) = (Api::namespaced(client.clone(), &system.name), Api::<Secret>::namespaced(client, &team.name));
    let admin = cluster.api::<Secret>(&team.name);
    in_force(&secrets).await?;
    create(&admin, "foreign", "Opaque", &json!({})).await?.context("an administrator is restricted")?;

    // What the operator does: probe a free name and a taken one, make, change, delete; seed and key set of its own.
    for (name, there) in [("free", false), ("foreign", true)] {
        let probed = apply(&secrets, name, json!({}), true).await.with_context(|| format!("the probe of {name}"))?;
        let version = probed.metadata.resource_version.is_some_and(|version| !version.is_empty());
        ensure!(version == there, "{name}: the probe does not tell whether it is there");
    }
    apply(&secrets, "access", access(), false).await.context("an access Secret is not made")?;
    let mut changed = access();
    changed["data"]["password"] = json!("bmV3");
    apply(&secrets, "access", changed, false).await.context("an access Secret is not changed")?;
    apply(&secrets, "access", json!({}), true).await.context("an access Secret is not probed")?;
    for name in ["wirepost-seed", "wirepost-edge-keys", "wirepost-edge-user"] {
        create(&own, name, "Opaque", &json!({})).await?.with_context(|| name)?;
    }
    let another = json!({"data": {"password": "bmV3"}});
    apply(&own, "wirepost-edge-user", another, false).await.context("the edges' user does not follow the seed")?;

    // What it does not.
    let label = json!({"wirepost.dev/owner-uid": "u"});
    refused("a read", secrets.get("foreign").await)?;
    refused("a plain Secret", create(&secrets, "plain", "Opaque", &label).await?)?;
    refused("a token", create(&secrets, "token", "kubernetes.io/service-account-token", &label).await?)?;
    refused("a token of its own", create(&own, "token", "kubernetes.io/service-account-token", &label).await?)?;
    refused("a Secret without an owner", create(&secrets, "bare", OURS, &json!({})).await?)?;
    refused("a seed elsewhere", create(&secrets, "wirepost-seed", "Opaque", &json!({})).await?)?;
    refused("an edge user elsewhere", create(&secrets, "wirepost-edge-user", "Opaque", &json!({})).await?)?;
    refused("the end of the edges' user", own.delete("wirepost-edge-user", &DeleteParams::default()).await)?;
    refused("a change of a foreign Secret", apply(&secrets, "foreign", json!({"data": {"a": "YQ=="}}), false).await)?;
    refused("adoption", apply(&secrets, "foreign", json!({"metadata": {"labels": label}}), false).await)?;
    refused("a change of the seed", apply(&own, "wirepost-seed", json!({"data": {"a": "YQ=="}}), false).await)?;
    refused("the end of a foreign Secret", secrets.delete("foreign", &DeleteParams::default()).await)?;
    refused("the end of the seed", own.delete("wirepost-seed", &DeleteParams::default()).await)?;
    let foreign = admin.get("foreign").await?;
    ensure!(foreign.metadata.labels.is_none_or(|labels| labels.is_empty()), "the foreign Secret was changed");

    secrets.delete("access", &DeleteParams::default()).await.context("an access Secret is not deleted")?;
    admin.delete("foreign", &DeleteParams::default()).await.context("others are restricted")?;
    Ok(())
}
