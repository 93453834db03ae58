//! Declarations that the API server accepts and that can't run: what the status says, who is not hurt by it, and how it heals.

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_testing::broker::{PATIENCE, Vhost, depth, eventually, key_of, publish_for};
use wirepost_testing::cluster::{Cluster, Namespace, PrivateCluster, wait};
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::setup::PAYMENTS;

/// A business with one route, by name; `more` are further lines of its spec, such as `  businessType: x`.
fn business(name: &str, more: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}}}
spec:
  clientTypes: [app]
  routes: [{{messageType: m, sendType: ServerToClient, to: [app]}}]
{more}
"
    )
}

/// Compiles for the API server, which knows nothing of JSON Schema, and for nobody else.
const BAD_SCHEMA: &str = "{type: nonsense}";

fn with_schema(name: &str, business_type: &str, schema: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}}}
spec:
  businessType: {business_type}
  clientTypes: [app]
  routes: [{{messageType: order.new, sendType: ClientToServer, queue: {{name: orders}}, schema: {schema}}}]
  access: {{secretName: {name}-wirepost}}
"
    )
}

/// Waits until a condition of any namespace's business is so, for its present generation.
async fn condition_in(
    world: &World,
    namespace: &Namespace,
    name: &str,
    condition: &str,
    (status, reason): (&str, &str),
) -> Result<WsBusiness> {
    let what = format!("get {condition}={status} ({reason})");
    world
        .cluster
        .wait_for(&namespace.name, name, &what, |wsb| {
            condition_of(wsb, condition).is_some_and(|c| {
                c.status == status && c.reason == reason && c.observed_generation == wsb.metadata.generation
            })
        })
        .await
}

fn message(wsb: &WsBusiness, condition: &str) -> String {
    condition_of(wsb, condition).map(|c| c.message.clone()).unwrap_or_default()
}

/// Waits until whatever is created now is younger than this: creation times are whole seconds.
async fn is_older(wsb: &WsBusiness) -> Result<()> {
    let created = wsb.metadata.creation_timestamp.clone().context("no creation time")?.0;
    eventually("a second passes", PATIENCE, || async move { Ok(Timestamp::now().as_second() > created.as_second()) })
        .await
}

