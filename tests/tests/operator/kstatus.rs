//! What programs see that wait for a business: kubectl, and those that use kstatus (Flux, Helm).

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_testing::broker::eventually;
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::kubectl::Kubectl;
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::World;

use crate::conditions::business;

/// Keeps a resource that is deleted.
const FINALIZER: &str = "example.com/test";

/// The rules of kstatus for a kind that it does not know (sigs.k8s.io/cli-utils, package status), in their order.
fn kstatus(resource: &Value) -> &'static str {
    let metadata = &resource["metadata"];
    if !metadata["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    let status = &resource["status"];
    let observed = status["observedGeneration"].as_i64();
    if observed.is_some() && observed != metadata["generation"].as_i64() {
        return "InProgress";
    }
    let is = |kind: &str, is: &str| {
        let conditions = status["conditions"].as_array();
        conditions.into_iter().flatten().any(|condition| condition["type"] == kind && condition["status"] == is)
    };
    if is("Reconciling", "True") {
        "InProgress"
    } else if is("Stalled", "True") {
        "Failed"
    } else if is("Ready", "False") || is("Ready", "Unknown") {
        "InProgress"
    } else {
        "Current"
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_business_sees_it_in_progress_done_failed_and_ending() -> Result<()> {
    let world = World::new().await?;
    let api: Api<WsBusiness> = world.team.businesses();
    let seen = async |expected: &'static str| {
        eventually(expected, PATIENCE, || async {
            Ok(kstatus(&serde_json::to_value(api.get("shop").await?)?) == expected)
        })
        .await
    };
    let now = async || anyhow::Ok(kstatus(&serde_json::to_value(api.get("shop").await?)?));

    // Nobody has said anything of it.
    world.apply(&business("shop", "")).await?;
    ensure!(now().await? == "InProgress", "{:?}", api.get("shop").await?);
    // Nor can it be ready without an edge.
    let operator = world.operator("one").start().await?;
    world.condition("shop", "Provisioned", "True").await?;
    ensure!(now().await? == "InProgress", "{:?}", api.get("shop").await?);
    let kubectl = Kubectl::new(&world.cluster)?;
    let wait = async |condition: &str| {
        let arguments = ["wait", "wsb/shop", "--namespace", &world.team.name, "--for", condition, "--timeout", "60s"];
        let waited = kubectl.run(arguments).await?;
        ensure!(waited.status == 0, "{waited:?}");
        anyhow::Ok(())
    };
    let _mirror = Mirror::start(&world, "edge-1").await?;
    wait("condition=Ready").await?;
    seen("Current").await?;

    // What somebody has to correct, and what was corrected.
    world.apply(&business("shop", "  className: nowhere\n")).await?;
    wait("condition=Stalled").await?;
    ensure!(now().await? == "Failed", "{:?}", api.get("shop").await?);
    world.apply(&business("shop", "")).await?;
    seen("Current").await?;

    let keep = json!({"metadata": {"finalizers": [FINALIZER, finalizer(&api).await?]}});
    api.patch("shop", &PatchParams::default(), &Patch::Merge(keep)).await?;
    world.cluster.delete(&world.team.name, "shop").await?;
    ensure!(now().await? == "Terminating");
    eventually("only the test holds it", PATIENCE, || async {
        Ok(api.get("shop").await?.metadata.finalizers == Some(vec![FINALIZER.to_owned()]))
    })
    .await?;
    let release = json!({"metadata": {"finalizers": null}});
    api.patch("shop", &PatchParams::default(), &Patch::Merge(release)).await?;
    world.cluster.wait_gone(&world.team.name, "shop").await?;
    operator.had_every_right()
}

/// The operator's own.
async fn finalizer(api: &Api<WsBusiness>) -> Result<String> {
    let finalizers = api.get("shop").await?.metadata.finalizers.unwrap_or_default();
    finalizers.into_iter().next().context("no finalizer")
}
