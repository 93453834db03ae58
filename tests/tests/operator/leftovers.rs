//! Resources that the operator does not see any more, though nobody deleted them as one should: what runs of them ends when they are gone,
//! and not before.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_testing::broker::eventually;
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::of_business;
use wirepost_testing::operator::edges::client;
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::setup::PAYMENTS;

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
    let transient = json!({"spec": {"push": {"delivery": "Transient"}, "deletionPolicy": "Delete"}});
    merge(&world, transient).await?;
    ensure!(alice.close_code().await? == 1012);
    world.condition("payments", "Ready", "True").await?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;

    let rid = |wsb: &_| condition_of(wsb, "Provisioned").is_some_and(|c| c.message.contains("exactly"));
    world.wait("payments", "be rid of the stream", rid).await?;

    merge(&world, json!({"metadata": {"finalizers": null}})).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    ensure!(alice.close_code().await? == 4010);
    nothing_is_left(&world).await?;
    operator.had_every_right()
}

/// Takes the label away by which this installation knows its resources.
async fn unlabel(world: &World) -> Result<()> {
    let selector = world.selector();
    let (label, _) = selector.split_once('=').context("no label")?;
    merge(world, json!({"metadata": {"labels": {label: null}}})).await?;
    eventually("an event says so", PATIENCE, || async {
        Ok(world.events("payments").await?.iter().any(|event| event.reason.as_deref() == Some("NotSelected")))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_is_not_selected_any_more_keeps_its_clients_and_goes_when_it_is_deleted() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).flag("deletion-deadline-seconds", 8);
    let operator = operator.start().await?;
    let edge = world.edge("edge-1").await?;
    world.apply(&format!("{}  deletionPolicy: Delete\n", payments())).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;
    unlabel(&world).await?;
    eventually("a metric says so", PATIENCE, || async {
        Ok((operator.metric("wirepost_operator_unselected").await? - 1.0).abs() < 0.5)
    })
    .await?;
    // Longer than the grace: nothing is taken from anybody.
    operator.looks(6).await?;
    alice.send_acked(&json!({"messageType": "order.placed", "id": "m-1", "content": {"n": 1}})).await?;
    ensure!(world.config_map("payments").await?.is_some());

    world.cluster.delete(&world.team.name, "payments").await?;
    ensure!(alice.close_code().await? == 4010);
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    nothing_is_left(&world).await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_business_type_of_a_resource_that_is_not_selected_stays_its_own() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("deletion-deadline-seconds", 4).start().await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Provisioned", "True").await?;
    world.apply(&rival()).await?;
    world.reason("rival", "Accepted", "BusinessTypeTaken").await?;
    let (objects, map) = (world.broker_objects().await?, world.config_map("payments").await?);
    unlabel(&world).await?;
    let says = |wsb: &WsBusiness| condition_of(wsb, "Accepted").is_some_and(|c| c.message.contains("ConfigMap"));
    world.wait("rival", "say how it may get the business type", says).await?;
    operator.looks(4).await?;
    ensure!(world.broker_objects().await? == objects && world.config_map("payments").await? == map);

    world.cluster.delete(&world.team.name, "payments").await?;
    world.condition("rival", "Provisioned", "True").await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    operator.had_every_right()
}

/// Another resource that claims the same business type.
fn rival() -> String {
    payments()
        .replace("{name: payments, namespace: shop}", "{name: rival}")
        .replace("spec:\n", "spec:\n  businessType: payments\n")
        .replace("payments-wirepost", "rival-wirepost")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_resource_that_runs_keeps_its_business_type_when_an_older_one_is_selected() -> Result<()> {
    let world = World::new().await?;
    world.apply(&payments()).await?;
    let selector = world.selector();
    let (label, value) = selector.split_once('=').context("no label")?;
    merge(&world, json!({"metadata": {"labels": {label: null}}})).await?;
    let operator = world.operator("one").start().await?;
    let older = world.team.businesses().get("payments").await?.metadata.creation_timestamp.context("no time")?.0;
    eventually("a second passes", PATIENCE, || async move { Ok(Timestamp::now().as_second() > older.as_second()) })
        .await?;
    world.apply(&rival()).await?;
    world.condition("rival", "Provisioned", "True").await?;
    merge(&world, json!({"metadata": {"labels": {label: value}}})).await?;
    world.reason("payments", "Accepted", "BusinessTypeTaken").await?;
    world.condition("rival", "Provisioned", "True").await?;
    // The older one gets it once the other is gone, and does not wait for others in the queue.
    world.cluster.delete(&world.team.name, "rival").await?;
    world.condition("payments", "Provisioned", "True").await?;
    world.cluster.wait_gone(&world.team.name, "rival").await?;
    operator.had_every_right()
}

/// As a restore from a backup does it: the same name, another uid.
#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_was_created_again_and_cannot_run_yet_takes_nothing_from_its_clients() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    let edge = world.edge("edge-1").await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;

    merge(&world, json!({"metadata": {"finalizers": null}})).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    // The garbage collector does this.
    let secrets: Api<Secret> = world.cluster.api(&world.team.name);
    secrets.delete("payments-wirepost", &DeleteParams::default()).await?;
    world.apply(&payments().replace("{name: orders}", "{name: theirs, existing: true}")).await?;
    world.reason("payments", "Accepted", "QueueNotFound").await?;
    operator.looks(8).await?;
    alice.send_acked(&json!({"messageType": "chat.line", "toUniqueId": "bob", "id": "m-1", "content": {}})).await?;

    world.apply(&payments()).await?;
    world.condition("payments", "Ready", "True").await?;
    // Another resource has other credentials: what the former ones let in ends, and comes back by the new ones.
    ensure!(alice.close_code().await? == 3000);
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let mut alice = client(&edge, &secret, "alice", "app").await?;
    alice.send_acked(&json!({"messageType": "chat.line", "toUniqueId": "bob", "id": "m-2", "content": {}})).await?;
    operator.had_every_right()
}
