//! The default class, and the definition of classes. Both are the whole cluster's, so each test has an API server of its own.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_core::class::WsBusinessClass;
use wirepost_testing::broker::{Vhost, eventually};
use wirepost_testing::cluster::{Cluster, PATIENCE, PrivateCluster};
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::{World, condition_of};

use crate::conditions::business;

const OUTDATED: &str = "wirepost_operator_crd_outdated";

async fn apply(cluster: &Cluster, name: &str, spec: &Value) -> Result<()> {
    let class = json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusinessClass", "metadata": {"name": name}, "spec": spec,
    });
    cluster.apply_yaml(&class.to_string()).await?;
    Ok(())
}

fn class_of(wsb: &WsBusiness) -> Option<&str> {
    wsb.status.as_ref()?.class_name.as_deref()
}

/// Bytes that a queue may hold, and connections that each user of the vhost may have.
async fn in_force(world: &World, business: &str) -> Result<(Option<u64>, Vec<i64>)> {
    let name = format!("wirepost.{business}.q.orders");
    let queue = world.setup.ask(&["queues", &world.setup.vhost().name, &name]).await?;
    let limits = world.setup.ask(&["user-limits"]).await?;
    let prefix = format!("wirepost.{business}.");
    let of = |user: &Value| user["user"].as_str().is_some_and(|user| user.starts_with(&prefix));
    let connections = limits.as_array().into_iter().flatten().filter(|user| of(user));
    let connections = connections.filter_map(|user| user["value"]["max-connections"].as_i64()).collect();
    Ok((queue["effective_policy_definition"]["max-length-bytes"].as_u64(), connections))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_default_classes_the_oldest_counts_and_without_any_the_installation_decides() -> Result<()> {
    let cluster = PrivateCluster::start("default-class", &[]).await?;
    let world = World::on(Cluster::clone(&cluster), Vhost::create().await?).await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    let limits = json!({"queue": {"maxLengthBytes": "200M"}, "user": {"connections": 7}});
    apply(&cluster, "first", &json!({"default": true, "limits": limits})).await?;
    // A vhost has a queue and users of any other test under these names only if it is this one's.
    let shop = format!("shop-{}", world.setup.vhost().name.rsplit('-').next().context("no name")?);
    let access = "  access: {secretName: access}\n";
    world.apply(&business(&shop, access)).await?;
    world.wait(&shop, "have its class", |wsb| class_of(wsb) == Some("first")).await?;
    world.condition(&shop, "Ready", "True").await?;
    eventually("the limits of the class are in force", PATIENCE, || async {
        Ok(in_force(&world, &shop).await? == (Some(200_000_000), vec![7]))
    })
    .await?;

    apply(&cluster, "second", &json!({"default": true})).await?;
    let events: Api<Event> = cluster.api("default");
    eventually("somebody is told", PATIENCE, || async {
        let all = events.list(&ListParams::default()).await?;
        Ok(all.items.iter().any(|event| {
            event.reason.as_deref() == Some("SeveralDefaults")
                && event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some("first"))
                && event.note.as_ref().is_some_and(|note| note.contains("second"))
        }))
    })
    .await?;
    ensure!(class_of(&world.condition(&shop, "Ready", "True").await?) == Some("first"));

    // Without any class what is new has no policy.
    let classes: Api<WsBusinessClass> = Api::all(cluster.client.clone());
    for name in ["first", "second"] {
        classes.delete(name, &DeleteParams::default()).await?;
    }
    world
        .wait(&shop, "miss its class", |wsb| {
            condition_of(wsb, "Permitted").is_some_and(|c| c.reason == "ClassNotFound")
        })
        .await?;
    world.apply(&business("free", "")).await?;
    let free = world.condition("free", "Ready", "True").await?;
    ensure!(condition_of(&free, "Permitted").is_none(), "{free:?}");
    operator.had_every_right()?;

    // Where the installation asks for one, nothing new is accepted, and what runs goes on.
    drop(operator);
    let operator = world.operator("two").flag("require-class", true).start().await?;
    world.apply(&business("late", "")).await?;
    let late = world.reason("late", "Accepted", "ClassNotFound").await?;
    let message = condition_of(&late, "Accepted").map(|c| c.message.clone()).unwrap_or_default();
    ensure!(message.contains("accepts nothing without one"), "{message}");
    operator.looks(2).await?;
    for name in ["free", shop.as_str()] {
        world.condition(name, "Ready", "True").await?;
    }
    operator.had_every_right()
}

/// With an older definition the API server drops a newer limit from what it serves.
#[tokio::test(flavor = "multi_thread")]
async fn under_an_older_definition_of_classes_nothing_is_accepted_and_no_limit_is_lost() -> Result<()> {
    let cluster = PrivateCluster::start("old-class-crd", &[]).await?;
    let world = World::on(Cluster::clone(&cluster), Vhost::create().await?).await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    apply(&cluster, "standard", &json!({"default": true, "limits": {"totalBytes": "3Gi"}})).await?;
    world.apply(&business("shop", "")).await?;
    world.wait("shop", "have its class", |wsb| class_of(wsb) == Some("standard")).await?;
    world.condition("shop", "Ready", "True").await?;
    let classes: Api<WsBusinessClass> = Api::all(cluster.client.clone());
    let before = classes.get("standard").await?;

    let mut older: Value = serde_yaml::from_str(include_str!("../../../crds/wsbusinessclasses.wirepost.dev.yaml"))?;
    let spec = &mut older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let limits = spec["limits"]["properties"].as_object_mut().context("no limits")?;
    limits.remove("totalBytes").context("there is no such field")?;
    cluster.apply_yaml(&older.to_string()).await?;
    eventually("it notices", PATIENCE, || async { Ok(operator.metric(OUTDATED).await? > 0.5) }).await?;
    ensure!(operator.log().contains("spec.limits.totalBytes"), "the log does not say what is missing");
    world.apply(&business("new", "")).await?;
    world.reason("new", "Accepted", "ClassesUnknown").await?;
    operator.looks(2).await?;
    let shop = world.condition("shop", "Ready", "True").await?;
    ensure!(class_of(&shop) == Some("standard"), "{shop:?}");

    cluster.install_crd().await?;
    world.condition("new", "Ready", "True").await?;
    ensure!(classes.get("standard").await? == before, "the class has lost something");
    operator.had_every_right()
}
