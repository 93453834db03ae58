//! What the operator tells people: conditions, columns, events, and silence while nothing happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::ResourceExt;
use kube::api::ListParams;
use kube::core::Request;
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::{World, condition_of, times};
use wirepost_testing::setup::PAYMENTS;

pub(crate) fn business(name: &str, more: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}}}
spec:
  clientTypes: [app]
  routes:
    - {{messageType: m, sendType: ServerToClient, to: [app]}}
    - {{messageType: order.new, sendType: ClientToServer, queue: {{name: orders}}}}
{more}
"
    )
}

/// The conditions, each well formed and of the present generation: status and reason by type. Four always exist; while it is not ready, one
/// more says whether somebody must act.
pub(crate) fn conditions(wsb: &WsBusiness) -> Result<BTreeMap<String, (String, String)>> {
    let all = wsb.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    for c in &all {
        ensure!(c.observed_generation == wsb.metadata.generation, "{c:?}");
        ensure!(matches!(c.status.as_str(), "True" | "False" | "Unknown"), "{c:?}");
        let camel = c.reason.starts_with(|ch: char| ch.is_ascii_uppercase())
            && c.reason.chars().all(|ch| ch.is_ascii_alphanumeric());
        ensure!(camel, "not a CamelCase word: {c:?}");
        ensure!(c.message.split(' ').count() >= 3 && !c.message.ends_with('.'), "not a sentence: {c:?}");
    }
    let found: BTreeMap<_, _> = all.iter().map(|c| (c.type_.clone(), (c.status.clone(), c.reason.clone()))).collect();
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let always = ["Accepted", "Programmed", "Provisioned", "Ready"];
    let outlook: Vec<&str> = names.iter().copied().filter(|name| !always.contains(name)).collect();
    let expected: &[&[&str]] = if found.get("Ready").is_some_and(|(status, _)| status == "True") {
        &[&[]]
    } else {
        &[&["Reconciling"], &["Stalled"]]
    };
    ensure!(expected.contains(&outlook.as_slice()) && all.len() == 4 + outlook.len(), "{all:?}");
    ensure!(always.iter().all(|name| found.contains_key(*name)), "{all:?}");
    Ok(found)
}

