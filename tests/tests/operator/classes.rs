//! The platform team's policy: a class decides what is accepted, and ends nothing that runs.

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, WatchParams};
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_core::class::WsBusinessClass;
use wirepost_testing::broker::eventually;
use wirepost_testing::cluster::{Cluster, PATIENCE};
use wirepost_testing::hand::publish_orders;
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::{World, condition_of};

use crate::conditions::{business, conditions, of};

/// Classes belong to the whole cluster: each is named after its test, and none is the default, which other tests' businesses would get.
struct Classes(Api<WsBusinessClass>);

impl Classes {
    fn of(cluster: &Cluster) -> Self {
        Self(Api::all(cluster.client.clone()))
    }

    async fn apply(&self, name: &str, spec: &Value) -> Result<()> {
        let class = json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusinessClass", "metadata": {"name": name}, "spec": spec,
        });
        self.0.patch(name, &PatchParams::apply("wirepost-test").force(), &Patch::Apply(class)).await?;
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}

fn permitted(wsb: &WsBusiness) -> (&str, &str) {
    condition_of(wsb, "Permitted").map_or(("", ""), |c| (c.status.as_str(), c.message.as_str()))
}

/// The retention of pushes on the broker, in bytes.
async fn retention(world: &World) -> Result<Option<u64>> {
    let objects = world.broker_objects().await?;
    let policies = objects["objects"]["policies"].as_array().cloned().unwrap_or_default();
    let own = policies.iter().find(|policy| policy["name"] == "wirepost.shop.stream");
    Ok(own.and_then(|policy| policy["definition"]["max-length-bytes"].as_u64()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_decides_what_is_accepted_and_its_change_stops_nothing_that_runs() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    let (classes, class, team) = (Classes::of(&world.cluster), format!("{}-small", world.team.name), &world.team.name);
    let shop = |more: &str| business("shop", &format!("  className: {class}\n{more}"));

    // A class that does not exist yet.
    world.apply(&shop("")).await?;
    let found = conditions_but_permitted(&world.reason("shop", "Accepted", "ClassNotFound").await?)?;
    ensure!(found.contains(&class), "{found}");

    // Another namespace's.
    classes.apply(&class, &json!({"owners": [{"namespaces": ["bank"]}]})).await?;
    let wsb = world.reason("shop", "Accepted", "ClassForbids").await?;
    ensure!(permitted(&wsb).0 == "False" && permitted(&wsb).1.contains("owners"), "{wsb:?}");
    ensure!(condition_of(&wsb, "Stalled").is_some(), "nobody is told that somebody must act");

    // Fields that are left out come from the class, within its limits.
    let owners = json!([{"namespaces": [team], "businessTypes": ["shop"]}]);
    let small = json!({"owners": owners, "limits": {"retention": {"bytes": "200M"}, "edge": {"burst": 10}}});
    classes.apply(&class, &small).await?;
    let wsb = world.condition("shop", "Ready", "True").await?;
    ensure!(permitted(&wsb).0 == "True", "{wsb:?}");
    ensure!(wsb.status.as_ref().and_then(|status| status.class_name.as_deref()) == Some(class.as_str()));
    ensure!(retention(&world).await? == Some(200_000_000), "{:?}", retention(&world).await?);
    // What the class gave, and what the broker keeps, for whoever compares a change with it later.
    let status = wsb.status.clone().context("no status")?;
    let given = json!({"defaults": {"retention": {"bytes": "200M"}, "edge": {"burst": 10}}});
    ensure!(status.terms == Some(given), "{:?}", status.terms);
    ensure!(status.retention.and_then(|kept| kept.bytes).as_deref() == Some("200M"));
    let config = world.config_map("shop").await?.and_then(|map| map.data).context("no configuration")?;
    let limits: Value = serde_json::from_str(&config["config.json"])?;
    ensure!(limits["limits"]["burst"] == 10, "{limits}");

    // A stricter class: what runs goes on unchanged, also with an operator that starts now, and its status names what is forbidden.
    let strict = json!({"owners": owners, "limits": {"retention": {"bytes": "200M"}, "edge": {"burst": 5}}});
    classes.apply(&class, &strict).await?;
    let breaks = |wsb: &WsBusiness| permitted(wsb).0 == "False" && permitted(wsb).1.contains("limits.edge.burst: 5");
    world.wait("shop", "say which rule it breaks", breaks).await?;
    drop(operator);
    let operator = world.operator("two").start().await?;
    operator.leads().await?;
    operator.looks(2).await?;
    let wsb = world.wait("shop", "say which rule it breaks", breaks).await?;
    ensure!(conditions_of_ready(&wsb)? == of("True", "Ready"), "{wsb:?}");
    ensure!(retention(&world).await? == Some(200_000_000), "the class cut what was kept");
    ensure!(world.config_map("shop").await?.and_then(|map| map.data) == Some(config.clone()), "it was changed");

    // Changed, it must comply; what ran before goes on until it does.
    world.apply(&shop("  limits: {burst: 7}")).await?;
    let wsb = world.reason("shop", "Accepted", "ClassForbids").await?;
    ensure!(condition_of(&wsb, "Accepted").is_some_and(|c| c.message.contains("spec.limits.burst")), "{wsb:?}");
    ensure!(world.config_map("shop").await?.and_then(|map| map.data) == Some(config), "it was changed");
    world.apply(&shop("  limits: {messagesPerSecond: 7}")).await?;
    let wsb = world.condition("shop", "Ready", "True").await?;
    ensure!(permitted(&wsb).0 == "True" && retention(&world).await? == Some(200_000_000), "{wsb:?}");

    // Messages are not cut when another field changes while the class's default is smaller: somebody has to allow it.
    let less = json!({"owners": owners, "limits": {"retention": {"bytes": "150M"}, "edge": {"burst": 5}}});
    classes.apply(&class, &less).await?;
    world.apply(&shop("  limits: {messagesPerSecond: 8}")).await?;
    let wsb = world.reason("shop", "Accepted", "Destructive").await?;
    ensure!(wsb.status.and_then(|status| status.retention?.bytes).as_deref() == Some("200M"), "it is not cut yet");
    // Nor by the class that decides what becomes of messages with their resource.
    let mut ends = less.clone();
    ends["defaults"] = json!({"deletionPolicy": "Delete"});
    classes.apply(&class, &ends).await?;
    operator.looks(3).await?;
    world.reason("shop", "Accepted", "Destructive").await?;
    ensure!(retention(&world).await? == Some(200_000_000), "the class cut what was kept");
    classes.apply(&class, &strict).await?;
    world.condition("shop", "Ready", "True").await?;
    let config = world.config_map("shop").await?.and_then(|map| map.data).context("no configuration")?;
    ensure!(serde_json::from_str::<Value>(&config["config.json"])?["limits"]["burst"] == 5, "{config:?}");

    // The class is deleted: the same as if it were stricter.
    classes.delete(&class).await?;
    let gone = |wsb: &WsBusiness| condition_of(wsb, "Permitted").is_some_and(|c| c.reason == "ClassNotFound");
    let wsb = world.wait("shop", "say that its class is gone", gone).await?;
    ensure!(conditions_of_ready(&wsb)? == of("True", "Ready"), "{wsb:?}");
    ensure!(world.config_map("shop").await?.and_then(|map| map.data) == Some(config.clone()), "it was changed");

    // Nor does it escape the policy.
    world.apply(&business("shop", "  limits: {burst: 700}\n")).await?;
    let wsb = world.reason("shop", "Accepted", "ClassNotFound").await?;
    ensure!(condition_of(&wsb, "Accepted").is_some_and(|c| c.message.contains(&class)), "{wsb:?}");
    ensure!(world.config_map("shop").await?.and_then(|map| map.data) == Some(config), "it was changed");

    // The deletion policy is read when the resource is deleted.
    classes.apply(&class, &json!({"owners": owners, "defaults": {"deletionPolicy": "Delete"}})).await?;
    world.apply(&shop("  limits: {burst: 700}")).await?;
    world.condition("shop", "Ready", "True").await?;
    publish_orders(world.setup.vhost(), "wirepost.shop.q.orders", 1..3).await?;
    world.cluster.delete(&world.team.name, "shop").await?;
    world.cluster.wait_gone(&world.team.name, "shop").await?;
    ensure!(!world.broker_objects().await?.to_string().contains("wirepost.shop."), "something of it is left");
    classes.delete(&class).await?;
    operator.had_every_right()
}

/// Otherwise the first team could block any business type for all others.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_may_not_own_a_business_type_blocks_no_other() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    let (classes, class) = (Classes::of(&world.cluster), format!("{}-closed", world.team.name));
    classes.apply(&class, &json!({"owners": [{"namespaces": ["bank"]}]})).await?;
    let shop = |name: &str, more: &str| business(name, &format!("  businessType: shop\n{more}"));

    world.apply(&shop("older", &format!("  className: {class}\n"))).await?;
    world.reason("older", "Accepted", "ClassForbids").await?;
    world.apply(&shop("younger", "")).await?;
    world.condition("younger", "Ready", "True").await?;

    // It runs, so it keeps the type, even once the other one may own it.
    let team = &world.team.name;
    classes.apply(&class, &json!({"owners": [{"namespaces": [team]}]})).await?;
    world.reason("older", "Accepted", "BusinessTypeTaken").await?;
    operator.looks(2).await?;
    world.condition("younger", "Ready", "True").await?;
    classes.delete(&class).await?;
    operator.had_every_right()
}

/// The ConfigMap of a business is lost, and an older resource of another namespace claims its type.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_record_ends_no_clients_though_another_namespace_claims_the_type() -> Result<()> {
    let world = World::new().await?;
    let mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    let (classes, class) = (Classes::of(&world.cluster), format!("{}-closed", world.team.name));
    let shop = |more: &str| business("shop", more);
    classes.apply(&class, &json!({"owners": [{"namespaces": ["bank"]}]})).await?;
    let others = world.cluster.namespace("others").await?;
    world.apply_in(&others, &shop(&format!("  className: {class}\n"))).await?;
    let refused = |wsb: &WsBusiness| condition_of(wsb, "Accepted").is_some_and(|c| c.reason == "ClassForbids");
    world.cluster.wait_for(&others.name, "shop", "be refused", refused).await?;
    world.apply(&shop("")).await?;
    world.condition("shop", "Ready", "True").await?;
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;

    let maps: Api<ConfigMap> = world.cluster.api(&world.system.name);
    maps.delete("wirepost-business-shop", &DeleteParams::default()).await?;
    classes.apply(&class, &json!({"owners": [{"namespaces": [others.name, "bank"]}]})).await?;
    // An edge keeps what it has, and does not answer this operator.
    mirror.silence(true);
    let tombstones = ListParams::default().labels("wirepost.dev/removed");
    let seen = maps.list_metadata(&tombstones).await?.metadata.resource_version.context("no version")?;
    let operator = world.operator("two").start().await?;
    eventually("its owner has a record again", PATIENCE, || async { Ok(world.config_map("shop").await?.is_some()) })
        .await?;
    let waits = |wsb: &WsBusiness| condition_of(wsb, "Accepted").is_some_and(|c| c.reason == "BusinessTypeTaken");
    world.cluster.wait_for(&others.name, "shop", "see who owns the type", waits).await?;
    let map = world.config_map("shop").await?.context("no configuration")?;
    ensure!(map.data.is_some_and(|data| data.contains_key("config.json")));
    let events = maps
        .watch_metadata(&WatchParams::default().labels("wirepost.dev/removed").timeout(1).disable_bookmarks(), &seen)
        .await?;
    let ended: Vec<_> = events.try_collect().await?;
    ensure!(ended.is_empty(), "edges ended its clients: {ended:?}");
    classes.delete(&class).await?;
    operator.had_every_right()
}

fn conditions_of_ready(wsb: &WsBusiness) -> Result<(String, String)> {
    let ready = condition_of(wsb, "Ready").context("no condition")?;
    Ok(of(&ready.status, &ready.reason))
}

/// The message of Accepted, of a resource whose other conditions are well formed.
fn conditions_but_permitted(wsb: &WsBusiness) -> Result<String> {
    let mut without = wsb.clone();
    let status = without.status.as_mut().context("no status")?;
    status.conditions.retain(|c| c.type_ != "Permitted");
    ensure!(conditions(&without)?["Stalled"] == of("True", "ClassNotFound"));
    Ok(condition_of(wsb, "Accepted").context("no condition")?.message.clone())
}
