//! Credentials of a business's services: the Secret, its repair, its renaming, its end; below, their rotation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use lapin::options::{BasicGetOptions, BasicRejectOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wirepost_core::{hex, names};
use wirepost_testing::broker::{consume, depth, eventually, next, next_body, publish, publish_with};
use wirepost_testing::cluster::chart_rules;
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::{Operator, World, times};
use wirepost_testing::process::run;

mod rotation;

type Entries = BTreeMap<String, String>;

/// What is promised to be repaired.
const SOON: Duration = Duration::from_secs(90);

const SHOP: &str = "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: shop}
spec:
  clientTypes: [app]
  routes:
    - {messageType: order.new, sendType: ClientToServer, queue: {name: orders}}
    - {messageType: m, sendType: ServerToClient, to: [app]}
";

/// With access by a Secret of this name.
fn shop(secret: &str) -> String {
    format!("{SHOP}  access: {{secretName: {secret}}}\n")
}

/// How most tests begin.
struct Begun {
    world: World,
    operator: Operator,
    /// Of the access Secret.
    entries: Entries,
}

/// The default of the option.
const CHECK: u32 = 300;

/// An operator that checks Secrets this often (in seconds), and the business with this access Secret.
async fn provisioned(secret: &str, check: u32) -> Result<Begun> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("secret-check-seconds", check).start().await?;
    world.apply(&shop(secret)).await?;
    world.condition("shop", "Provisioned", "True").await?;
    let entries = world.secret(secret).await?.context("no Secret")?;
    Ok(Begun { world, operator, entries })
}

/// An operator, an edge, and the business ready on it, with access Secret `shop-wirepost`.
async fn ready() -> Result<(Begun, Mirror)> {
    let world = World::new().await?;
    let edge = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    world.apply(&shop("shop-wirepost")).await?;
    world.condition("shop", "Ready", "True").await?;
    let entries = world.secret("shop-wirepost").await?.context("no Secret")?;
    Ok((Begun { world, operator, entries }, edge))
}

fn secrets(world: &World) -> Api<Secret> {
    world.cluster.api(&world.team.name)
}

/// Waits until a Secret of the team has these entries.
async fn holds(world: &World, name: &str, entries: &Entries) -> Result<()> {
    eventually(&format!("Secret {name} is as it was"), SOON, || async {
        Ok(world.secret(name).await?.as_ref() == Some(entries))
    })
    .await
}

async fn gone(world: &World, name: &str) -> Result<()> {
    eventually(&format!("Secret {name} is gone"), SOON, || async { Ok(world.secret(name).await?.is_none()) }).await
}

async fn log_in(entries: &Entries) -> Result<Connection> {
    Ok(Connection::connect(&entries["uri"], ConnectionProperties::default()).await?)
}

/// The API keys that the edges accept: digest, and when it ends (ms since the epoch).
async fn api_keys(world: &World) -> Result<BTreeMap<String, Option<i64>>> {
    let data = world.config_map("shop").await?.and_then(|map| map.data).context("no configuration")?;
    let config: Value = serde_json::from_str(&data["config.json"])?;
    let keys = config["auth"]["apiKeys"].as_array().cloned().unwrap_or_default();
    Ok(keys
        .iter()
        .map(|key| (key["sha256"].as_str().unwrap_or_default().to_owned(), key["expiresAt"].as_i64()))
        .collect())
}

fn digest(entries: &Entries) -> String {
    hex(Sha256::digest(&entries["api-key"]))
}

/// Users with permissions in the vhost, but for the tests' own.
async fn users(world: &World) -> Result<BTreeSet<String>> {
    let objects = world.broker_objects().await?;
    let names = objects["permissions"].as_array().cloned().unwrap_or_default();
    let names = names.iter().filter_map(|p| p["user"].as_str().map(str::to_owned));
    Ok(names.filter(|name| name.starts_with("wirepost.")).collect())
}