pub(crate) fn of(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_four_conditions_are_there_from_the_first_look_and_say_what_to_do() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;

    world.apply(&business("shop", "")).await?;
    let found = conditions(&world.condition("shop", "Ready", "False").await?)?;
    ensure!(found["Accepted"] == of("True", "Accepted") && found["Provisioned"] == of("True", "Provisioned"));
    ensure!(found["Programmed"] == of("False", "NoEdges") && found["Ready"] == of("False", "NoEdges"), "{found:?}");
    ensure!(found["Reconciling"] == of("True", "NoEdges"), "{found:?}");

    let mirror = Mirror::start(&world, "edge-1").await?;
    let ready = world.condition("shop", "Ready", "True").await?;
    let found = conditions(&ready)?;
    ensure!(found["Programmed"] == of("True", "Programmed") && found["Ready"] == of("True", "Ready"), "{found:?}");
    let edges = ready.status.and_then(|status| status.edges).context("no edges")?;
    ensure!((edges.programmed, edges.total, edges.summary.as_deref()) == (1, 1, Some("1/1")));

    // A generation that is not accepted: the others are not known, and Ready repeats the reason.
    world
        .apply(
            &business("shop", "  limits: {messagesPerSecond: 7}")
                .replace("{name: orders}", "{name: orders}, schema: {type: no}"),
        )
        .await?;
    let found = conditions(&world.condition("shop", "Accepted", "False").await?)?;
    ensure!(found["Accepted"] == of("False", "InvalidSchema") && found["Ready"] == of("False", "InvalidSchema"));
    ensure!(found["Stalled"] == of("True", "InvalidSchema"), "{found:?}");
    ensure!(
        found["Provisioned"] == of("Unknown", "NotAccepted") && found["Programmed"] == of("Unknown", "NotAccepted")
    );

    // Times tell when a status changed, not when it was looked at.
    world.apply(&business("shop", "")).await?;
    let before = world.condition("shop", "Ready", "True").await?;
    world.apply(&business("shop", "  limits: {messagesPerSecond: 7}")).await?;
    let after = world.condition("shop", "Ready", "True").await?;
    let since = |wsb: &WsBusiness, kind| condition_of(wsb, kind).map(|c| c.last_transition_time.clone());
    ensure!(since(&before, "Accepted") == since(&after, "Accepted"));
    ensure!(since(&before, "Provisioned") == since(&after, "Provisioned"));

    // An edge that is there and says nothing.
    drop(mirror);
    let found = conditions(&world.reason("shop", "Ready", "EdgesUnreachable").await?)?;
    ensure!(found["Programmed"].0 == "Unknown" && found["Ready"].0 == "Unknown", "it was not asked: {found:?}");
    ensure!(found["Accepted"].0 == "True" && found["Reconciling"].1 == "EdgesUnreachable", "{found:?}");
    world.leave("edge-1").await?;
    world.reason("shop", "Ready", "NoEdges").await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_get_shows_whether_and_why() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let _operator = world.operator("one").start().await?;
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Ready", "True").await?;
    world.apply(&business("shop", "").replace("{name: orders}", "{name: absent, existing: true}")).await?;
    world.condition("shop", "Accepted", "False").await?;

    let path = format!("/apis/wirepost.dev/v1alpha1/namespaces/{}/wsbusinesses", world.team.name);
    let mut request = Request::new(path).list(&ListParams::default())?;
    request.headers_mut().insert("accept", "application/json;as=Table;g=meta.k8s.io;v=v1".parse()?);
    let table: Value = world.cluster.client.request(request).await?;
    // Priority 1: with `-o wide` only.
    let columns = table["columnDefinitions"].as_array().context("no columns")?;
    let columns: Vec<_> = columns.iter().map(|c| (c["name"].as_str(), c["priority"].as_i64())).collect();
    let column = |name, priority| (Some(name), Some(priority));
    ensure!(
        columns
            == [
                column("Name", 0),
                column("Ready", 0),
                column("Type", 0),
                column("Edges", 0),
                column("Age", 0),
                column("Clients", 1),
                column("Reason", 1)
            ],
        "{columns:?}"
    );
    let rows = table["rows"].as_array().context("no rows")?;
    let cells: Vec<_> = rows.iter().map(|row| &row["cells"]).collect();
    ensure!(cells.len() == 2);
    ensure!(
        [&cells[0][0], &cells[0][1], &cells[0][2], &cells[0][3], &cells[0][6]]
            == ["payments", "True", "payments", "1/1", "Ready"],
        "{cells:?}"
    );
    ensure!([&cells[1][0], &cells[1][1], &cells[1][6]] == ["shop", "False", "QueueNotFound"], "{cells:?}");
    ensure!(cells[1][2].is_null() && cells[1][3].is_null(), "nothing of it is in use yet: {cells:?}");
    ensure!(cells.iter().all(|row| row[4].as_str().is_some_and(|age| age.ends_with('s'))), "{cells:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_tells_of_a_change_and_none_of_what_lasts() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    let absent = business("shop", "  access: {secretName: shop-wirepost}")
        .replace("{name: orders}", "{name: absent, existing: true}");
    world.apply(&absent).await?;
    world.reason("shop", "Accepted", "QueueNotFound").await?;
    eventually("an event tells of it", PATIENCE, || async {
        Ok(times(&world.events("shop").await?, "QueueNotFound") == 1)
    })
    .await?;
    let event = world.events("shop").await?.into_iter().next().context("no event")?;
    ensure!(event.type_.as_deref() == Some("Warning") && event.note.is_some_and(|note| note.contains("absent")));
    ensure!(
        event.regarding.context("about nothing")?.uid
            == world.cluster.get(&world.team.name, "shop").await?.and_then(|wsb| wsb.metadata.uid)
    );

    // It is looked at again and again, and by another process.
    looked_at(&operator).await?;
    drop(operator);
    let operator = world.operator("two").start().await?;
    operator.leads().await?;
    looked_at(&operator).await?;
    ensure!(times(&world.events("shop").await?, "QueueNotFound") == 1);

    world.apply(&business("shop", "  access: {secretName: shop-wirepost}")).await?;
    world.condition("shop", "Ready", "True").await?;
    eventually("an event tells of the end", PATIENCE, || async {
        Ok(times(&world.events("shop").await?, "Ready") == 1)
    })
    .await?;

    // The same trouble again is news again.
    world.apply(&absent).await?;
    eventually("an event tells of it again", PATIENCE, || async {
        Ok(times(&world.events("shop").await?, "QueueNotFound") == 2)
    })
    .await?;
    looked_at(&operator).await?;
    let events = world.events("shop").await?;
    let reasons: BTreeSet<_> = events.iter().filter_map(|event| event.reason.as_deref()).collect();
    ensure!(reasons == BTreeSet::from(["QueueNotFound", "Ready"]), "{reasons:?}");
    ensure!(times(&events, "QueueNotFound") == 2 && times(&events, "Ready") == 1);
    operator.had_every_right()
}

/// Some sweeps go by, in each of which a business with a problem is looked at.
async fn looked_at(operator: &wirepost_testing::operator::Operator) -> Result<()> {
    let looks = || operator.metric("wirepost_operator_broker_look_seconds_count");
    let before = looks().await?;
    eventually("three sweeps", PATIENCE, || async { Ok(looks().await? >= before + 3.0) }).await
}

/// `kind/namespace/name` → version, of everything that the operator might write.
pub(crate) async fn versions(world: &World) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for namespace in [&world.system.name, &world.team.name] {
        let all = ListParams::default();
        let mut add = |kind: &str, metas: Vec<kube::core::ObjectMeta>| {
            for meta in metas {
                let name = meta.name.unwrap_or_default();
                found.insert(format!("{kind}/{namespace}/{name}"), meta.resource_version.unwrap_or_default());
            }
        };
        let cluster = &world.cluster;
        let metas = |items: Vec<WsBusiness>| items.into_iter().map(|o| o.metadata).collect();
        add("WsBusiness", metas(cluster.api(namespace).list(&all).await?.items));
        let metas = |items: Vec<ConfigMap>| items.into_iter().map(|o| o.metadata).collect();
        add("ConfigMap", metas(cluster.api(namespace).list(&all).await?.items));
        let metas = |items: Vec<Secret>| items.into_iter().map(|o| o.metadata).collect();
        add("Secret", metas(cluster.api(namespace).list(&all).await?.items));
        let metas = |items: Vec<Event>| items.into_iter().map(|o| o.metadata).collect();
        add("Event", metas(cluster.api(namespace).list(&all).await?.items));
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_operator_writes_nothing() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").flag("secret-check-seconds", 10).start().await?;
    let standby = world.operator("two").flag("secret-check-seconds", 10).start().await?;
    world.apply(PAYMENTS).await?;
    world.apply(&business("shop", "  access: {secretName: shop-wirepost}")).await?;
    world.apply(&business("till", "  access: {secretName: till-wirepost}\n  push: {delivery: Transient}")).await?;
    // With troubles that last, too.
    world.apply(&business("waits", "").replace("{name: orders}", "{name: absent, existing: true}")).await?;
    world.apply(&business("bad", "").replace("{name: orders}", "{name: orders}, schema: {type: no}")).await?;
    for name in ["payments", "shop", "till"] {
        world.condition(name, "Ready", "True").await?;
    }
    for name in ["waits", "bad"] {
        world.condition(name, "Accepted", "False").await?;
    }
    looked_at(&operator).await?;

    let (before, on_broker) = (versions(&world).await?, world.broker_objects().await?);
    let count = |kind: &str| before.keys().filter(|key| key.starts_with(kind)).count();
    ensure!(count("WsBusiness/") == 5 && count("ConfigMap/") >= 3 && count("Secret/") >= 3 && count("Event/") > 0);
    let writes = operator.writes().await?;
    // Not a wait for something: silence for a while is what this test is about. Longer than the time between two checks of a Secret.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let after = versions(&world).await?;
    let changed: Vec<_> = before.iter().filter(|(key, version)| after.get(*key) != Some(version)).collect();
    ensure!(
        changed.is_empty() && after.len() == before.len(),
        "written: {changed:?}, {} -> {}",
        before.len(),
        after.len()
    );
    ensure!(world.broker_objects().await? == on_broker, "the broker's objects changed");
    ensure!(operator.writes().await? - writes < 0.5);
    operator.had_every_right()?;
    standby.had_every_right()
}

/// A page of metadata that a person may read without knowing what wirepost is.
#[tokio::test(flavor = "multi_thread")]
async fn what_it_makes_says_whose_it_is() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    world.apply(&business("shop", "  access: {secretName: shop-wirepost}")).await?;
    let wsb = world.condition("shop", "Provisioned", "True").await?;
    let secrets: Api<Secret> = world.cluster.api(&world.team.name);
    let secret = secrets.get("shop-wirepost").await?;
    let owner = secret.owner_references().first().context("no owner")?;
    ensure!(owner.kind == "WsBusiness" && Some(&owner.uid) == wsb.metadata.uid.as_ref(), "{owner:?}");
    let config_map = world.config_map("shop").await?.context("no configuration")?;
    for labels in [secret.labels(), config_map.labels()] {
        ensure!(labels.get("app.kubernetes.io/managed-by").map(String::as_str) == Some("wirepost-operator"));
    }
    ensure!(config_map.annotations()["wirepost.dev/owner"] == format!("{}/shop", world.team.name));
    ensure!(json!(wsb.status.context("no status")?.binding) == json!({"name": "shop-wirepost"}));
    Ok(())
}
