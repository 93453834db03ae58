//! Configurations from ConfigMaps, on a real API server: the edge runs as a service account with exactly the chart's rules.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_core::edge_config::BusinessConfig;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::Client;
use wirepost_testing::cluster::{Cluster, Namespace, PrivateCluster, ServiceAccount, chart_rules};
use wirepost_testing::edge::{Edge, EdgeBuilder};
use wirepost_testing::proxy::{Network, Proxy};
use wirepost_testing::setup::{PAYMENTS, Setup, TICKER};

/// A second business, whose changes show that the watch goes on.
/// A namespace with the ConfigMaps of two businesses.
struct World {
    setup: Setup,
    api: Api<ConfigMap>,
    account: ServiceAccount,
    system: Namespace,
    cluster: Cluster,
}

impl World {
    async fn new() -> Result<Self> {
        Self::on(Cluster::connect().await?).await
    }

    async fn on(cluster: Cluster) -> Result<Self> {
        let setup = Setup::new(&[PAYMENTS, TICKER]).await?;
        let system = cluster.namespace("edges").await?;
        let account = cluster.service_account(&system.name, "wirepost-edge", &[], &chart_rules("edge-rules")?).await?;
        let world = Self { setup, api: cluster.api(&system.name), account, system, cluster };
        for business in ["payments", "ticker"] {
            world.put(business, |_| {}).await?;
        }
        Ok(world)
    }

    /// Writes a business's ConfigMap as the operator does; the hash that the edges are to report.
    async fn put(&self, business: &str, change: impl FnOnce(&mut BusinessConfig)) -> Result<String> {
        let mut config = self.setup.config(business)?;
        change(&mut config);
        self.write(&name(business), json!({}), &serde_json::to_string(&config)?).await?;
        Ok(config.hash())
    }

    async fn write(&self, name: &str, labels: Value, text: &str) -> Result<()> {
        let mut config_map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": labels},
            "data": {"config.json": text},
        });
        config_map["metadata"]["labels"]["wirepost.dev/config"] = json!("business");
        self.api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(config_map)).await?;
        Ok(())
    }

    /// What the operator does first where a business goes.
    async fn tombstone(&self, business: &str) -> Result<()> {
        let text = serde_json::to_string(&self.setup.config(business)?)?;
        self.write(&name(business), json!({"wirepost.dev/removed": "true"}), &text).await
    }

    async fn delete(&self, business: &str) -> Result<()> {
        self.api.delete(&name(business), &DeleteParams::default()).await?;
        Ok(())
    }

    fn edge(&self) -> EdgeBuilder {
        self.edge_as(&self.account.kubeconfig)
    }

    fn edge_as(&self, kubeconfig: &Path) -> EdgeBuilder {
        self.setup.edge("e1").config_namespace(&self.system.name, kubeconfig)
    }

    /// Returns when the edge has seen everything that happened in the namespace until now.
    async fn seen(&self, edge: &Edge) -> Result<()> {
        let hash = self.put("ticker", |config| config.generation += i64::from(rand::random::<u16>())).await?;
        runs(edge, "ticker", &hash).await
    }
}

fn name(business: &str) -> String {
    format!("wirepost-business-{business}")
}

/// The hash that the edge reports.
async fn hash(edge: &Edge, business: &str) -> Result<Option<String>> {
    let configz: Value = serde_json::from_str(&edge.admin("/configz").await?.1)?;
    Ok(configz["businesses"][business].as_str().map(str::to_owned))
}

async fn runs(edge: &Edge, business: &str, expected: &str) -> Result<()> {
    let what = format!("the edge runs {business} as it is declared");
    eventually(&what, PATIENCE, || async { Ok(hash(edge, business).await?.as_deref() == Some(expected)) }).await
}

/// A client that sends and gets acks.
async fn alice(edge: &Edge) -> Result<Client> {
    let mut alice = edge.client("alice", "app").connect().await?;
    talks(&mut alice).await?;
    Ok(alice)
}