async fn annotate(world: &World, key: &str, value: &str) -> Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
    world.team.businesses().patch("shop", &PatchParams::default(), &patch).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_has_the_form_of_service_binding_and_what_it_says_works() -> Result<()> {
    let Begun { world, operator, entries } = provisioned("shop-wirepost", CHECK).await?;
    let wsb = world.condition("shop", "Provisioned", "True").await?;
    let keys: Vec<&str> = entries.keys().map(String::as_str).collect();
    ensure!(
        keys == [
            "api-key",
            "business-type",
            "dead-queue",
            "endpoint",
            "events-exchange",
            "host",
            "password",
            "port",
            "provider",
            "push-exchange",
            "queue.orders",
            "receive-exchange",
            "type",
            "uri",
            "username",
            "virtual-host",
        ],
        "{keys:?}"
    );
    // servicebinding.io: the well-known entry names the kind of service, the Secret's type says it again, the status names the Secret.
    ensure!(entries["type"] == "rabbitmq" && entries["provider"] == "wirepost");
    let secret = secrets(&world).get("shop-wirepost").await?;
    ensure!(secret.type_.as_deref() == Some("servicebinding.io/rabbitmq"));
    ensure!(wsb.status.and_then(|status| status.binding).is_some_and(|binding| binding.name == "shop-wirepost"));
    for (key, value) in [
        ("virtual-host", world.setup.vhost().name.as_str()),
        ("business-type", "shop"),
        ("receive-exchange", "wirepost.shop.receive"),
        ("push-exchange", "wirepost.shop.push"),
        ("events-exchange", "wirepost.shop.events"),
        ("dead-queue", "wirepost.shop.dead"),
        ("queue.orders", "wirepost.shop.q.orders"),
        ("endpoint", "https://ws.example.com/shop/websocket"),
    ] {
        ensure!(entries[key] == value, "{key}: {}", entries[key]);
    }

    // A service binds to the parts, or to the URI; it pushes, and takes what clients sent.
    let parts = format!(
        "amqp://{}:{}@{}:{}/{}",
        entries["username"], entries["password"], entries["host"], entries["port"], entries["virtual-host"]
    );
    ensure!(parts == entries["uri"], "the parts say something else than the URI");
    let connection = log_in(&entries).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    publish(&channel, &entries["push-exchange"], "", b"{}").await?;
    let (_edge, edges) = world.setup.vhost().channel().await?;
    publish(&edges, &entries["receive-exchange"], &names::queue_key(&entries["queue.orders"]), b"{\"n\":1}").await?;
    let mut orders = consume(&channel, &entries["queue.orders"], 1).await?;
    ensure!(next_body(&mut orders).await? == b"{\"n\":1}");
    ensure!(depth(&channel, &entries["dead-queue"]).await? == 0);
    // The edges know the API key by its digest alone.
    ensure!(api_keys(&world).await? == BTreeMap::from([(digest(&entries), None)]));
    ensure!(users(&world).await? == BTreeSet::from([entries["username"].clone()]));
    operator.had_every_right()
}

/// The documented way back for messages that a service could not handle, with the real tool, the Secret as `kubectl` prints it, and the
/// rights of the user in it.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_go_back_with_the_rights_of_the_access_secret() -> Result<()> {
    const DEPTH: &str = "wirepost_operator_dead_messages{business=\"shop\"}";
    let Begun { world, operator, .. } = provisioned("shop-wirepost", CHECK).await?;
    let secret = serde_json::to_string(&secrets(&world).get("shop-wirepost").await?)?;
    let dead = async |arguments: &[&str]| {
        let (status, out, error) =
            run("wirepost", &[&["dead"][..], arguments, &["--access", "-"]].concat(), &secret).await?;
        ensure!(status == Some(0), "{arguments:?}: {out}{error}");
        Ok::<_, anyhow::Error>(out)
    };
    let (_edge, edges) = world.setup.vhost().channel().await?;
    for id in ["o-1", "o-2"] {
        let properties = BasicProperties::default().with_message_id(id.into());
        publish_with(&edges, "wirepost.shop.receive", &names::queue_key("wirepost.shop.q.orders"), b"{}", properties)
            .await?;
        let message = edges.basic_get("wirepost.shop.q.orders".into(), BasicGetOptions::default()).await?;
        message.context("no message")?.reject(BasicRejectOptions { requeue: false }).await?;
    }
    eventually("both are dead", SOON, || async { Ok(depth(&edges, "wirepost.shop.dead").await? == 2) }).await?;
    eventually("the metric tells", SOON, || async { Ok((operator.metric(DEPTH).await? - 2.0).abs() < 0.5) }).await?;

    let listed = dead(&["list"]).await?;
    ensure!(listed.contains("o-1") && listed.contains("rejected"), "{listed}");
    ensure!(listed.contains("wirepost.shop.dead 2") && listed.contains("wirepost.shop.q.orders 0"), "{listed}");
    ensure!(dead(&["show", "o-2"]).await?.contains("id: o-2"));
    ensure!(dead(&["replay", "--id", "o-1"]).await?.contains("replayed o-1 → wirepost.shop.q.orders"));
    let mut orders = consume(&edges, "wirepost.shop.q.orders", 1).await?;
    let back = next(&mut orders).await?;
    ensure!(back.properties.message_id().as_ref().is_some_and(|id| id.as_str() == "o-1"), "{:?}", back.properties);
    ensure!(dead(&["drop", "--id", "o-2"]).await?.contains("1 dropped"));
    eventually("the metric tells", SOON, || async { Ok(operator.metric(DEPTH).await?.abs() < 0.5) }).await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_deleted_or_altered_comes_back_the_same() -> Result<()> {
    let Begun { world, operator, entries } = provisioned("shop-wirepost", 2).await?;
    let connection = log_in(&entries).await?;

    secrets(&world).delete("shop-wirepost", &DeleteParams::default()).await?;
    holds(&world, "shop-wirepost", &entries).await?;

    let altered = json!({"stringData": {"password": "guess"}, "data": {"api-key": null}});
    secrets(&world).patch("shop-wirepost", &PatchParams::default(), &Patch::Merge(altered)).await?;
    holds(&world, "shop-wirepost", &entries).await?;

    // What someone adds is theirs.
    let added = json!({"stringData": {"note": "mine"}});
    secrets(&world).patch("shop-wirepost", &PatchParams::default(), &Patch::Merge(added)).await?;
    secrets(&world)
        .patch("shop-wirepost", &PatchParams::default(), &Patch::Merge(json!({"data": {"host": null}})))
        .await?;
    let mut both = entries.clone();
    both.insert("note".to_owned(), "mine".to_owned());
    holds(&world, "shop-wirepost", &both).await?;
    ensure!(connection.status().connected(), "a service was cut off by a repair");

    // Another process makes the same of it.
    drop(operator);
    secrets(&world).delete("shop-wirepost", &DeleteParams::default()).await?;
    let operator = world.operator("two").start().await?;
    holds(&world, "shop-wirepost", &entries).await?;
    ensure!(connection.status().connected(), "a service was cut off by another operator");
    operator.had_every_right()
}

