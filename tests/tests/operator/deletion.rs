//! A deleted business is removed with everything that it had and nothing else: it waits for its messages, but never forever.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use lapin::{Connection, ConnectionProperties};
use serde_json::json;
use tokio::time::Duration;
use wirepost_core::business::WsBusiness;
use wirepost_testing::broker::{PrivateBroker, Vhost, depth, eventually};
use wirepost_testing::cluster::{PATIENCE, PrivateCluster};
use wirepost_testing::hand::{differences, of_business, of_others, publish_orders, read_numbers, read_numbers_over};
use wirepost_testing::operator::World;
use wirepost_testing::setup::PAYMENTS;
use wirepost_testing::witness::Witness;

const RECEIVE: &str = "wirepost.payments.receive";
const ORDERS: &str = "wirepost.payments.q.orders";
const DELETE_QUEUES: &str = "wirepost.dev/delete-queues";

fn payments() -> String {
    format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")
}

/// The business provisioned, with three messages in a queue.
async fn in_use(world: &World) -> Result<()> {
    world.apply(&payments()).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let sent = publish_orders(world.setup.vhost(), ORDERS, 1..4).await?;
    ensure!(sent.len() == 3, "refused");
    Ok(())
}

async fn delete(world: &World) -> Result<()> {
    world.cluster.delete(&world.team.name, "payments").await
}

