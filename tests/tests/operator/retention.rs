//! What a deletion leaves, for whom, and what asks before it happens.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_testing::broker::{depth, eventually};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::{of_business, publish_numbers, publish_orders, read_numbers};
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::setup::PAYMENTS;

const ORDERS: &str = "wirepost.payments.q.orders";
const PUSH: &str = "wirepost.payments.push";
const STREAM: &str = "wirepost.payments.stream";

fn with(field: &str) -> String {
    format!("{PAYMENTS}  {field}\n")
}

async fn provisioned(world: &World, yaml: &str) -> Result<()> {
    world.apply(yaml).await?;
    world.condition("payments", "Provisioned", "True").await?;
    Ok(())
}

async fn annotate(world: &World, key: &str, value: &str) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {key: value}}});
    world.team.businesses().patch("payments", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_business_leaves_its_pushes_to_whom_applies_it_again_unless_it_says_delete() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    provisioned(&world, PAYMENTS).await?;
    let vhost = world.setup.vhost();
    let sent = publish_numbers(vhost, PUSH, "any", 1..4).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    operator.looks(8).await?;
    ensure!(read_numbers(vhost, STREAM, 3).await? == sent);

    provisioned(&world, &with("deletionPolicy: Delete")).await?;
    ensure!(read_numbers(vhost, STREAM, 3).await? == sent, "it is another stream");
    ensure!(publish_orders(vhost, ORDERS, 1..4).await?.len() == 3);
    world.cluster.delete(&world.team.name, "payments").await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    let left = of_business(&world.setup.picture().await?, "payments");
    ensure!(left.is_empty(), "left on the broker: {left:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_destroys_messages_waits_for_a_persons_word() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    provisioned(&world, PAYMENTS).await?;
    let vhost = world.setup.vhost();
    let sent = publish_numbers(vhost, PUSH, "any", 1..4).await?;
    let transient = with("push: {delivery: Transient}");
    world.apply(&transient).await?;
    let waits = world.reason("payments", "Accepted", "Destructive").await?;
    let says = condition_of(&waits, "Accepted").context("no condition")?.message.clone();
    let generation = waits.metadata.generation.context("no generation")?.to_string();
    let command = format!("annotate wsb payments wirepost.dev/allow-destructive={generation}");
    ensure!(says.contains(STREAM) && says.contains(&command), "{says}");
    ensure!(read_numbers(vhost, STREAM, 3).await? == sent);

    annotate(&world, "wirepost.dev/allow-destructive", &generation).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let gone = || async { Ok(!world.setup.picture().await?.contains_key(&format!("queue {STREAM}"))) };
    eventually("the stream is gone", PATIENCE, gone).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_business_type_stays_reserved_for_its_namespace_while_messages_are_left() -> Result<()> {
    let world = World::new().await?;
    let flags = world.operator("one").flag("orphan-grace-seconds", 1).flag("deletion-deadline-seconds", 1);
    let operator = flags.start().await?;
    provisioned(&world, PAYMENTS).await?;
    let vhost = world.setup.vhost();
    ensure!(publish_orders(vhost, ORDERS, 1..4).await?.len() == 3);
    world.cluster.delete(&world.team.name, "payments").await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;

    let others = world.cluster.namespace("others").await?;
    world.apply_in(&others, PAYMENTS).await?;
    let reason = |reason: &'static str| {
        move |wsb: &wirepost_core::business::WsBusiness| {
            condition_of(wsb, "Accepted").is_some_and(|c| c.reason == reason)
        }
    };
    let wait = |what: &'static str| world.cluster.wait_for(&others.name, "payments", what, reason(what));
    wait("BusinessTypeReserved").await?;
    // An administrator hands it over, and takes it back: the first namespace may have it as well.
    let maps: Api<ConfigMap> = world.cluster.api(&world.system.name);
    let reserve = async |namespace: &str| {
        let patch = json!({"metadata": {"annotations": {"wirepost.dev/reserved-for": namespace}}});
        maps.patch("wirepost-business-payments", &PatchParams::default(), &Patch::Merge(patch)).await
    };
    reserve(&others.name).await?;
    wait("Accepted").await?;
    let (_connection, channel) = vhost.channel().await?;
    ensure!(depth(&channel, ORDERS).await? == 3);
    world.cluster.delete(&others.name, "payments").await?;
    world.cluster.wait_gone(&others.name, "payments").await?;

    // Free again with the last message.
    world.apply(PAYMENTS).await?;
    world.reason("payments", "Accepted", "BusinessTypeReserved").await?;
    ensure!(read_numbers(vhost, ORDERS, 3).await? == [1, 2, 3]);
    world.condition("payments", "Provisioned", "True").await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn most_businesses_at_once_end_only_when_an_administrator_says_that_it_is_meant() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    let names = ["payments", "second", "third"];
    for name in names {
        world.apply(&PAYMENTS.replace("name: payments", &format!("name: {name}"))).await?;
    }
    for name in names {
        world.condition(name, "Provisioned", "True").await?;
    }
    let before = world.setup.picture().await?;
    // As a deleted CustomResourceDefinition or namespace does.
    world.team.businesses().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    for name in names {
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

    let until = (Timestamp::now() + SignedDuration::from_mins(5)).to_string();
    let patch: Value = json!({"metadata": {"annotations": {"wirepost.dev/allow-deletions-until": until}}});
    let leases: Api<Lease> = world.cluster.api(&world.system.name);
    leases.patch("wirepost-operator", &PatchParams::default(), &Patch::Merge(patch)).await?;
    for name in names {
        world.cluster.wait_gone(&world.team.name, name).await?;
    }
    let now = world.setup.picture().await?;
    ensure!(names.iter().all(|name| of_business(&now, name).is_empty()), "{now:#?}");
    operator.had_every_right()
}
