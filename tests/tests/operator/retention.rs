//! What a deletion keeps, who may claim it, and which deletions need confirmation.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use wirepost_testing::broker::{depth, eventually};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::{of_business, publish_numbers, publish_orders, read_numbers};
use wirepost_testing::operator::{Operator, World, condition_of};
use wirepost_testing::setup::PAYMENTS;

const ORDERS: &str = "wirepost.payments.q.orders";
const PUSH: &str = "wirepost.payments.push";
const STREAM: &str = "wirepost.payments.stream";
const MARK: &str = "wirepost.payments.owner";

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

/// Carries out the command that a condition names.
async fn allow(world: &World, says: &str) -> Result<()> {
    let (_, command) = says.split_once("annotate wsb payments ").context("no command")?;
    let (key, value) = command.split_once(' ').and_then(|(word, _)| word.split_once('=')).context("no value")?;
    annotate(world, key, value).await
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
    ensure!(says.contains(STREAM), "{says}");
    ensure!(read_numbers(vhost, STREAM, 3).await? == sent);

    allow(&world, &says).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let gone = || async { Ok(!world.setup.picture().await?.contains_key(&format!("queue {STREAM}"))) };
    eventually("the stream is gone", PATIENCE, gone).await
}

/// A restore, a move by GitOps, a `kubectl delete` and `apply`: the same name, another uid, and nobody remembers what was declared.
#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_was_created_again_with_less_retention_runs_and_cuts_nothing_unasked() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    provisioned(&world, PAYMENTS).await?;
    let vhost = world.setup.vhost();
    let sent = publish_numbers(vhost, PUSH, "any", 1..4).await?;
    gone_by_hand(&world).await?;
    let hour = with("push: {retention: {seconds: 3600}}");
    world.apply(&hour.replace("{name: orders}", "{name: invoices}")).await?;
    let waits = world.reason("payments", "Provisioned", "Destructive").await?;
    let says = condition_of(&waits, "Provisioned").context("no condition")?.message.clone();
    ensure!(says.contains(&format!("{STREAM} drops messages")) && says.contains("86400s → 3600s"), "{says}");
    let kept = async || anyhow::Ok(world.setup.policy_in_force(STREAM).await?.1["max-age"].clone());
    ensure!(kept().await? == "86400s", "it was cut");
    ensure!(world.setup.picture().await?.contains_key("queue wirepost.payments.q.invoices"), "it does not run");
    ensure!(read_numbers(vhost, STREAM, 3).await? == sent);

    allow(&world, &says).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let cut = || async { Ok(kept().await? == "3600s") };
    eventually("what was allowed is done", PATIENCE, cut).await?;

    // What was allowed is done. The same is not allowed once more, not even after somebody has raised it to the very value that it had.
    let path = ["policies", &vhost.name, STREAM];
    let raised = json!({
        "pattern": "^wirepost\\.payments\\.stream$", "apply-to": "streams", "priority": 500,
        "definition": {"max-age": "86400s", "max-length-bytes": 1 << 30},
    });
    world.setup.call("PUT", &path, &raised).await?;
    let waits = world.reason("payments", "Provisioned", "Destructive").await?;
    let says = condition_of(&waits, "Provisioned").context("no condition")?.message.clone();
    ensure!(says.contains("86400s → 3600s"), "{says}");
    operator.looks(2).await?;
    ensure!(kept().await? == "86400s", "it was cut");
    let kept_now = waits.status.as_ref().and_then(|status| status.retention.clone()).context("no retention")?;
    ensure!((kept_now.seconds, kept_now.bytes.as_deref()) == (Some(86_400), Some("1Gi")), "{kept_now:?}");
    allow(&world, &says).await?;
    let wsb = world.condition("payments", "Provisioned", "True").await?;
    ensure!(wsb.status.and_then(|status| status.retention?.seconds) == Some(3_600));
    eventually("what was allowed again is done", PATIENCE, cut).await?;
    operator.had_every_right()
}

/// The resource goes as if it had never been cleaned up.
async fn gone_by_hand(world: &World) -> Result<()> {
    let patch = json!({"metadata": {"finalizers": null}});
    world.team.businesses().patch("payments", &PatchParams::default(), &Patch::Merge(patch)).await?;
    world.cluster.delete(&world.team.name, "payments").await?;
    world.cluster.wait_gone(&world.team.name, "payments").await
}

/// All records of the cluster are lost, as in a restore without the ConfigMaps: what the broker says is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_without_a_configuration_is_for_the_namespace_that_the_broker_names() -> Result<()> {
    let world = World::new().await?;
    let maps: Api<ConfigMap> = world.cluster.api(&world.system.name);
    let vhost = world.setup.vhost();
    let start = async || world.operator("one").flag("adopt-vhost", "").start().await;
    let forget = async |operator: Operator| -> Result<()> {
        operator.sigterm()?;
        operator.exited(PATIENCE).await?;
        gone_by_hand(&world).await?;
        maps.delete("wirepost-business-payments", &DeleteParams::default()).await?;
        Ok(())
    };
    let operator = start().await?;
    provisioned(&world, PAYMENTS).await?;
    ensure!(publish_orders(vhost, ORDERS, 1..4).await?.len() == 3);
    forget(operator).await?;

    // Another namespace gets nothing, and takes nothing with it, whatever it says.
    let operator = start().await?;
    let others = world.cluster.namespace("others").await?;
    world.apply_in(&others, &with("deletionPolicy: Delete")).await?;
    let accepted = |reason: &'static str| {
        move |wsb: &wirepost_core::business::WsBusiness| {
            condition_of(wsb, "Accepted").is_some_and(|c| c.reason == reason)
        }
    };
    let reserved = accepted("BusinessTypeReserved");
    let waits = world.cluster.wait_for(&others.name, "payments", "be refused", &reserved).await?;
    let says = condition_of(&waits, "Accepted").context("no condition")?.message.clone();
    ensure!(
        says.contains(&world.team.name) && says.contains("annotate configmap wirepost-business-payments"),
        "{says}"
    );
    provisioned(&world, PAYMENTS).await?;
    world.cluster.delete(&others.name, "payments").await?;
    world.cluster.wait_gone(&others.name, "payments").await?;
    let (_connection, channel) = vhost.channel().await?;
    ensure!(depth(&channel, ORDERS).await? == 3);
    forget(operator).await?;

    // As a version has left it that kept no such record: everything stays until an administrator decides.
    world.setup.delete_exchange(MARK).await?;
    world.apply(PAYMENTS).await?;
    let operator = world.operator("one").flag("adopt-vhost", "").flag("orphan-grace-seconds", 1).start().await?;
    let waits = world.reason("payments", "Accepted", "BusinessTypeReserved").await?;
    let says = condition_of(&waits, "Accepted").context("no condition")?.message.clone();
    ensure!(says.contains("its namespace is not known") && says.contains("--adopt-vhost"), "{says}");
    operator.looks(8).await?;
    ensure!(world.setup.picture().await?.contains_key("exchange wirepost.payments.receive"), "it was dismantled");
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;
    let operator = world.operator("one").start().await?;
    world.condition("payments", "Provisioned", "True").await?;
    ensure!(read_numbers(vhost, ORDERS, 3).await? == [1, 2, 3]);
    ensure!(world.setup.picture().await?.contains_key(&format!("exchange {MARK}")));
    operator.had_every_right()
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
    // An administrator hands it over to every namespace: the first one may claim it again, too.
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