/// `namespace/name` of the resource that the edges' configuration of a business comes from.
async fn owner(world: &World, business: &str) -> Result<Option<String>> {
    let annotations = world.config_map(business).await?.and_then(|map| map.metadata.annotations);
    Ok(annotations.and_then(|annotations| annotations.get("wirepost.dev/owner").cloned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_resource_keeps_its_business_type_whatever_is_wrong_with_it_until_it_goes() -> Result<()> {
    let world = World::new().await?;
    let other = world.cluster.namespace("other-team").await?;
    let operator = world.operator("one").start().await?;
    world.apply(&with_schema("old", "shop", "{type: object}")).await?;
    let old = world.condition("old", "Provisioned", "True").await?;
    is_older(&old).await?;

    let taken = ("False", "BusinessTypeTaken");
    world.apply_in(&other, &with_schema("young", "shop", "{type: object}")).await?;
    let young = condition_in(&world, &other, "young", "Accepted", taken).await?;
    let holder = format!("{}/old", world.team.name);
    ensure!(message(&young, "Accepted").contains(&holder), "{}", message(&young, "Accepted"));
    ensure!(condition_of(&young, "Ready").is_some_and(|c| c.status == "False" && c.reason == "BusinessTypeTaken"));
    ensure!(young.metadata.finalizers.unwrap_or_default().is_empty(), "nothing is to be cleaned up after it");

    // A typo in the older one hands nothing over.
    world.apply(&with_schema("old", "shop", BAD_SCHEMA)).await?;
    condition_in(&world, &world.team, "old", "Accepted", ("False", "InvalidSchema")).await?;
    world.apply_in(&other, &with_schema("young", "shop", "{type: array}")).await?;
    condition_in(&world, &other, "young", "Accepted", taken).await?;
    ensure!(owner(&world, "shop").await? == Some(holder));

    world.cluster.delete(&world.team.name, "old").await?;
    condition_in(&world, &other, "young", "Provisioned", ("True", "Provisioned")).await?;
    ensure!(owner(&world, "shop").await? == Some(format!("{}/young", other.name)));
    world.cluster.wait_gone(&world.team.name, "old").await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_resource_that_never_ran_sets_its_business_type_free() -> Result<()> {
    let world = World::new().await?;
    let other = world.cluster.namespace("other-team").await?;
    let _operator = world.operator("one").start().await?;
    world.apply(&with_schema("old", "shop", BAD_SCHEMA)).await?;
    let old = condition_in(&world, &world.team, "old", "Accepted", ("False", "InvalidSchema")).await?;
    is_older(&old).await?;
    world.apply_in(&other, &with_schema("young", "shop", "{type: object}")).await?;
    condition_in(&world, &other, "young", "Accepted", ("False", "BusinessTypeTaken")).await?;
    world.cluster.delete(&world.team.name, "old").await?;
    condition_in(&world, &other, "young", "Provisioned", ("True", "Provisioned")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_does_not_compile_is_named_and_makes_nothing() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    world.apply(&with_schema("shop", "shop", BAD_SCHEMA)).await?;
    let wsb = condition_in(&world, &world.team, "shop", "Accepted", ("False", "InvalidSchema")).await?;
    let text = message(&wsb, "Accepted");
    ensure!(text.contains("spec.routes[0].schema") && text.contains("nonsense"), "{text}");
    ensure!(world.config_map("shop").await?.is_none() && world.secret("shop-wirepost").await?.is_none());
    ensure!(
        wirepost_topology::Actual::read(&world.setup.management()?)
            .await?
            .exchanges
            .iter()
            .all(|e| !e.name.starts_with("wirepost.shop."))
    );

    world.apply(&with_schema("shop", "shop", "{type: object}")).await?;
    world.condition("shop", "Provisioned", "True").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_existing_queue_is_waited_for() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    world
        .apply(
            "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: shop}
spec:
  clientTypes: [app]
  routes:
    - {messageType: order.new, sendType: ClientToServer, queue: {name: legacy-orders, existing: true}}
",
        )
        .await?;
    let wsb = condition_in(&world, &world.team, "shop", "Accepted", ("False", "QueueNotFound")).await?;
    ensure!(message(&wsb, "Accepted").contains("legacy-orders"), "{}", message(&wsb, "Accepted"));
    ensure!(world.config_map("shop").await?.is_none(), "no edge may take messages that have no place");

    // Its owner declares it; nobody touches the resource.
    let queue = json!({"durable": true, "arguments": {"x-queue-type": "quorum", "x-wirepost-accept": "shop"}});
    world.setup.call("PUT", &["queues", &world.setup.vhost().name, "legacy-orders"], &queue).await?;
    let ready = world.condition("shop", "Ready", "True").await?;
    ensure!(ready.metadata.generation == wsb.metadata.generation && ready.spec == wsb.spec);
    ensure!(ready.status.context("no status")?.queues.contains(&"legacy-orders".to_owned()));
    let (_connection, channel) = world.setup.vhost().channel().await?;
    publish_for(&channel, "wirepost.shop.receive", "order.new", "legacy-orders", b"{}").await?;
    ensure!(depth(&channel, "legacy-orders").await? == 1);
    operator.had_every_right()
}

/// A change that waits for a queue takes nothing away from what runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_to_an_absent_queue_leaves_the_last_good_generation_running_until_it_is_there() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    world.apply(&with_schema("shop", "shop", "{type: object}")).await?;
    world.condition("shop", "Ready", "True").await?;
    let (before, config_map) = (world.broker_objects().await?, world.config_map("shop").await?);

    let moved = with_schema("shop", "shop", "{type: object}").replace("name: orders", "name: legacy, existing: true");
    world.apply(&moved).await?;
    condition_in(&world, &world.team, "shop", "Accepted", ("False", "QueueNotFound")).await?;
    ensure!(world.broker_objects().await? == before, "the broker was touched");
    ensure!(world.config_map("shop").await? == config_map, "the edges' configuration was touched");
    // Kept as it was, by the next process too as far as it can know: it takes nothing away.
    world.setup.unbind("wirepost.shop.receive", "wirepost.shop.q.orders", &key_of("wirepost.shop.q.orders")).await?;
    eventually("the binding is back", PATIENCE, || async { Ok(world.broker_objects().await? == before) }).await?;
    drop(operator);
    let operator = world.operator("two").start().await?;
    operator.leads().await?;
    let waiting = "wirepost_operator_reconciles_total{outcome=\"Waiting\"}";
    eventually("it was looked at", PATIENCE, || async { Ok(operator.metric(waiting).await? > 0.0) }).await?;
    ensure!(world.broker_objects().await? == before, "the broker was touched");

    let queue = json!({"durable": true, "arguments": {"x-queue-type": "quorum", "x-wirepost-accept": "shop"}});
    world.setup.call("PUT", &["queues", &world.setup.vhost().name, "legacy"], &queue).await?;
    world.condition("shop", "Ready", "True").await?;
    let (_connection, channel) = world.setup.vhost().channel().await?;
    publish_for(&channel, "wirepost.shop.receive", "order.new", "legacy", b"{}").await?;
    ensure!(depth(&channel, "legacy").await? == 1);

    // Its own queue goes: what else is declared is repaired all the same.
    world.setup.delete_queue("legacy").await?;
    condition_in(&world, &world.team, "shop", "Accepted", ("False", "QueueNotFound")).await?;
    world.setup.delete_exchange("wirepost.shop.events").await?;
    eventually("the exchange is back", PATIENCE, || async {
        Ok(wirepost_topology::Actual::read(&world.setup.management()?)
            .await?
            .exchanges
            .iter()
            .any(|e| e.name == "wirepost.shop.events"))
    })
    .await?;
    world.setup.call("PUT", &["queues", &world.setup.vhost().name, "legacy"], &queue).await?;
    world.condition("shop", "Ready", "True").await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_beyond_what_a_configuration_holds_stop_only_their_own_business() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    world.apply(&business("before", "")).await?;
    world.condition("before", "Provisioned", "True").await?;

    // 16 of 60 KiB, each of which would do.
    let routes: Vec<Value> = (0..16)
        .map(|i| {
            json!({"messageType": format!("m{i}"), "sendType": "ServerToClient", "to": ["app"],
                "schema": {"type": "object", "description": "x".repeat(60 << 10)}})
        })
        .collect();
    let big = |routes: &[Value]| {
        json!({"apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "big"},
            "spec": {"clientTypes": ["app"], "routes": routes}})
        .to_string()
    };
    world.apply(&big(&routes)).await?;
    let wsb = condition_in(&world, &world.team, "big", "Accepted", ("False", "InvalidSchema")).await?;
    ensure!(message(&wsb, "Accepted").contains("split the business"), "{}", message(&wsb, "Accepted"));

    // All others are created, changed and deleted as ever.
    world.apply(&business("after", "")).await?;
    world.condition("after", "Provisioned", "True").await?;
    world.apply(&business("before", "  push: {delivery: Transient}\n  deletionPolicy: Delete")).await?;
    world.condition("before", "Provisioned", "True").await?;
    let config = world.config_map("before").await?.and_then(|map| map.data).context("no configuration")?;
    ensure!(config["config.json"].contains("Transient"));
    world.cluster.delete(&world.team.name, "after").await?;
    world.cluster.wait_gone(&world.team.name, "after").await?;

    // And the largest that fits does run.
    world.apply(&big(&routes[..14])).await?;
    world.condition("big", "Provisioned", "True").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_generation_leaves_the_last_good_one_running() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").flag("secret-check-seconds", 2).start().await?;
    world.apply(&with_schema("shop", "shop", "{type: object}")).await?;
    let first = world.condition("shop", "Ready", "True").await?;
    ensure!(first.metadata.generation == Some(1));
    let (before, config_map) = (world.broker_objects().await?, world.config_map("shop").await?);
    let secret = world.secret("shop-wirepost").await?.context("no Secret")?;

    world.apply(&with_schema("shop", "shop", BAD_SCHEMA).replace("name: orders", "name: other")).await?;
    let second = condition_in(&world, &world.team, "shop", "Accepted", ("False", "InvalidSchema")).await?;
    ensure!(condition_of(&second, "Accepted").is_some_and(|c| c.observed_generation == Some(2)));
    ensure!(condition_of(&second, "Ready").is_some_and(|c| c.status == "False"));
    ensure!(second.status.context("no status")?.queues == first.status.context("no status")?.queues);
    ensure!(world.broker_objects().await? == before, "the broker was touched");
    ensure!(world.config_map("shop").await? == config_map, "the edges' configuration was touched");

    // It is kept as it was, too; also by a process that has never seen it.
    let kept = async || -> Result<()> {
        world
            .setup
            .unbind("wirepost.shop.receive", "wirepost.shop.q.orders", &key_of("wirepost.shop.q.orders"))
            .await?;
        eventually("the binding is back", PATIENCE, || async { Ok(world.broker_objects().await? == before) }).await?;
        world.setup.delete_exchange("wirepost.shop.push").await?;
        eventually("the exchange is back", PATIENCE, || async { Ok(world.broker_objects().await? == before) }).await?;
        world
            .cluster
            .api::<k8s_openapi::api::core::v1::Secret>(&world.team.name)
            .delete("shop-wirepost", &kube::api::DeleteParams::default())
            .await?;
        let limit = std::time::Duration::from_secs(30);
        eventually("the Secret is back", limit, || async {
            Ok(world.secret("shop-wirepost").await?.as_ref() == Some(&secret))
        })
        .await
    };
    kept().await?;
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;
    let operator = world.operator("two").flag("secret-check-seconds", 2).start().await?;
    operator.leads().await?;
    kept().await?;
    ensure!(world.config_map("shop").await? == config_map, "the edges' configuration was touched");

    world.apply(&with_schema("shop", "shop", "{type: array}")).await?;
    let third = world.condition("shop", "Ready", "True").await?;
    ensure!(third.metadata.generation == Some(3));
    let config = world.config_map("shop").await?.and_then(|map| map.data).context("no configuration")?;
    ensure!(config["config.json"].contains("\"array\""));
    operator.had_every_right()
}

/// Case 20: one object that can't be parsed ends the watch for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_from_the_time_of_a_laxer_schema_stops_only_itself() -> Result<()> {
    let cluster = PrivateCluster::start("laxer", &[]).await?;
    let world = World::on(Cluster::clone(&cluster), Vhost::create().await?).await?;
    world.apply(&business("before", "")).await?;

    let mut lax: Value = serde_yaml::from_str(include_str!("../../../crds/wsbusinesses.wirepost.dev.yaml"))?;
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "properties": {"spec": anything, "status": anything}});
    cluster.apply_yaml(&lax.to_string()).await?;
    let strange = "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: strange}
spec:
  clientTypes: app
  businessType: [no, text]
  routes: {m: {sendType: Sideways}}
  access: 7
";
    let unruly = "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: unruly}
spec:
  clientTypes: [app, app]
  routes: [{messageType: 'a b', sendType: ServerToClient, to: [pos]}]
";
    // The API server takes a moment to see the new schema.
    for object in [strange, unruly] {
        eventually("it is stored", PATIENCE, || async { Ok(world.apply(object).await.is_ok()) }).await?;
    }
    cluster.install_crd().await?;
    eventually("the schema is strict again", PATIENCE, || async {
        Ok(world.apply(&unruly.replace("unruly", "another")).await.is_err())
    })
    .await?;

    let resource = ApiResource::erase::<WsBusiness>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &world.team.name, &resource);
    let operator = world.operator("one").start().await?;
    world.condition("before", "Provisioned", "True").await?;
    let unruly_one = condition_in(&world, &world.team, "unruly", "Accepted", ("False", "InvalidRoute")).await?;
    // That app is listed twice harms nobody.
    let accepted = message(&unruly_one, "Accepted");
    ensure!(accepted.contains("pos is not among clientTypes") && !accepted.contains("listed twice"), "{accepted}");
    // The API server takes no status for an object whose very types are wrong.
    eventually("an event says what is wrong", PATIENCE, || async {
        let events = world.events("strange").await?;
        Ok(events.iter().any(|e| e.note.as_deref().is_some_and(|note| note.contains("spec.clientTypes"))))
    })
    .await?;
    world.apply(&business("after", "")).await?;
    world.condition("after", "Provisioned", "True").await?;
    world.apply(&business("before", "  push: {delivery: Transient}\n  deletionPolicy: Delete")).await?;
    world.condition("before", "Provisioned", "True").await?;
    world.cluster.delete(&world.team.name, "before").await?;
    world.cluster.wait_gone(&world.team.name, "before").await?;

    // It can be corrected, and it can be deleted.
    // Not by server-side apply: its lists were stored when they had no keys, so the API server does not know whose their items are.
    let fixed: Value = serde_yaml::from_str(&business("unruly", ""))?;
    let spec = Patch::Merge(json!({"spec": fixed["spec"]}));
    api.patch("unruly", &PatchParams::default(), &spec).await?;
    world.condition("unruly", "Provisioned", "True").await?;
    let strange = world.events("strange").await?;
    ensure!(strange.len() == 1, "reported again and again: {strange:?}");
    for name in ["unruly", "strange"] {
        // As kubectl does it: a typed client can't even read the strange one.
        api.delete(name, &DeleteParams::default()).await?;
        wait(&api, name, "go", |found| found.is_none()).await?;
    }
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_business_of_most_tests_is_accepted() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let _operator = world.operator("one").start().await?;
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Ready", "True").await?;
    // Another's annotation is no reason to do anything.
    let api = world.team.businesses();
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"example.com/note": "x"}}}));
    api.patch("payments", &PatchParams::default(), &patch).await?;
    world.condition("payments", "Ready", "True").await?;
    Ok(())
}