/// Long before the next check is due.
#[tokio::test(flavor = "multi_thread")]
async fn touching_the_resource_restores_its_secret_immediately() -> Result<()> {
    let Begun { world, operator, entries } = provisioned("shop-wirepost", 86_400).await?;

    secrets(&world).delete("shop-wirepost", &DeleteParams::default()).await?;
    annotate(&world, "example.com/check", "1").await?;
    holds(&world, "shop-wirepost", &entries).await?;

    // So does the repair of something else of the business.
    secrets(&world).delete("shop-wirepost", &DeleteParams::default()).await?;
    let maps: Api<ConfigMap> = world.cluster.api(&world.system.name);
    maps.delete("wirepost-business-shop", &DeleteParams::default()).await?;
    holds(&world, "shop-wirepost", &entries).await?;
    operator.had_every_right()
}

/// With exactly the right that the chart gives for it.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_namespace_whose_secrets_may_be_watched_a_secret_comes_back_without_a_check() -> Result<()> {
    let world = World::new().await?;
    let team = world.team.name.clone();
    let start = async |name: &str| {
        let operator = world.operator(name).flag("secret-check-seconds", 86_400).flag("watch-secrets-in", &team);
        operator.start().await
    };
    let operator = start("one").await?;
    world.apply(&shop("shop-wirepost")).await?;
    world.condition("shop", "Provisioned", "True").await?;
    let entries = world.secret("shop-wirepost").await?.context("no Secret")?;
    eventually("it says that it lacks the right", SOON, || async {
        Ok(operator.log().contains("cannot watch access Secrets"))
    })
    .await?;

    world.account.grant_in(&team, &chart_rules("operator-secrets-watch-rules")?).await?;
    eventually("it watches", SOON, || async { Ok(operator.log().contains("watching access Secrets")) }).await?;
    secrets(&world).delete("shop-wirepost", &DeleteParams::default()).await?;
    holds(&world, "shop-wirepost", &entries).await?;
    let altered = json!({"stringData": {"password": "guess"}});
    secrets(&world).patch("shop-wirepost", &PatchParams::default(), &Patch::Merge(altered)).await?;
    holds(&world, "shop-wirepost", &entries).await?;

    // Deleted before another process watches.
    drop(operator);
    let operator = start("two").await?;
    operator.leads().await?;
    // Without an edge it is never ready.
    eventually("it was reconciled", SOON, || async {
        Ok(operator.metric("wirepost_operator_reconciles_total{outcome=\"Waiting\"}").await? > 0.0)
    })
    .await?;
    secrets(&world).delete("shop-wirepost", &DeleteParams::default()).await?;
    holds(&world, "shop-wirepost", &entries).await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_secret_of_that_name_is_left_alone() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    let mut foreign = Secret::default();
    foreign.metadata.name = Some("theirs".to_owned());
    foreign.string_data = Some(BTreeMap::from([("key".to_owned(), "value".to_owned())]));
    let foreign = secrets(&world).create(&PostParams::default(), &foreign).await?;

    world.apply(&shop("theirs")).await?;
    let wsb = world.reason("shop", "Provisioned", "SecretTaken").await?;
    let told = wsb.status.clone().unwrap_or_default().conditions;
    ensure!(told.iter().any(|c| c.type_ == "Provisioned" && c.message.contains("theirs")), "{told:?}");
    ensure!(wsb.status.and_then(|status| status.binding).is_none(), "a service binding would get the foreign Secret");
    eventually("an event tells of it", SOON, || async { Ok(times(&world.events("shop").await?, "SecretTaken") == 1) })
        .await?;

    // Another name, or the end of the foreign one, helps.
    world.apply(&shop("ours")).await?;
    world.condition("shop", "Provisioned", "True").await?;
    let entries = world.secret("ours").await?.context("no Secret")?;
    world.apply(&shop("theirs")).await?;
    let wsb = world.reason("shop", "Provisioned", "SecretTaken").await?;
    ensure!(wsb.status.and_then(|status| status.binding).is_some_and(|binding| binding.name == "ours"));
    ensure!(world.secret("ours").await?.as_ref() == Some(&entries), "the services lost what they had");
    let still = secrets(&world).get("theirs").await?;
    ensure!(still.resource_version() == foreign.resource_version(), "it was written to");
    secrets(&world).delete("theirs", &DeleteParams::default()).await?;
    holds(&world, "theirs", &entries).await?;
    gone(&world, "ours").await?;
    world.condition("shop", "Provisioned", "True").await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_name_moves_the_credentials_and_no_access_ends_them() -> Result<()> {
    let Begun { world, operator, entries } = provisioned("first", CHECK).await?;
    let connection = log_in(&entries).await?;

    world.apply(&shop("second")).await?;
    world.condition("shop", "Provisioned", "True").await?;
    ensure!(world.secret("second").await?.as_ref() == Some(&entries), "reported before it was there");
    gone(&world, "first").await?;
    ensure!(connection.status().connected(), "a service was cut off");

    world.apply(SHOP).await?;
    gone(&world, "second").await?;
    let wsb = world.condition("shop", "Provisioned", "True").await?;
    ensure!(wsb.status.and_then(|status| status.binding).is_none());
    eventually("the user is gone", SOON, || async { Ok(users(&world).await?.is_empty()) }).await?;
    eventually("it is cut off", SOON, || async { Ok(!connection.status().connected()) }).await?;
    ensure!(log_in(&entries).await.is_err());
    ensure!(api_keys(&world).await?.is_empty());
    operator.had_every_right()
}