async fn annotate(world: &World) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {DELETE_QUEUES: "now"}}});
    world.team.businesses().patch("payments", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Waits until the resource is gone and nothing that the business had is there any more.
async fn gone_with_everything(world: &World) -> Result<()> {
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    let left = of_business(&world.setup.picture().await?, "payments");
    ensure!(left.is_empty(), "left on the broker: {left:#?}");
    ensure!(world.config_map("payments").await?.is_none(), "the edges' configuration is left");
    ensure!(world.secret("payments-wirepost").await?.is_none(), "the Secret is left");
    Ok(())
}

/// Whether what the edges read of a business is only a tombstone, which reserves its business type.
async fn is_reserved(world: &World, business: &str) -> Result<bool> {
    let metadata = world.config_map(business).await?.context("no ConfigMap")?.metadata;
    let annotations = metadata.annotations.unwrap_or_default();
    Ok(metadata.labels.unwrap_or_default().contains_key("wirepost.dev/removed")
        && annotations.get("wirepost.dev/reserved-for") == Some(&world.team.name))
}

/// What an event of this reason says.
async fn told(world: &World, reason: &str) -> Result<String> {
    let mut note = None;
    eventually(&format!("an event {reason}"), PATIENCE, || async {
        Ok(world.events("payments").await?.iter().any(|event| event.reason.as_deref() == Some(reason)))
    })
    .await?;
    for event in world.events("payments").await? {
        if event.reason.as_deref() == Some(reason) {
            note = event.note;
        }
    }
    note.context("an event without a text")
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_waited_for_and_their_own_service_can_consume_them() -> Result<()> {
    let world = World::new().await?;
    world.setup.neighbours().await?;
    let others = of_others(&world.setup.picture().await?);
    let _operator = world.operator("one").start().await?;
    in_use(&world).await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let witness = Witness::of(&world, "payments").await?;
    delete(&world).await?;
    for text in [ORDERS, "3 messages", "annotate wsb payments wirepost.dev/delete-queues=now"] {
        witness.sees("Provisioned", "Deleting", text).await?;
    }
    witness.sees("Ready", "Deleting", ORDERS).await?;
    // No more come, and those that are there can be had.
    ensure!(publish_orders(world.setup.vhost(), ORDERS, 4..5).await?.is_empty());
    ensure!(world.secret("payments-wirepost").await?.as_ref() == Some(&secret), "its credentials are gone");
    let service = Connection::connect(&secret["uri"], ConnectionProperties::default()).await?;
    ensure!(read_numbers_over(&service, ORDERS, 3).await? == [1, 2, 3]);
    // The user goes with the last message: the broker may be the first to close.
    let _ = service.close(200, "done".into()).await;

    gone_with_everything(&world).await?;
    let refused = Connection::connect(&secret["uri"], ConnectionProperties::default()).await;
    ensure!(refused.is_err(), "the credentials of a deleted business still work");
    let after = of_others(&world.setup.picture().await?);
    ensure!(after == others, "what belongs to others: {:#?}", differences(&others, &after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_annotation_queues_go_with_their_messages() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    // Before, and while it waits.
    for before in [true, false] {
        in_use(&world).await?;
        if before {
            annotate(&world).await?;
            delete(&world).await?;
        } else {
            delete(&world).await?;
            world.reason("payments", "Provisioned", "Deleting").await?;
            annotate(&world).await?;
        }
        gone_with_everything(&world).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_the_resource_goes_and_the_messages_stay() -> Result<()> {
    let world = World::new().await?;
    let operator =
        world.operator("one").flag("deletion-deadline-seconds", 3).flag("orphan-grace-seconds", 1).start().await?;
    in_use(&world).await?;
    delete(&world).await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    let note = told(&world, "BrokerNotCleaned").await?;
    ensure!(note.contains(ORDERS) && note.contains("3 messages"), "{note}");
    operator.looks(4).await?;
    let (connection, channel) = world.setup.vhost().channel().await?;
    ensure!(depth(&channel, ORDERS).await? == 3, "messages are gone");
    drop(connection);
    // Consumed at last, they hold nothing any more.
    ensure!(read_numbers(world.setup.vhost(), ORDERS, 3).await? == [1, 2, 3]);
    let nothing = || async { Ok(of_business(&world.setup.picture().await?, "payments").is_empty()) };
    eventually("nothing is left", PATIENCE, nothing).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_never_comes_back_holds_no_resource_and_no_other_business() -> Result<()> {
    let broker = PrivateBroker::start("gone", &[]).await?;
    let world = World::on_broker(&broker).await?;
    let _operator =
        world.operator("one").flag("deletion-deadline-seconds", 6).flag("orphan-grace-seconds", 1).start().await?;
    in_use(&world).await?;
    let other = payments().replace("name: payments", "name: other").replace("payments-wirepost", "other-wirepost");
    world.apply(&other).await?;
    world.condition("other", "Provisioned", "True").await?;
    broker.kill9().await?;
    world.reason("payments", "Provisioned", "BrokerUnavailable").await?;
    delete(&world).await?;
    world.reason("payments", "Provisioned", "Deleting").await?;
    // Meanwhile the other one is looked at as ever.
    world.apply(&other.replace("clientTypes: [h5, app, pos]", "clientTypes: [h5, app, pos, kiosk]")).await?;
    world.condition("other", "Accepted", "True").await?;
    world.condition("other", "Provisioned", "Unknown").await?;
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    let note = told(&world, "BrokerNotCleaned").await?;
    ensure!(note.contains("the broker can't be cleaned"), "{note}");
    ensure!(is_reserved(&world, "payments").await?, "the edges' configuration is left, or nobody's messages are");
    ensure!(world.secret("payments-wirepost").await?.is_none(), "the Secret is left");

    // If it does come back after all, what nobody claims goes, but for messages.
    broker.start_again().await?;
    world.condition("other", "Provisioned", "True").await?;
    let cleaned = || async {
        let left = of_business(&world.setup.picture().await?, "payments");
        Ok(!left.contains_key(&format!("exchange {RECEIVE}")) && left.contains_key(&format!("queue {ORDERS}")))
    };
    eventually("what nobody claims is gone", PATIENCE, cleaned).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_while_no_operator_runs_is_made_up_for() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Provisioned", "True").await?;
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;
    delete(&world).await?;
    let held = world.cluster.get(&world.team.name, "payments").await?.context("it went without an operator")?;
    ensure!(held.metadata.deletion_timestamp.is_some());
    let _operator = world.operator("two").start().await?;
    gone_with_everything(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_goes_with_its_businesses_and_secrets() -> Result<()> {
    let private = PrivateCluster::start("ends", &["--controllers"]).await?;
    let world = World::on((*private).clone(), Vhost::create().await?).await?;
    // Long enough for two checks of the other's queues.
    let operator = world.operator("one").flag("deletion-deadline-seconds", 30).start().await?;
    // Messages are in the way of one of two.
    in_use(&world).await?;
    world.apply(&payments().replace("name: payments", "name: empty").replace("payments-", "empty-")).await?;
    world.condition("empty", "Provisioned", "True").await?;
    let namespaces: Api<v1::Namespace> = Api::all(world.cluster.client.clone());
    namespaces.delete(&world.team.name, &DeleteParams::default()).await?;
    // A namespace's controller takes its time between two looks.
    let limit = Duration::from_secs(90);
    let gone = || async { Ok(namespaces.get_opt(&world.team.name).await?.is_none()) };
    eventually("the namespace is gone", limit, gone).await?;
    ensure!(of_business(&world.setup.picture().await?, "empty").is_empty(), "the broker was not cleaned");
    ensure!(is_reserved(&world, "payments").await? && world.config_map("empty").await?.is_none());
    ensure!(operator.running());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn created_again_at_once_it_is_whole_and_not_eaten_by_its_former_end() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let mut secrets = vec![world.secret("payments-wirepost").await?.context("no Secret")?];
    for _ in 0..5 {
        delete(&world).await?;
        world.cluster.wait_gone(&world.team.name, "payments").await?;
        world.apply(&payments()).await?;
        world.condition("payments", "Provisioned", "True").await?;
        let whole = of_business(&world.setup.picture().await?, "payments");
        operator.looks(4).await?;
        let later = of_business(&world.setup.picture().await?, "payments");
        ensure!(later == whole, "{:#?}", differences(&whole, &later));
        let wsb = world.condition("payments", "Provisioned", "True").await?;
        ensure!(wsb.metadata.deletion_timestamp.is_none());
        let map = world.config_map("payments").await?.context("no edge configuration")?;
        let labels = map.metadata.labels.unwrap_or_default();
        ensure!(!labels.contains_key("wirepost.dev/removed"), "the edges hear that it is being removed");
        let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
        Connection::connect(&secret["uri"], ConnectionProperties::default()).await?;
        ensure!(!secrets.contains(&secret), "a new owner got the old one's credentials");
        secrets.push(secret);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_takes_over_when_the_former_owner_is_gone() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    in_use(&world).await?;
    // Its messages hold the old one while the new one waits.
    let successor = payments().replace("name: payments", "name: successor").replace("payments-", "successor-");
    delete(&world).await?;
    world.apply(&successor.replace("spec:", "spec:\n  businessType: payments")).await?;
    world.reason("successor", "Accepted", "BusinessTypeTaken").await?;
    ensure!(read_numbers(world.setup.vhost(), ORDERS, 3).await? == [1, 2, 3]);
    world.cluster.wait_gone(&world.team.name, "payments").await?;
    world.condition("successor", "Provisioned", "True").await?;
    let secret = world.secret("successor-wirepost").await?.context("no Secret")?;
    let service = Connection::connect(&secret["uri"], ConnectionProperties::default()).await?;
    let sent = publish_orders(world.setup.vhost(), ORDERS, 4..7).await?;
    ensure!(read_numbers_over(&service, ORDERS, 3).await? == sent);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_resource_that_was_never_accepted_touches_nothing() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("orphan-grace-seconds", 1).start().await?;
    in_use(&world).await?;
    let before = world.setup.picture().await?;
    let (map, secret) = (world.config_map("payments").await?, world.secret("payments-wirepost").await?);
    let rival = payments().replace("name: payments", "name: rival").replace("spec:", "spec:\n  businessType: payments");
    for annotated in [false, true] {
        world.apply(&rival).await?;
        world.reason("rival", "Accepted", "BusinessTypeTaken").await?;
        if annotated {
            let patch = json!({"metadata": {"annotations": {DELETE_QUEUES: "now"}}});
            world.team.businesses().patch("rival", &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        world.cluster.delete(&world.team.name, "rival").await?;
        world.cluster.wait_gone(&world.team.name, "rival").await?;
        operator.looks(4).await?;
    }
    let after = world.setup.picture().await?;
    ensure!(after == before, "{:#?}", differences(&before, &after));
    ensure!(world.config_map("payments").await? == map && world.secret("payments-wirepost").await? == secret);
    world.condition("payments", "Provisioned", "True").await?;
    ensure!(read_numbers(world.setup.vhost(), ORDERS, 3).await? == [1, 2, 3]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_away_by_hand_before_holds_nothing_up() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Provisioned", "True").await?;
    // Everything was taken away by hand already, the vhost too.
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;
    world.setup.call("DELETE", &["vhosts", &world.setup.vhost().name], &serde_json::Value::Null).await?;
    let secrets: Api<v1::Secret> = world.cluster.api(&world.team.name);
    secrets.delete("payments-wirepost", &DeleteParams::default()).await?;
    let maps: Api<v1::ConfigMap> = world.cluster.api(&world.system.name);
    maps.delete("wirepost-business-payments", &DeleteParams::default()).await?;
    delete(&world).await?;
    let _operator = world.operator("two").start().await?;
    let api: Api<WsBusiness> = world.team.businesses();
    let gone = || async { Ok(api.get_opt("payments").await?.is_none()) };
    eventually("the resource is gone", PATIENCE, gone).await?;
    gone_with_everything(&world).await
}
