//! What a platform engineer sees of the operator: probes, metrics, logs, and how it reports a CustomResourceDefinition that does not match.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, Vhost, eventually};
use wirepost_testing::cluster::{Cluster, PrivateCluster, wait};
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::{Operator, World, condition_of, times};
use wirepost_testing::raw::Raw;

const CRD: &str = "wsbusinesses.wirepost.dev";
/// What is promised to be repaired.
const SOON: Duration = Duration::from_secs(90);

fn shop(more: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: shop}}
spec:
  clientTypes: [app]
  routes:
    - {{messageType: order.new, sendType: ClientToServer, queue: {{name: orders}}}}
    - {{messageType: m, sendType: ServerToClient, to: [app]}}
  access: {{secretName: shop-wirepost}}
{more}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_admin_port_keep_no_probe_out() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    let mut idle = Vec::new();
    for _ in 0..80 {
        idle.push(Raw::connect(operator.admin).await?);
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let mut probe = Raw::connect(operator.admin).await?;
        probe.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await?;
        let answer = probe.end(Duration::from_secs(5)).await.context("the kubelet would take it as dead")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_waits_for_its_definition_and_runs_without_that_of_classes() -> Result<()> {
    let cluster = PrivateCluster::start("no-crd", &[]).await?;
    let world = World::on(Cluster::clone(&cluster), Vhost::create().await?).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for name in [CRD, "wsbusinessclasses.wirepost.dev"] {
        crds.delete(name, &DeleteParams::default()).await?;
        wait(&crds, name, "go", |found| found.is_none()).await?;
    }

    let operator = world.operator("one").start_unready().await?;
    eventually("it names what is pending", PATIENCE, || async {
        let (status, text) = operator.readyz().await?;
        let pending = status == 503 && text.contains("custom resource definition");
        Ok(pending && !text.contains("edge") && !text.contains("classes"))
    })
    .await?;
    ensure!(operator.admin("/livez").await?.0 == 200);
    eventually("the log says what to do", PATIENCE, || async { Ok(operator.log().contains("is not installed")) })
        .await?;
    ensure!(operator.running());

    // As with a chart from before there were classes.
    cluster.apply_yaml(include_str!("../../../crds/wsbusinesses.wirepost.dev.yaml")).await?;
    eventually("it is ready", SOON, || async { Ok(operator.readyz().await? == (200, "ok\n".to_owned())) }).await?;
    world.apply(&shop("")).await?;
    let wsb = world.condition("shop", "Provisioned", "True").await?;
    ensure!(condition_of(&wsb, "Permitted").is_none(), "{wsb:?}");

    // The first policy: it is reported for what runs, and refuses what is new.
    cluster.install_crd().await?;
    let class = "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusinessClass
metadata: {name: standard}
spec: {default: true, owners: [{namespaces: [bank]}]}
";
    cluster.apply_yaml(class).await?;
    world
        .wait("shop", "say that its class forbids it", |wsb| {
            condition_of(wsb, "Permitted").is_some_and(|c| c.status == "False" && c.message.contains("owners"))
                && condition_of(wsb, "Accepted").is_some_and(|c| c.status == "True")
        })
        .await?;
    world.apply(&shop("").replace("shop", "new")).await?;
    world.reason("new", "Accepted", "ClassForbids").await?;
    operator.had_every_right()
}

/// Case 22: with an older definition the API server drops a newer limit silently, also with a write of the status.
#[tokio::test(flavor = "multi_thread")]
async fn under_an_older_definition_nothing_is_written_to_resources_and_nothing_new_is_applied() -> Result<()> {
    let cluster = PrivateCluster::start("old-crd", &[]).await?;
    let world = World::on(Cluster::clone(&cluster), Vhost::create().await?).await?;
    let mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    let limit = "  limits: {messagesPerSecond: 7}";
    world.apply(&shop(limit)).await?;
    world.condition("shop", "Ready", "True").await?;
    let (running, on_broker) = (world.config_map("shop").await?, world.broker_objects().await?);
    let version = async || {
        let wsb = world.cluster.get(&world.team.name, "shop").await?.context("no resource")?;
        anyhow::Ok(wsb.metadata.resource_version)
    };

    let mut older: Value = serde_yaml::from_str(include_str!("../../../crds/wsbusinesses.wirepost.dev.yaml"))?;
    let spec = &mut older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let limits = spec["limits"]["properties"].as_object_mut().context("no limits")?;
    limits.remove("messagesPerSecond").context("there is no such field")?;
    cluster.apply_yaml(&older.to_string()).await?;
    let before = version().await?;
    // A change of the status that is due immediately.
    drop(mirror);
    world.leave("edge-1").await?;
    eventually("it notices", SOON, || async { is(&operator, "wirepost_operator_crd_outdated", 1.0).await }).await?;
    ensure!(operator.log().contains("spec.limits.messagesPerSecond"), "the log does not say what is missing");
    ensure!(operator.readyz().await?.0 == 200, "a replica that is not ready is of no more use");

    // Also by another process, which has seen nothing else and has something to repair.
    drop(operator);
    let operator = world.operator("two").start().await?;
    operator.leads().await?;
    world.setup.delete_exchange("wirepost.shop.events").await?;
    eventually("the exchange is back", SOON, || async { Ok(world.broker_objects().await? == on_broker) }).await?;
    ensure!(world.config_map("shop").await? == running, "the edges' configuration was touched");
    ensure!(version().await? == before, "the resource was written to, and has lost a field");
    let outdated = "CustomResourceDefinitionOutdated";
    ensure!(times(&world.events("shop").await?, outdated) == 0, "what runs is not held back");

    // Nothing new is applied, and its team gets an event.
    ensure!(world.apply(&shop("  limits: {messagesPerSecond: 8}")).await.is_err(), "strict clients are told");
    world.apply(&shop("").replace("shop", "new")).await?;
    eventually("an event tells of it", PATIENCE, || async { Ok(times(&world.events("new").await?, outdated) == 1) })
        .await?;
    ensure!(world.config_map("new").await?.is_none());
    world.cluster.delete(&world.team.name, "new").await?;
    world.cluster.wait_gone(&world.team.name, "new").await?;

    // The field comes back with the definition, in the same generation.
    let mirror = Mirror::start(&world, "edge-1").await?;
    cluster.install_crd().await?;
    eventually("it notices again", SOON, || async { is(&operator, "wirepost_operator_crd_outdated", 0.0).await })
        .await?;
    world.apply(&shop("").replace("shop", "other")).await?;
    world.condition("other", "Ready", "True").await?;
    let wsb = world.condition("shop", "Ready", "True").await?;
    let declared = wsb.spec.limits.and_then(|limits| limits.messages_per_second);
    ensure!(declared == Some(7), "the field is lost: {declared:?}");
    ensure!(world.config_map("shop").await? == running, "the edges' configuration was touched");
    drop(mirror);
    operator.had_every_right()
}

/// Whether a whole number is this one.
async fn is(operator: &Operator, series: &str, value: f64) -> Result<bool> {
    Ok((operator.metric(series).await? - value).abs() < 0.5)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_count_what_happened() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    operator.leads().await?;
    let standby = world.operator("two").start().await?;
    let metric = |series: &'static str| operator.metric(series);
    world.apply(&shop("")).await?;
    world.condition("shop", "Ready", "True").await?;
    ensure!(is(&operator, "wirepost_operator_leader", 1.0).await?);
    ensure!(is(&operator, "wirepost_operator_businesses", 1.0).await?);
    ensure!(is(&operator, "wirepost_operator_edges", 1.0).await?);
    ensure!(is(&operator, "wirepost_operator_edges_unreachable", 0.0).await?);
    // The status is written a moment before its run counts.
    for (series, more_than) in [
        ("wirepost_operator_reconciles_total{outcome=\"Ready\"}", 0.0),
        ("wirepost_operator_reconcile_seconds_count", 0.0),
        ("wirepost_operator_broker_look_seconds_count", 0.0),
        ("wirepost_operator_broker_changes_total", 5.0),
    ] {
        eventually(series, PATIENCE, || async { Ok(metric(series).await? > more_than) }).await?;
    }
    ensure!(is(&operator, "wirepost_operator_drift_repairs_total", 0.0).await?);
    for object in ["Status", "Finalizer", "ConfigMap", "Secret", "Event"] {
        let series = format!("wirepost_operator_api_writes_total{{object=\"{object}\"}}");
        eventually(&format!("{object} was written"), PATIENCE, || async { Ok(operator.metric(&series).await? > 0.0) })
            .await?;
    }

    world.setup.unbind("wirepost.shop.receive", "wirepost.shop.q.orders", "queue wirepost.shop.q.orders").await?;
    eventually("a repair counts", SOON, || async { is(&operator, "wirepost_operator_drift_repairs_total", 1.0).await })
        .await?;
    world.apply(&shop("").replace("{name: orders}", "{name: orders}, schema: {type: no}")).await?;
    world.condition("shop", "Accepted", "False").await?;
    eventually("waiting counts", PATIENCE, || async {
        Ok(metric("wirepost_operator_reconciles_total{outcome=\"Waiting\"}").await? > 0.0)
    })
    .await?;

    // The other replica knows as much, and has done nothing.
    ensure!(is(&standby, "wirepost_operator_leader", 0.0).await?);
    ensure!(is(&standby, "wirepost_operator_businesses", 1.0).await?);
    ensure!(standby.writes().await? < 0.5);
    // Its own depths: the only series that name a business.
    let named = async || -> Result<Vec<String>> {
        let (_, text) = operator.admin("/metrics").await?;
        Ok(text.lines().filter(|line| line.contains("shop")).map(str::to_owned).collect())
    };
    let depth = |line: &String| {
        ["dead", "unrouted"].iter().any(|of| line.starts_with(&format!("wirepost_operator_{of}_messages{{")))
    };
    eventually("its depths are counted", SOON, async || Ok(named().await?.len() == 2)).await?;
    ensure!(named().await?.iter().all(depth), "a label names a business: {:?}", named().await?);
    world.cluster.delete(&world.team.name, "shop").await?;
    world.cluster.wait_gone(&world.team.name, "shop").await?;
    eventually("it is known no more", PATIENCE, || async { is(&operator, "wirepost_operator_businesses", 0.0).await })
        .await?;

    // As metrics collectors read it.
    let (status, text) = operator.admin("/metrics").await?;
    ensure!(status == 200 && text.ends_with("# EOF\n"));
    eventually("no series names it any more", SOON, async || Ok(named().await?.is_empty())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_counts_as_errors_and_changes_neither_probe() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("management", "http://guest:guest@127.0.0.1:1").start().await?;
    world.apply(&shop("")).await?;
    world.reason("shop", "Provisioned", "BrokerUnavailable").await?;
    ensure!(operator.readyz().await?.0 == 200 && operator.admin("/livez").await?.0 == 200);
    eventually("errors count", PATIENCE, || async {
        Ok(operator.metric("wirepost_operator_reconciles_total{outcome=\"Error\"}").await? > 0.0
            && operator.metric("wirepost_operator_broker_failures_total").await? > 0.0)
    })
    .await?;
    ensure!(!operator.log().contains("guest:guest"), "{}", operator.log());
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_or_a_status() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").flag("secret-check-seconds", 2).start().await?;
    world.apply(&shop("")).await?;
    world.condition("shop", "Provisioned", "True").await?;
    let first = world.secret("shop-wirepost").await?.context("no Secret")?;

    // Much that is worth a line: repairs, a rotation, a deleted Secret, a process that starts with all this, a broker that refuses it.
    let vhost = &world.setup.vhost().name;
    world.setup.call("DELETE", &["permissions", vhost, &first["username"]], &Value::Null).await?;
    world.setup.delete_exchange("wirepost.shop.push").await?;
    // An event stays, a condition may be over before it is seen.
    eventually("the repair is told", SOON, || async { Ok(times(&world.events("shop").await?, "Repaired") > 0) })
        .await?;
    world.condition("shop", "Provisioned", "True").await?;
    let rotate = Patch::Merge(json!({"metadata": {"annotations": {"wirepost.dev/rotate": "x"}}}));
    world.team.businesses().patch("shop", &PatchParams::default(), &rotate).await?;
    eventually("it is rotated", SOON, || async {
        Ok(world.secret("shop-wirepost").await?.is_some_and(|s| s != first))
    })
    .await?;
    let second = world.secret("shop-wirepost").await?.context("no Secret")?;
    let secrets: Api<Secret> = world.cluster.api(&world.team.name);
    secrets.delete("shop-wirepost", &DeleteParams::default()).await?;
    eventually("it is back", SOON, || async { Ok(world.secret("shop-wirepost").await?.as_ref() == Some(&second)) })
        .await?;
    let mut logs = operator.log();
    drop(operator);
    let (user, password) = ("operator-of-this-test", "Wrong-Password-7");
    let with_password = |url: &str| url.replace("guest:guest@", &format!("{user}:{password}@"));
    let refused = world
        .operator("two")
        .flag("management", with_password(&world.setup.vhost().broker.management))
        .flag("amqp", with_password(&world.setup.vhost().amqp()))
        .start()
        .await?;
    world.reason("shop", "Provisioned", "BrokerRefused").await?;
    logs += &refused.log();

    let systems: Api<Secret> = world.cluster.api(&world.system.name);
    let seed = systems.get("wirepost-seed").await?.data.unwrap_or_default().remove("seed").context("no seed")?;
    let seed = serde_json::to_value(&seed)?;
    let mut words = vec![("the seed", seed.as_str().unwrap_or_default()), ("the operator's password", password)];
    for secret in [&first, &second] {
        words.extend(["password", "api-key", "uri"].map(|key| (key, secret[key].as_str())));
    }
    let told = serde_json::to_string(&world.cluster.get(&world.team.name, "shop").await?)?
        + &serde_json::to_string(&world.events("shop").await?)?
        + &serde_json::to_string(&world.config_map("shop").await?)?;
    for (what, word) in words {
        ensure!(word.len() >= 16 && !logs.contains(word), "{what} is in the log");
        ensure!(!told.contains(word), "{what} is where people without a right to Secrets read");
    }
    ensure!(logs.contains("shop") && told.contains("shop"), "nothing was looked at");
    Ok(())
}
