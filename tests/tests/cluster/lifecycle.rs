//! What a platform team does to an installation in the course of its life: takes it away, brings it back, upgrades the CRD under it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, ResourceExt};
use serde_json::json;
use wirepost_core::business::WsBusiness;
use wirepost_testing::client::Client;
use wirepost_testing::node::{Node, RELEASE, SYSTEM};
use wirepost_testing::service::{Service, next_json, payment};

const CRD: &str = "wsbusinesses.wirepost.dev";
/// What an older definition is without.
const COLUMN: &str = "Edges";
const FIELD: &str = "connectionsPerId";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn uninstalled_and_installed_again_nothing_is_missing() -> Result<()> {
    const NAME: &str = "lifecycle-again";
    let node = Node::connect().await?;
    node.install(&[]).await?;
    node.declare(NAME).await?;
    let business = node.declared(NAME).await?;
    let before = uid(&node, NAME).await?;
    let mut client = business.client("alice", "app").await?;
    client.send_acked(&json!({"id": "order-1", "messageType": "order.placed", "content": {"n": 1}})).await?;
    let (token, cursor) = (client.resume_token(), client.cursor());
    client.leave().await?;

    node.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "2m"]).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(node.cluster.client.clone());
    ensure!(crds.get_opt(CRD).await?.is_some(), "the CRD is gone");
    ensure!(uid(&node, NAME).await? == before, "the business is another one");
    let pods = ["wait", "pods", "--for=delete", "--selector", "app.kubernetes.io/name=wirepost", "--timeout=2m"];
    node.kubectl(&[&pods[..], &["--namespace", SYSTEM]].concat()).await?;
    // The team's service does not notice: its user, its exchange and its queue are there.
    let service = Service::at(&business.amqp_uri().await?, NAME).await?;
    ensure!(service.depth("orders").await? == 1, "the message is gone");
    service.push(&payment("alice", 1)).await?;

    node.install(&[]).await?;
    node.ready(NAME, NAME).await?;
    let again = node.business(NAME, NAME, "access").await?;
    ensure!(again.secret == business.secret, "the Secret has changed");
    let mut client = Client::back(again.edges().await?, &token, Some(cursor)).await?;
    ensure!(client.control("welcome").await?["resumed"] == true, "it does not resume");
    ensure!(client.content().await?["n"] == 1);
    client.send_acked(&json!({"id": "order-2", "messageType": "order.placed", "content": {"n": 2}})).await?;
    let mut orders = service.consume("orders", 10).await?;
    for id in ["order-1", "order-2"] {
        ensure!(next_json(&mut orders).await?["id"] == id, "{id} is not next");
    }
    again.post(&payment("alice", 2)).await?;
    ensure!(client.content().await?["n"] == 2);
    client.leave().await?;
    node.undeclare(NAME).await
}

async fn uid(node: &Node, name: &str) -> Result<String> {
    node.cluster.api::<WsBusiness>(name).get(name).await?.uid().context("a uid")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn an_older_definition_is_upgraded_under_its_resources() -> Result<()> {
    const NAME: &str = "lifecycle-crd";
    let node = Node::connect().await?;
    let older = tempfile::tempdir()?;
    older_chart(older.path())?;
    node.install(&[]).await?;
    node.declare(NAME).await?;
    let business = node.declared(NAME).await?;
    let before = uid(&node, NAME).await?;
    let mut client = business.client("alice", "app").await?;

    // With an older definition this operator accepts nothing new. What runs goes on.
    node.upgrade_to(&older.path().display().to_string(), &[]).await?;
    ensure!(!columns(&node).await?.contains(&COLUMN.to_owned()), "the definition is not the older one");
    business.post(&payment("alice", 1)).await?;
    ensure!(client.content().await?["n"] == 1);
    ensure!(limited(&node, NAME).await?.is_empty(), "the older definition has the field");

    node.upgrade(&[]).await?;
    node.ready(NAME, NAME).await?;
    ensure!(columns(&node).await?.contains(&COLUMN.to_owned()), "a column is missing");
    ensure!(limited(&node, NAME).await? == "3", "the field is not served");
    node.ready(NAME, NAME).await?;
    ensure!(uid(&node, NAME).await? == before, "the business is another one");
    ensure!(node.business(NAME, NAME, "access").await?.secret == business.secret, "the Secret has changed");
    business.post(&payment("alice", 2)).await?;
    ensure!(client.content().await?["n"] == 2);
    client.leave().await?;
    node.undeclare(NAME).await
}

/// The chart as an older version might have had it: its definition lacks a field and a column.
fn older_chart(to: &Path) -> Result<()> {
    let copy = Command::new("cp")
        .args(["-R", concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/wirepost/.")])
        .arg(to)
        .status()?;
    ensure!(copy.success(), "copying the chart");
    let path = to.join("files").join(format!("{CRD}.yaml"));
    let mut crd: serde_yaml::Value = serde_yaml::from_str(&std::fs::read_to_string(&path)?)?;
    let version = &mut crd["spec"]["versions"][0];
    version["additionalPrinterColumns"].as_sequence_mut().context("columns")?.retain(|column| column["name"] != COLUMN);
    let limits = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["limits"]["properties"];
    limits.as_mapping_mut().context("limits")?.remove(FIELD).context("no such limit")?;
    Ok(std::fs::write(&path, serde_yaml::to_string(&crd)?)?)
}

/// What `kubectl get` shows.
async fn columns(node: &Node) -> Result<Vec<String>> {
    let crd = Api::<CustomResourceDefinition>::all(node.cluster.client.clone()).get(CRD).await?;
    let columns =
        crd.spec.versions.into_iter().flat_map(|version| version.additional_printer_columns.unwrap_or_default());
    Ok(columns.map(|column| column.name).collect())
}

/// Sets the field by a client that does not look whether there is one; what is stored.
async fn limited(node: &Node, name: &str) -> Result<String> {
    let patch = json!({"spec": {"limits": {FIELD: 3}}}).to_string();
    let business = ["wsbusiness", name, "--namespace", name];
    node.kubectl(&[&["patch"][..], &business, &["--type", "merge", "--patch", &patch]].concat()).await?;
    node.kubectl(&[&["get"][..], &business, &["--output", &format!("jsonpath={{.spec.limits.{FIELD}}}")]].concat())
        .await
}