async fn talks(client: &mut Client) -> Result<()> {
    let id = format!("{:x}", rand::random::<u128>());
    client.send_acked(&json!({"id": id, "messageType": "order.placed"})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_is_ready_when_it_has_seen_the_complete_list_and_not_before() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(world.cluster.server()?).await?;
    proxy.set(Network::Stalled);
    let edge = world.edge_as(&world.account.kubeconfig_through(proxy.address)?).start_unready().await?;
    eventually("it asks", PATIENCE, || async { Ok(proxy.accepted() > 0) }).await?;
    let (status, pending) = edge.readyz().await?;
    assert_eq!((status, edge.admin("/livez").await?.0), (503, 200));
    assert!(pending.contains("configuration"), "it names what is pending: {pending}");
    proxy.set(Network::Fine);
    eventually("the edge is ready", PATIENCE, || async { Ok(edge.readyz().await?.0 == 200) }).await?;
    for business in ["payments", "ticker"] {
        assert_eq!(hash(&edge, business).await?, Some(world.setup.config(business)?.hash()));
    }
    alice(&edge).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_connected_clients_without_cutting_them() -> Result<()> {
    let world = World::new().await?;
    let edge = world.edge().start().await?;
    let mut alice = alice(&edge).await?;
    let expected = world.put("payments", |config| config.limits.message_bytes = 200).await?;
    runs(&edge, "payments", &expected).await?;
    alice.send(&json!({"id": "large", "messageType": "order.placed", "content": "x".repeat(300)})).await?;
    assert_eq!(alice.nack("large").await?["code"], "too_large");
    talks(&mut alice).await?;
    // One that comes with the new configuration, in the same watch.
    let expected = world.put("ticker", |config| config.generation += 1).await?;
    runs(&edge, "ticker", &expected).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_one_keeps_its_last_good_configuration_and_disturbs_no_other() -> Result<()> {
    let world = World::new().await?;
    let edge = world.edge().start().await?;
    let mut alice = alice(&edge).await?;
    let good = hash(&edge, "payments").await?;
    world.write(&name("payments"), json!({}), "{").await?;
    world.write(&name("broken"), json!({}), "[]").await?;
    world.seen(&edge).await?;
    assert_eq!(hash(&edge, "payments").await?, good);
    assert_eq!(edge.count("wirepost_edge_bad_configs_total").await?, 2);
    assert_eq!(edge.readyz().await?.0, 200);
    talks(&mut alice).await?;
    // Again the same, under another label: it is said once.
    world.write(&name("payments"), json!({"touched": "yes"}), "{").await?;
    world.seen(&edge).await?;
    let said = edge.log().lines().filter(|line| line.contains("can't be read") && line.contains("payments")).count();
    assert_eq!(said, 1);
    let expected = world.put("payments", |config| config.generation += 1).await?;
    runs(&edge, "payments", &expected).await?;
    talks(&mut alice).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_ends_a_business_at_once_and_it_may_come_back() -> Result<()> {
    let world = World::new().await?;
    let edge = world.edge().start().await?;
    let mut alice = alice(&edge).await?;
    let mut bob = edge.client("bob", "app").business("ticker").connect().await?;
    world.tombstone("payments").await?;
    assert_eq!(alice.close_code().await?, 4010);
    assert_eq!(hash(&edge, "payments").await?, None);
    let (status, answer) = edge.get("/payments/websocket/token", &[]).await?;
    assert_eq!((status, answer["result"].as_u64()), (404, Some(40_402)), "{answer}");
    world.delete("payments").await?;
    world.seen(&edge).await?;
    let expected = world.put("payments", |_| {}).await?;
    runs(&edge, "payments", &expected).await?;
    self::alice(&edge).await?;
    bob.sync().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_deleted_by_hand_and_repaired_in_time_cuts_nobody() -> Result<()> {
    let world = World::new().await?;
    let edge = world.edge().start().await?;
    let mut alice = alice(&edge).await?;
    world.delete("payments").await?;
    world.seen(&edge).await?;
    talks(&mut alice).await?;
    assert!(hash(&edge, "payments").await?.is_some());
    world.put("payments", |_| {}).await?;
    world.seen(&edge).await?;
    let expected = world.put("payments", |config| config.limits.message_bytes = 200).await?;
    runs(&edge, "payments", &expected).await?;
    talks(&mut alice).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stays_away_is_removed_after_the_grace() -> Result<()> {
    let world = World::new().await?;
    let edge = world.edge().flag("removal-grace-seconds", 1).start().await?;
    let mut alice = alice(&edge).await?;
    world.delete("payments").await?;
    assert_eq!(alice.close_code().await?, 4010);
    assert_eq!(hash(&edge, "payments").await?, None);
    world.seen(&edge).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_server_can_not_be_asked_nothing_is_removed_and_clients_talk_on() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(world.cluster.server()?).await?;
    let through = world.account.kubeconfig_through(proxy.address)?;
    let edge = world.edge_as(&through).flag("removal-grace-seconds", 0).start().await?;
    let mut alice = alice(&edge).await?;
    let good = hash(&edge, "payments").await?;
    // The deletion arrives, and nothing else: the edge is not sure, and can't ask.
    proxy.set(Network::UpStalled);
    world.delete("payments").await?;
    let asked = || edge.log().contains("asking for ConfigMap wirepost-business-payments");
    eventually("it asks in vain", PATIENCE, || async { Ok(asked()) }).await?;
    proxy.set(Network::Stalled);
    talks(&mut alice).await?;
    assert_eq!((hash(&edge, "payments").await?, edge.readyz().await?.0), (good, 200));
    // Repaired and changed meanwhile.
    let payments = world.put("payments", |config| config.limits.message_bytes = 200).await?;
    let ticker = world.put("ticker", |config| config.generation += 1).await?;
    proxy.cut();
    proxy.set(Network::Fine);
    runs(&edge, "payments", &payments).await?;
    runs(&edge, "ticker", &ticker).await?;
    talks(&mut alice).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_crashes_is_followed_again_without_a_restart() -> Result<()> {
    let private = PrivateCluster::start("crash", &[]).await?;
    let world = World::on((*private).clone()).await?;
    let edge = world.edge().start().await?;
    let mut alice = alice(&edge).await?;
    private.kill9().await?;
    edge.await_metric("wirepost_edge_config_watch_errors_total", 1.0).await?;
    talks(&mut alice).await?;
    assert_eq!(edge.readyz().await?.0, 200);
    let late = world.edge().start_unready().await?;
    private.start_again().await?;
    let expected = world.put("payments", |config| config.limits.message_bytes = 200).await?;
    runs(&edge, "payments", &expected).await?;
    runs(&late, "payments", &expected).await?;
    // Frozen and thawed: connections live, and nobody noticed.
    private.pause().await?;
    talks(&mut alice).await?;
    private.resume().await?;
    world.seen(&edge).await?;
    talks(&mut alice).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_for_one_business_the_one_with_the_operators_name_decides() -> Result<()> {
    let world = World::new().await?;
    let edge = world.edge().start().await?;
    let mut alice = alice(&edge).await?;
    let good = hash(&edge, "payments").await?;
    let mut other = world.setup.config("payments")?;
    other.limits.message_bytes = 200;
    world.write("copy", json!({}), &serde_json::to_string(&other)?).await?;
    world.seen(&edge).await?;
    assert_eq!(hash(&edge, "payments").await?, good);
    let log = edge.log();
    let said = log
        .lines()
        .find(|line| line.contains("another ConfigMap declares this business"))
        .context("it is not reported")?;
    assert!(said.contains("copy") && said.contains("wirepost-business-payments"), "{said}");
    talks(&mut alice).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_the_rights_is_told_which_ones() -> Result<()> {
    let world = World::new().await?;
    let stranger = world.cluster.service_account(&world.system.name, "stranger", &[], &[]).await?;
    let edge = world.edge_as(&stranger.kubeconfig).start_unready().await?;
    let told = || edge.log().contains("needs get, list and watch on configmaps");
    eventually("it says what it lacks", PATIENCE, || async { Ok(told()) }).await?;
    assert_eq!(edge.readyz().await?.0, 503);
    // The rules give nothing beyond reading ConfigMaps of this namespace.
    let client = world.account.client().await?;
    let elsewhere: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    assert!(elsewhere.list(&ListParams::default()).await.is_err());
    let here: Api<ConfigMap> = Api::namespaced(client, &world.system.name);
    assert!(here.delete(&name("payments"), &DeleteParams::default()).await.is_err());
    assert_eq!(
        here.list(&ListParams::default()).await?.items.iter().filter(|map| map.metadata.labels.is_some()).count(),
        2
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_known_from_configz_as_it_happens() -> Result<()> {
    let world = World::new().await?;
    let edge = world.edge().start().await?;
    let (http, url) = (reqwest::Client::builder().no_proxy().build()?, format!("http://{}/configz", edge.admin));
    let mut times = Vec::new();
    for generation in 2..12 {
        let answer = http.get(&url).send().await?;
        let tag = answer.headers().get("etag").context("no ETag")?.clone();
        let waiting = http.get(format!("{url}?wait=20")).header("if-none-match", tag).timeout(PATIENCE * 2);
        let waiting = tokio::spawn(waiting.send());
        let begun = Instant::now();
        let expected = world.put("payments", |config| config.generation = generation).await?;
        let answer = waiting.await??;
        times.push(begun.elapsed());
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.json::<Value>().await?["businesses"]["payments"], json!(expected));
    }
    times.sort();
    eprintln!("patch sent -> /configz tells: {:?} at best, {:?} median, {:?} at worst", times[0], times[5], times[9]);
    Ok(())
}
