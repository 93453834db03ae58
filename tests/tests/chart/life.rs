//! Releases on a real API server: install, upgrade, uninstall. No pod runs here; the tests in `cluster` have nodes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::Value;
use wirepost_testing::cluster::{Cluster, PrivateCluster, wait};

use crate::render::{CHART, RELEASE, command};

const CRD: &str = "wsbusinesses.wirepost.dev";
const CLASSES: &str = "wsbusinessclasses.wirepost.dev";

fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let output =
        command(arguments)?.args(["--namespace", "wirepost"]).env("KUBECONFIG", &cluster.kubeconfig).output()?;
    ensure!(output.status.success(), "helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The chart as it was when resources had no `session`, and there were no classes.
fn older_chart(folder: &Path) -> Result<String> {
    let copied = Command::new("cp").args(["-r", CHART]).arg(folder).status()?;
    ensure!(copied.success());
    let file = folder.join("wirepost/files/wsbusinesses.wirepost.dev.yaml");
    let mut crd: Value = serde_yaml::from_str(&std::fs::read_to_string(&file)?)?;
    spec_of(&mut crd).and_then(Value::as_object_mut).and_then(|spec| spec.remove("session")).context("no session")?;
    std::fs::write(&file, serde_yaml::to_string(&crd)?)?;
    std::fs::remove_file(folder.join(format!("wirepost/files/{CLASSES}.yaml")))?;
    Ok(folder.join("wirepost").to_string_lossy().into_owned())
}

/// The fields of a resource's spec.
fn spec_of(crd: &mut Value) -> Option<&mut Value> {
    crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties")
}

/// Whether the installed definition has the field.
async fn has_session(crds: &Api<CustomResourceDefinition>) -> Result<bool> {
    let mut crd = serde_json::to_value(crds.get(CRD).await?)?;
    Ok(spec_of(&mut crd).context("no spec")?.get("session").is_some())
}

#[tokio::test]
async fn an_upgrade_updates_the_crd_and_an_uninstall_keeps_it_with_its_resources() -> Result<()> {
    let cluster = PrivateCluster::start("chart", &[]).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for name in [CRD, CLASSES] {
        crds.delete(name, &DeleteParams::default()).await?;
        wait(&crds, name, "go", |crd| crd.is_none()).await?;
    }

    let folder = tempfile::TempDir::new()?;
    let older = older_chart(folder.path())?;
    helm(&cluster, &["install", RELEASE, &older, "--create-namespace"])?;
    ensure!(!has_session(&crds).await?, "the older chart has a newer CRD");
    let team = cluster.namespace("team").await?;
    let established = |crd: Option<&CustomResourceDefinition>| {
        let conditions = crd.and_then(|crd| crd.status.as_ref()?.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
    };
    wait(&crds, CRD, "become Established", established).await?;
    team.apply_yaml(include_str!("../../../examples/payments.yaml")).await?;
    let uid = team.businesses().get("payments").await?.uid();

    helm(&cluster, &["upgrade", RELEASE, CHART])?;
    ensure!(has_session(&crds).await?, "the upgrade left the CRD as it was");
    wait(&crds, CLASSES, "become Established", established).await?;
    cluster.apply_yaml(include_str!("../../../examples/platform/classes.yaml")).await?;
    helm(&cluster, &["rollback", RELEASE, "1"])?;
    ensure!(!has_session(&crds).await?, "the rollback left the CRD as it was");
    ensure!(crds.get_opt(CLASSES).await?.is_some(), "the rollback took the classes");
    helm(&cluster, &["upgrade", RELEASE, CHART])?;

    helm(&cluster, &["uninstall", RELEASE])?;
    let deployments: Api<Deployment> = cluster.api("wirepost");
    ensure!(deployments.list(&ListParams::default()).await?.items.is_empty(), "the uninstall left programs");
    ensure!(team.businesses().get("payments").await?.uid() == uid, "the uninstall took a business");
    ensure!(crds.get_opt(CLASSES).await?.is_some(), "the uninstall took the classes");

    helm(&cluster, &["install", RELEASE, CHART])?;
    ensure!(team.businesses().get("payments").await?.uid() == uid, "the new release made another one of a business");
    Ok(())
}
