//! Ownership of a vhost: two installations never work on one, even after a copy, and each removes only its own finalizer.

use anyhow::{Context, Result, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_testing::broker::{Vhost, eventually};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::publish_orders;
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::setup::PAYMENTS;

const ORDERS: &str = "wirepost.payments.q.orders";

/// Another installation, with the same vhost in its values.
async fn second(world: &World) -> Result<World> {
    let vhost = world.setup.vhost();
    World::on(world.cluster.clone(), Vhost { broker: vhost.broker.clone(), name: vhost.name.clone() }).await
}

fn other() -> String {
    PAYMENTS.replace("name: payments", "name: other")
}

/// The installation that the vhost is marked with.
async fn marker(world: &World) -> Result<String> {
    let path = ["exchanges", &world.setup.vhost().name, "wirepost.installation"];
    let exchange = world.setup.ask(&path).await?;
    Ok(exchange["arguments"]["x-wirepost-installation"].as_str().context("no marker")?.to_owned())
}

async fn finalizers(world: &World, change: impl FnOnce(&mut Vec<String>)) -> Result<Vec<String>> {
    let mut all = world.team.businesses().get("payments").await?.metadata.finalizers.unwrap_or_default();
    change(&mut all);
    let patch: Value = json!({"metadata": {"finalizers": all}});
    world.team.businesses().patch("payments", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_installation_changes_nothing_in_a_vhost_until_it_may_take_it_over() -> Result<()> {
    let first = World::new().await?;
    let second = second(&first).await?;
    let one = first.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    first.apply(PAYMENTS).await?;
    first.condition("payments", "Provisioned", "True").await?;
    ensure!(publish_orders(first.setup.vhost(), ORDERS, 1..4).await?.len() == 3);
    let (objects, owner) = (first.broker_objects().await?, marker(&first).await?);

    let two = second.operator("two").flag("orphan-grace-seconds", 1).start().await?;
    second.apply(&other()).await?;
    let refused = second.reason("other", "Provisioned", "VhostNotOurs").await?;
    let says = &condition_of(&refused, "Provisioned").context("no condition")?.message;
    ensure!(says.contains(&format!("--adopt-vhost={owner}")) && says.contains(&first.system.name), "{says}");
    ensure!(two.metric("wirepost_operator_vhost_owned").await? < 0.5);
    one.looks(4).await?;
    ensure!(first.broker_objects().await? == objects, "the second installation has changed something");
    ensure!((one.metric("wirepost_operator_vhost_owned").await? - 1.0).abs() < 0.5);

    // A migration: the first one notices and gives the vhost up, and its finalizer is removed.
    drop(two);
    let patch: Value = json!({"metadata": {"finalizers": [format!("wirepost.dev/cleanup-{owner}")]}});
    second.team.businesses().patch("other", &PatchParams::default(), &Patch::Merge(patch)).await?;
    let two = second.operator("three").flag("adopt-vhost", &owner).start().await?;
    second.condition("other", "Provisioned", "True").await?;
    first.reason("payments", "Provisioned", "VhostNotOurs").await?;
    let now = marker(&second).await?;
    ensure!(now != owner);
    let kept_by = second.team.businesses().get("other").await?.metadata.finalizers;
    ensure!(kept_by == Some(vec![format!("wirepost.dev/cleanup-{now}")]), "{kept_by:?}");
    two.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_installation_marks_the_vhost_that_it_has_used_and_no_other() -> Result<()> {
    let world = World::new().await?;
    let copy = second(&world).await?;
    let operator = world.operator("one").start().await?;
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let owner = marker(&world).await?;
    drop(operator);
    // As an older version left it.
    world.setup.delete_exchange("wirepost.installation").await?;
    let shared = |all: &mut Vec<String>| *all = vec!["wirepost.dev/cleanup".to_owned()];
    finalizers(&world, shared).await?;

    let copied = copy.operator("copy").flag("adopt-vhost", "").start().await?;
    copy.apply(PAYMENTS).await?;
    let refused = copy.reason("payments", "Provisioned", "VhostNotOurs").await?;
    let says = &condition_of(&refused, "Provisioned").context("no condition")?.message;
    ensure!(says.contains("payments") && says.contains("--adopt-vhost=unmarked"), "{says}");
    drop(copied);

    let _operator = world.operator("two").flag("adopt-vhost", "").start().await?;
    world
        .wait("payments", "get its installation's own finalizer", |wsb| {
            wsb.metadata.finalizers.as_ref().is_some_and(|all| *all == [format!("wirepost.dev/cleanup-{owner}")])
        })
        .await?;
    let marked = || async { Ok(marker(&world).await.is_ok_and(|marker| marker == owner)) };
    eventually("the vhost is marked again", PATIENCE, marked).await?;
    world.condition("payments", "Provisioned", "True").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_removes_only_its_own_finalizer() -> Result<()> {
    const THEIRS: &str = "wirepost.dev/cleanup-0123456789ab";
    let world = World::new().await?;
    let operator = world.operator("one").flag("deletion-deadline-seconds", 2).start().await?;
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Provisioned", "True").await?;
    finalizers(&world, |all| all.push(THEIRS.to_owned())).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    let only_theirs = |wsb: &wirepost_core::business::WsBusiness| {
        wsb.metadata.finalizers.as_ref().is_some_and(|all| *all == [THEIRS])
    };
    world.wait("payments", "keep the other installation's finalizer alone", only_theirs).await?;
    operator.looks(8).await?;
    ensure!(only_theirs(&world.team.businesses().get("payments").await?));
    finalizers(&world, Vec::clear).await?;
    operator.had_every_right()
}
