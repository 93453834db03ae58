//! What a release does with what is there already, which it sees with `lookup`.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Secret;
use wirepost_testing::cluster::{Cluster, Namespace};

use crate::render::{CHART, RELEASE, command};

/// The CRD is there already, and no release's.
pub(crate) fn helm(cluster: &Cluster, namespace: &Namespace, verb: &str, release: &str, sets: &[&str]) -> Result<()> {
    let mut command = command(&[verb, release])?;
    if verb != "uninstall" {
        command.args([CHART, "--set", "crds.install=false"]);
    }
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.args(["--namespace", &namespace.name]).env("KUBECONFIG", &cluster.kubeconfig).output()?;
    if !output.status.success() {
        bail!("helm {verb} {release} {sets:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The volume keeps the user of its first start, whatever a later command line says.
#[tokio::test]
async fn the_bundled_brokers_password_stays_that_of_the_first_install() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("bundled").await?;
    let secrets = cluster.api::<Secret>(&namespace.name);
    let (bundled, first) = ("broker.bundled=true", "bundledBroker.password=first");
    helm(&cluster, &namespace, "install", RELEASE, &[bundled, first])?;
    let uid = secrets.get("wirepost-broker").await?.metadata.uid;
    let without: &[&str] = &[bundled];
    for (verb, sets) in [
        ("upgrade", without),
        ("upgrade", &[bundled, "bundledBroker.password=second"]),
        ("uninstall", &[]),
        ("install", &[bundled, "bundledBroker.password=third"]),
    ] {
        helm(&cluster, &namespace, verb, RELEASE, sets)?;
        let secret = secrets.get_opt("wirepost-broker").await?.with_context(|| format!("gone: {verb} {sets:?}"))?;
        let data = secret.data.unwrap_or_default();
        let word = |key| data.get(key).map(|word| word.0.as_slice());
        ensure!(
            word("password") == Some(b"first") && word("username") == Some(b"wirepost"),
            "{verb} {sets:?}: {data:?}"
        );
        ensure!(secret.metadata.uid == uid, "{verb} {sets:?}: another Secret");
    }
    Ok(())
}

#[tokio::test]
async fn a_second_release_in_a_namespace_is_refused() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("two").await?;
    helm(&cluster, &namespace, "install", "first", &[])?;
    helm(&cluster, &namespace, "upgrade", "first", &["operator.replicas=1"])?;
    let Err(refusal) = helm(&cluster, &namespace, "install", "second", &["rbac.aggregate=false"]) else {
        bail!("a second release was taken");
    };
    ensure!(refusal.to_string().contains("the release first of wirepost is in namespace"), "{refusal}");
    Ok(())
}