/// The name of the former Secret is nowhere but in the status.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_renamed_while_the_broker_is_away_leaves_no_former_one() -> Result<()> {
    let Begun { world, operator, .. } = provisioned("first", CHECK).await?;
    drop(operator);

    let away = world.operator("two").flag("management", "http://guest:guest@127.0.0.1:1").start().await?;
    world.apply(&shop("second")).await?;
    world.reason("shop", "Provisioned", "BrokerUnavailable").await?;
    ensure!(world.secret("first").await?.is_some(), "services that start now have no credentials");
    drop(away);

    let operator = world.operator("three").start().await?;
    world.condition("shop", "Provisioned", "True").await?;
    ensure!(world.secret("second").await?.is_some());
    gone(&world, "first").await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_resources_never_share_credentials() -> Result<()> {
    let Begun { world, operator: _operator, entries: first } = provisioned("shop-wirepost", CHECK).await?;
    world.cluster.delete(&world.team.name, "shop").await?;
    world.cluster.wait_gone(&world.team.name, "shop").await?;
    // The same name, declared again, possibly by another team.
    world.apply(&shop("shop-wirepost")).await?;
    world.condition("shop", "Provisioned", "True").await?;
    let second = world.secret("shop-wirepost").await?.context("no Secret")?;
    for key in ["username", "password", "api-key"] {
        ensure!(first[key] != second[key], "{key}");
    }
    ensure!(log_in(&first).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_may_write_access_secrets_and_read_none() -> Result<()> {
    let Begun { world, operator, .. } = provisioned("shop-wirepost", CHECK).await?;
    let client = world.account.client().await?;
    let may = async |verb: &str, namespace: &str, name: &str| -> Result<bool> {
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            resource: Some("secrets".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()).filter(|name| !name.is_empty()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    };
    for namespace in [&world.team.name, &world.system.name, &"kube-system".to_owned()] {
        for verb in ["list", "watch", "deletecollection", "update"] {
            ensure!(!may(verb, namespace, "").await?, "it may {verb} Secrets in {namespace}");
        }
        ensure!(!may("get", namespace, "shop-wirepost").await?, "it may get a Secret in {namespace}");
    }
    ensure!(may("get", &world.system.name, "wirepost-seed").await?, "not even its own seed");

    // And so it is, not only by the review.
    let mine: Api<Secret> = Api::namespaced(client, &world.team.name);
    for refused in [mine.get("shop-wirepost").await.map(drop), mine.list(&ListParams::default()).await.map(drop)] {
        ensure!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
    }
    operator.had_every_right()
}
