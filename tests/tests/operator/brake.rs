//! The brake: where most businesses would end at the same time none does, until an administrator says that it is meant.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use wirepost_testing::broker::eventually;
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::{Picture, of_business};
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::setup::PAYMENTS;

const NAMES: [&str; 3] = ["payments", "second", "third"];

/// Provisions the businesses; the broker as it is then.
async fn three(world: &World) -> Result<Picture> {
    for name in NAMES {
        world.apply(&PAYMENTS.replace("name: payments", &format!("name: {name}"))).await?;
    }
    for name in NAMES {
        world.condition(name, "Provisioned", "True").await?;
    }
    world.setup.picture().await
}

/// As an administrator does it.
async fn allow(world: &World) -> Result<()> {
    let until = (Timestamp::now() + SignedDuration::from_mins(5)).to_string();
    let patch = json!({"metadata": {"annotations": {"wirepost.dev/allow-deletions-until": until}}});
    let leases: Api<Lease> = world.cluster.api(&world.system.name);
    leases.patch("wirepost-operator", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn most_businesses_at_once_end_only_when_an_administrator_says_that_it_is_meant() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    let before = three(&world).await?;
    // As a deleted CustomResourceDefinition or NAMESpace does.
    world.team.businesses().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    for name in NAMES {
        let held = world.reason(name, "Provisioned", "MassDeletion").await?;
        let says = &condition_of(&held, "Provisioned").context("no condition")?.message;
        ensure!(says.contains("3 of 3") && says.contains("allow-deletions-until"), "{says}");
    }
    // They run, so they are repaired.
    world.setup.delete_exchange("wirepost.payments.receive").await?;
    let repaired = || async { Ok(world.setup.picture().await? == before) };
    eventually("a held business is repaired", PATIENCE, repaired).await?;
    operator.looks(8).await?;
    ensure!(world.setup.picture().await? == before, "something was removed");
    ensure!((operator.metric("wirepost_operator_deletions_held").await? - 1.0).abs() < 0.5);

    allow(&world).await?;
    for name in NAMES {
        world.cluster.wait_gone(&world.team.name, name).await?;
    }
    let now = world.setup.picture().await?;
    ensure!(NAMES.iter().all(|name| of_business(&now, name).is_empty()), "{now:#?}");
    operator.had_every_right()
}

/// A deleted CustomResourceDefinition ends resources without their finalizers, and a restore may lose the ConfigMaps besides.
#[tokio::test(flavor = "multi_thread")]
async fn most_businesses_whose_resources_are_simply_gone_end_only_when_an_administrator_says_so() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    let before = three(&world).await?;
    // It would set them again.
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;
    let businesses = world.team.businesses();
    for name in NAMES {
        let patch = json!({"metadata": {"finalizers": null}});
        businesses.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        world.cluster.delete(&world.team.name, name).await?;
    }
    let operator = world.operator("two").flag("orphan-grace-seconds", 1).start().await?;
    let held = || async { Ok(operator.metric("wirepost_operator_deletions_held").await? > 0.5) };
    eventually("the end of all is held", PATIENCE, held).await?;
    let lives = async |name: &str| -> Result<bool> {
        let map = world.config_map(name).await?;
        Ok(map.and_then(|map| map.metadata.labels).is_some_and(|labels| !labels.contains_key("wirepost.dev/removed")))
    };
    operator.looks(4).await?;
    for name in NAMES {
        ensure!(lives(name).await?, "the edges of {name} let its clients go");
    }
    ensure!(world.setup.picture().await? == before, "something was removed");

    // Without their configurations they are orphans of the broker.
    let maps: Api<ConfigMap> = world.cluster.api(&world.system.name);
    for name in NAMES {
        maps.delete(&format!("wirepost-business-{name}"), &DeleteParams::default()).await?;
    }
    operator.looks(4).await?;
    ensure!(world.setup.picture().await? == before, "something was removed");
    ensure!(held().await?);

    allow(&world).await?;
    let gone = || async {
        let now = world.setup.picture().await?;
        Ok(NAMES.iter().all(|name| !now.contains_key(&format!("exchange wirepost.{name}.receive"))))
    };
    eventually("what was meant is done", PATIENCE, gone).await?;
    operator.had_every_right()
}
