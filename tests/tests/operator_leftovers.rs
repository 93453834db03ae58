//! Resources that the operator does not see any more, though nobody deleted them as one should: what runs of them ends when they are gone,
//! and not before.

use anyhow::{Context, Result, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_tests::broker::eventually;
use wirepost_tests::cluster::PATIENCE;
use wirepost_tests::hand::of_business;
use wirepost_tests::operator::World;
use wirepost_tests::operator::edges::client;
use wirepost_tests::setup::PAYMENTS;

fn payments() -> String {
    format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")
}

async fn merge(world: &World, patch: Value) -> Result<()> {
    world.team.businesses().patch("payments", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

async fn nothing_is_left(world: &World) -> Result<()> {
    eventually("everything of the business is gone", PATIENCE, || async {
        Ok(world.config_map("payments").await?.is_none()
            && of_business(&world.setup.picture().await?, "payments").is_empty())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_finalizer_was_taken_off_by_hand_clients_are_let_go_and_nothing_stays() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 2).start().await?;
    let edge = world.edge("edge-1").await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;
    // The stream and messages in queues are kept for a person; this business has neither.
    merge(&world, json!({"spec": {"push": {"delivery": "Transient"}}})).await?;
    ensure!(alice.close_code().await? == 1012);
    world.condition("payments", "Ready", "True").await?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;

    merge(&world, json!({"metadata": {"finalizers": null}})).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    ensure!(alice.close_code().await? == 4010);
    nothing_is_left(&world).await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_is_not_selected_any_more_keeps_its_clients_and_goes_when_it_is_deleted() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    let edge = world.edge("edge-1").await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;
    let (label, _) = world.selector().split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).context("no label")?;
    merge(&world, json!({"metadata": {"labels": {label: null}}})).await?;
    eventually("an event says so", PATIENCE, || async {
        Ok(world.events("payments").await?.iter().any(|event| event.reason.as_deref() == Some("NotSelected")))
    })
    .await?;
    eventually("a metric says so", PATIENCE, || async {
        Ok((operator.metric("wirepost_operator_unselected").await? - 1.0).abs() < 0.5)
    })
    .await?;
    // Longer than the grace: nothing is taken from anybody.
    operator.looks(4).await?;
    alice.send_acked(&json!({"messageType": "order.placed", "id": "m-1", "content": {"n": 1}})).await?;
    ensure!(world.config_map("payments").await?.is_some());

    let channel = world.setup.vhost().channel().await?.1;
    channel.queue_purge("wirepost.payments.q.orders".into(), lapin::options::QueuePurgeOptions::default()).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    ensure!(alice.close_code().await? == 4010);
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    nothing_is_left(&world).await?;
    ensure!(world.secret("payments-wirepost").await?.is_none(), "the Secret is left");
    operator.had_every_right()
}

/// Who wants it to end in this installation alone, such as after a move to another.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_edge_configuration_ends_a_resource_that_is_not_selected_here_alone() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    world.apply(&payments().replace("Durable", "Transient")).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let (label, _) = world.selector().split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).context("no label")?;
    merge(&world, json!({"spec": {"push": {"delivery": "Transient"}}, "metadata": {"labels": {label: null}}})).await?;
    eventually("an event says so", PATIENCE, || async {
        Ok(world.events("payments").await?.iter().any(|event| event.reason.as_deref() == Some("NotSelected")))
    })
    .await?;
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = world.cluster.api(&world.system.name);
    maps.delete("wirepost-business-payments", &kube::api::DeleteParams::default()).await?;
    eventually("what routes is gone", PATIENCE, || async {
        let left = of_business(&world.setup.picture().await?, "payments");
        Ok(!left.keys().any(|what| what.contains("exchange") || what.contains("binding")))
    })
    .await?;
    ensure!(world.team.businesses().get_opt("payments").await?.is_some(), "the resource is not touched");
    operator.had_every_right()
}
