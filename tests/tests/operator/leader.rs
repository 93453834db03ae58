//! Of several replicas one leads and writes; whatever happens to it, another goes on, and never two at once.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};
use wirepost_core::business::WsBusiness;
use wirepost_core::names;
use wirepost_testing::broker::{PATIENCE, Vhost, eventually};
use wirepost_testing::cluster::PrivateCluster;
use wirepost_testing::operator::{Operator, World, condition_of};
use wirepost_testing::proxy::{Network, Proxy};

/// As many as keep a leader busy for a while.
const MANY: usize = 40;
/// The process ended because it could not go on.
const FAILURE: Option<i32> = Some(1);
/// As in the operator's log.
const LEADS: &str = "this replica leads";
const WRITES: &str = " INFO wirepost_topology::apply: ";

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_the_other_writes_nothing() -> Result<()> {
    let world = World::new().await?;
    let (leader, standby) = pair(&world, 6).await?;
    world.apply(&business("orders")).await?;
    world.condition("orders", "Provisioned", "True").await?;
    // A change, a repair, an end.
    world.apply(&business("orders").replace("name: up}", "name: incoming}")).await?;
    world.condition("orders", "Provisioned", "True").await?;
    world.setup.delete_exchange("wirepost.orders.events").await?;
    eventually("the exchange is back", PATIENCE, || async {
        let there = wirepost_topology::Actual::read(&world.setup.management()?).await?;
        Ok(there.exchanges.iter().any(|exchange| exchange.name == "wirepost.orders.events"))
    })
    .await?;
    world.cluster.delete(&world.team.name, "orders").await?;
    world.cluster.wait_gone(&world.team.name, "orders").await?;
    ensure!(leader.leading().await && leader.writes().await? > 0.0);
    ensure!(!standby.leading().await && standby.writes().await? == 0.0);
    ensure!(standby.readyz().await?.0 == 200, "a standby is ready");
    ensure!(!standby.log().contains(WRITES));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_start_at_the_same_moment_exactly_one_leads() -> Result<()> {
    let world = World::new().await?;
    let names = ["one", "two", "three", "four", "five"];
    let mut operators = try_join_all(names.map(|name| world.operator(name).flag("lease-seconds", 6).start())).await?;
    while operators.len() > 1 {
        let all: Vec<&Operator> = operators.iter().collect();
        at_most_one_until(&all, "one leads", async || {
            Ok(join_all(all.iter().map(|o| o.leading())).await.contains(&true))
        })
        .await?;
        // Also after every other has had its turn.
        let end = Instant::now() + Duration::from_secs(4);
        at_most_one_until(&all, "time passes", async || Ok(Instant::now() > end)).await?;
        let leading = join_all(all.iter().map(|o| o.leading())).await;
        let leader = leading.iter().position(|leads| *leads).context("nobody leads any more")?;
        operators.swap_remove(leader).kill9()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_the_other_goes_on_with_what_is_half_done() -> Result<()> {
    let world = World::new().await?;
    let (leader, standby) = pair(&world, 6).await?;
    begin_many(&world).await?;
    world.cluster.delete(&world.team.name, "b0").await?;
    leader.kill9()?;
    standby.leads().await?;
    many_are_done(&world).await?;
    world.cluster.wait_gone(&world.team.name, "b0").await
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_over_what_is_as_it_should_be_writes_nothing() -> Result<()> {
    let world = World::new().await?;
    let leader = world.operator("one").start().await?;
    leader.leads().await?;
    world.apply(&business("orders")).await?;
    world.reason("orders", "Ready", "NoEdges").await?;
    let before = versions(&world).await?;
    leader.kill9()?;
    // One that begins with nothing in its memory.
    let next = world.operator("two").start().await?;
    next.leads().await?;
    eventually("it has looked at the business", PATIENCE, || async {
        Ok(next.metric(r#"wirepost_operator_reconciles_total{outcome="Waiting"}"#).await? > 0.0)
    })
    .await?;
    // Two sweeps.
    sleep(Duration::from_secs(3)).await;
    let after = versions(&world).await?;
    ensure!(before == after, "{before:?} became {after:?}");
    ensure!(next.writes().await? == 0.0, "{}", next.admin("/metrics").await?.1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_end_hands_over_at_once() -> Result<()> {
    let world = World::new().await?;
    // Nobody could wait for the end of such a lease here.
    let (leader, standby) = pair(&world, 300).await?;
    begin_many(&world).await?;
    leader.sigterm()?;
    let both = [&leader, &standby];
    at_most_one_until(&both, "the other leads", async || Ok(standby.leading().await)).await?;
    ensure!(leader.exited(PATIENCE).await?.success());
    many_are_done(&world).await?;
    // What was under way was finished or left alone, never reported as somebody's fault.
    let events: Api<Event> = world.cluster.api(&world.team.name);
    for event in events.list(&ListParams::default()).await? {
        ensure!(event.type_.as_deref() != Some("Warning") || event.reason.as_deref() == Some("NoEdges"), "{event:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_shuts_down_gives_up_a_slow_call_of_the_broker_and_its_lease() -> Result<()> {
    let world = World::new().await?;
    let (proxy, management) = Proxy::of_uri(&world.setup.vhost().broker.management).await?;
    // Nobody could wait for the end of such a lease here.
    let builder = |name| world.operator(name).flag("lease-seconds", 300);
    let leader = builder("one").flag("management", management).start().await?;
    leader.leads().await?;
    let standby = builder("two").start().await?;
    world.apply(&business("orders")).await?;
    world.condition("orders", "Provisioned", "True").await?;
    proxy.hold("PUT /api/policies/");
    world.apply(&business("slow").replace("name: up}", "name: up, maxLength: 5}")).await?;
    eventually("a policy is being set", PATIENCE, || async { Ok(proxy.held() > 0) }).await?;
    leader.sigterm()?;
    standby.leads().await?;
    ensure!(leader.exited(PATIENCE).await?.success(), "{}", leader.log());
    let slow = world.condition("slow", "Provisioned", "True").await?;
    let said = world.events("slow").await?;
    ensure!(said.iter().all(|event| event.reason.as_deref() != Some("BrokerUnavailable")), "{slow:?}: {said:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_past_its_lease_ends_and_writes_nothing() -> Result<()> {
    let world = World::new().await?;
    let (leader, standby) = pair(&world, 6).await?;
    begin_many(&world).await?;
    // Plans and calls of it are under way.
    leader.pause()?;
    standby.leads().await?;
    // Whatever it still did would bring these back.
    for i in 0..MANY {
        world.cluster.delete(&world.team.name, &format!("b{i}")).await?;
    }
    for i in 0..MANY {
        world.cluster.wait_gone(&world.team.name, &format!("b{i}")).await?;
    }
    nothing_is_left(&world).await?;
    let before = versions(&world).await?;
    leader.resume()?;
    ensure!(leader.exited(PATIENCE).await?.code() == FAILURE);
    ensure!(leader.log().contains("leadership is lost"));
    let after = versions(&world).await?;
    let news: Vec<_> = after.iter().filter(|(what, version)| before.get(*what) != Some(version)).collect();
    ensure!(before == after, "written meanwhile: {news:?}; by the new leader:\n{}", standby.log());
    nothing_is_left(&world).await
}

/// A router has lost its state: the standby's watch receives nothing, unnoticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_whose_watch_is_dead_writes_no_older_generation() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(world.cluster.server()?).await?;
    let leader = world.operator("one").flag("lease-seconds", 4).start().await?;
    leader.leads().await?;
    let through = world.account.kubeconfig_through(proxy.address)?;
    let standby = world.operator("two").flag("lease-seconds", 4).kubeconfig(through).start().await?;
    world.apply(&business("orders")).await?;
    world.condition("orders", "Provisioned", "True").await?;
    eventually("the standby has seen it", PATIENCE, || async {
        Ok(standby.metric("wirepost_operator_businesses").await? > 0.0)
    })
    .await?;

    proxy.forget();
    world.apply(&business("orders").replace("name: up}", "name: incoming}")).await?;
    let done = |wsb: &WsBusiness| {
        condition_of(wsb, "Provisioned")
            .is_some_and(|c| c.observed_generation == Some(2) && c.message.contains("exactly"))
    };
    world.wait("orders", "have its other queue and no former one", done).await?;
    let maps: Api<ConfigMap> = world.cluster.api(&world.system.name);
    let (written, resource) =
        (maps.get("wirepost-business-orders").await?, world.team.businesses().get("orders").await?);
    leader.kill9()?;
    standby.leads().await?;
    // Until it lists, it knows only the former state of the resource.
    eventually("the new leader reconciles", PATIENCE, || async {
        Ok(standby.metric("wirepost_operator_reconcile_seconds_count").await? > 0.0)
    })
    .await?;
    standby.looks(2).await?;
    let now = maps.get("wirepost-business-orders").await?;
    ensure!(now.data == written.data, "{:?} was {:?}", now.data, written.data);
    let generation = |map: &ConfigMap| map.metadata.generation;
    ensure!(now.metadata.resource_version == written.metadata.resource_version, "written: {:?}", generation(&now));
    let observed = world.team.businesses().get("orders").await?;
    ensure!(observed.metadata.resource_version == resource.metadata.resource_version, "{:?}", observed.status);
    let queues = world.setup.picture().await?;
    ensure!(queues.contains_key("queue wirepost.orders.q.incoming"), "{:?}", queues.keys());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_from_the_api_server_ends_before_another_leads() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(world.cluster.server()?).await?;
    // The leader needs nobody's leave to remove what no resource claims: it goes on with that while it may.
    let builder = |name| world.operator(name).flag("lease-seconds", 9).flag("orphan-grace-seconds", 0);
    let through = world.account.kubeconfig_through(proxy.address)?;
    let leader = builder("one").kubeconfig(through).start().await?;
    leader.leads().await?;
    let standby = builder("two").start().await?;
    let cut = Timestamp::now().to_string();
    proxy.set(Network::Stalled);
    let mut made = 0;
    let both = [&leader, &standby];
    let unclaimed = json!({"type": "fanout", "durable": true});
    while leader.running() {
        at_most_one(&both).await?;
        let name = format!("wirepost.gone{made}.push");
        world.setup.call("PUT", &["exchanges", &world.setup.vhost().name, &name], &unclaimed).await?;
        made += 1;
        sleep(Duration::from_millis(50)).await;
    }
    ensure!(leader.exited(PATIENCE).await?.code() == FAILURE);
    let log = leader.log();
    let last = log.lines().rfind(|line| line.contains(WRITES)).context("it wrote nothing at all")?;
    ensure!(last > cut.as_str(), "it stopped writing at once: {last}");
    standby.leads().await?;
    let log = standby.log();
    let leads = log.lines().find(|line| line.contains(LEADS)).context("it did not say so")?;
    ensure!(last < leads, "{last}\nis later than\n{leads}");
    nothing_is_left(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_taken_by_hand_ends_the_leader() -> Result<()> {
    let world = World::new().await?;
    // Long enough not to end for want of a renewal in time.
    let (leader, standby) = pair(&world, 10).await?;
    let leases: Api<Lease> = world.cluster.api(&world.system.name);
    let by_hand = Patch::Merge(json!({"spec": {"holderIdentity": "a person"}}));
    leases.patch("wirepost-operator", &PatchParams::default(), &by_hand).await?;
    ensure!(leader.exited(PATIENCE).await?.code() == FAILURE);
    ensure!(leader.log().contains("held by 'a person'"));
    // Nobody renews it.
    standby.leads().await?;
    world.apply(&business("orders")).await?;
    world.condition("orders", "Provisioned", "True").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_deleted_is_made_again() -> Result<()> {
    let world = World::new().await?;
    let (leader, standby) = pair(&world, 6).await?;
    let leases: Api<Lease> = world.cluster.api(&world.system.name);
    leases.delete("wirepost-operator", &kube::api::DeleteParams::default()).await?;
    // The other may be faster; then the first ends.
    let both = [&leader, &standby];
    at_most_one_until(&both, "there is a lease again", async || {
        Ok(leases.get_opt("wirepost-operator").await?.is_some())
    })
    .await?;
    let end = Instant::now() + Duration::from_secs(4);
    at_most_one_until(&both, "time passes", async || Ok(Instant::now() > end)).await?;
    ensure!(leader.leading().await != standby.leading().await, "exactly one leads");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_was_killed_and_is_back_gets_one_leader_again() -> Result<()> {
    let cluster = PrivateCluster::start("leader-killed", &[]).await?;
    let away = async || cluster.kill9().await;
    let back = async || cluster.start_again().await;
    outage(&cluster, away, back).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_was_frozen_and_is_back_gets_one_leader_again() -> Result<()> {
    let cluster = PrivateCluster::start("leader-frozen", &[]).await?;
    let away = async || cluster.pause().await;
    let back = async || cluster.resume().await;
    outage(&cluster, away, back).await
}

/// Longer than the lease; longer than a watch waits between two tries, too.
async fn outage(
    cluster: &PrivateCluster,
    away: impl AsyncFn() -> Result<()>,
    back: impl AsyncFn() -> Result<()>,
) -> Result<()> {
    let world = World::on((**cluster).clone(), Vhost::create().await?).await?;
    let (leader, standby) = pair(&world, 6).await?;
    away().await?;
    ensure!(leader.exited(PATIENCE).await?.code() == FAILURE);
    sleep(Duration::from_secs(10)).await;
    ensure!(standby.running() && !standby.leading().await, "{}", standby.log());
    back().await?;
    // As its pod's restart would.
    let again = world.operator("one").start().await?;
    let both = [&again, &standby];
    at_most_one_until(&both, "one leads", async || Ok(again.leading().await || standby.leading().await)).await?;
    world.apply(&business("orders")).await?;
    world.condition("orders", "Provisioned", "True").await?;
    at_most_one(&both).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_died_without_a_word_is_noticed() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(world.cluster.server()?).await?;
    let through = world.account.kubeconfig_through(proxy.address)?;
    let leader = world.operator("one").flag("lease-seconds", 30).kubeconfig(through).start().await?;
    leader.leads().await?;
    world.apply(&business("orders")).await?;
    world.condition("orders", "Provisioned", "True").await?;
    proxy.forget();
    world.apply(&business("returns")).await?;
    world.condition("returns", "Provisioned", "True").await?;
    ensure!(leader.running() && leader.leading().await);
    Ok(())
}

/// The first leads, the second stands by.
async fn pair(world: &World, lease_seconds: u64) -> Result<(Operator, Operator)> {
    // Some of the tests delete all businesses at the same time.
    let builder = |name| world.operator(name).flag("lease-seconds", lease_seconds).flag("allow-mass-deletion", true);
    let leader = builder("one").start().await?;
    leader.leads().await?;
    let standby = builder("two").start().await?;
    Ok((leader, standby))
}

/// A small business with access for its services.
fn business(name: &str) -> String {
    format!(
        r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}}}
spec:
  clientTypes: [app]
  routes:
    - {{messageType: up, sendType: ClientToServer, queue: {{name: up}}}}
    - {{messageType: down, sendType: ServerToClient, to: [app]}}
  access: {{secretName: {name}-access}}
"
    )
}

/// Returns when the first of many are provisioned.
async fn begin_many(world: &World) -> Result<()> {
    try_join_all((0..MANY).map(async |i| world.apply(&business(&format!("b{i}"))).await)).await?;
    eventually("the first are provisioned", PATIENCE, || async {
        let all = world.team.businesses().list(&ListParams::default()).await?;
        Ok(all.iter().any(|wsb| condition_of(wsb, "Provisioned").is_some_and(|c| c.status == "True")))
    })
    .await
}

/// All but the first, which may be on its way out.
async fn many_are_done(world: &World) -> Result<()> {
    for i in 1..MANY {
        world.condition(&format!("b{i}"), "Provisioned", "True").await?;
    }
    Ok(())
}

/// Fails if two lead: one that leads in both of two rounds led all the time between.
async fn at_most_one(operators: &[&Operator]) -> Result<()> {
    let first = join_all(operators.iter().map(|operator| operator.leading())).await;
    let second = join_all(operators.iter().map(|operator| operator.leading())).await;
    let leading: Vec<&str> =
        (0..operators.len()).filter(|&i| first[i] && second[i]).map(|i| operators[i].name.as_str()).collect();
    ensure!(leading.len() <= 1, "these lead at once: {leading:?}");
    Ok(())
}

/// Waits for `done`, and looks all the while that no two lead.
async fn at_most_one_until(operators: &[&Operator], what: &str, done: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        at_most_one(operators).await?;
        if done().await.unwrap_or(false) {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    bail!("not within {PATIENCE:?}: {what}")
}

async fn config_maps(world: &World) -> Result<Vec<ConfigMap>> {
    let api: Api<ConfigMap> = world.cluster.api(&world.system.name);
    let ours = ListParams::default().labels("wirepost.dev/config=business");
    Ok(api.list(&ours).await?.items)
}

/// Of everything that an operator writes.
async fn versions(world: &World) -> Result<BTreeMap<String, Option<String>>> {
    let mut versions = BTreeMap::new();
    for config_map in config_maps(world).await? {
        versions.insert(format!("ConfigMap {}", config_map.name_any()), config_map.resource_version());
    }
    for wsb in world.team.businesses().list(&ListParams::default()).await? {
        versions.insert(format!("WsBusiness {}", wsb.name_any()), wsb.resource_version());
    }
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = world.cluster.api(&world.team.name);
    for secret in secrets.list(&ListParams::default()).await? {
        versions.insert(format!("Secret {}", secret.name_any()), secret.resource_version());
    }
    let events: Api<Event> = world.cluster.api(&world.team.name);
    for event in events.list(&ListParams::default()).await? {
        versions.insert(format!("Event {}", event.name_any()), event.resource_version());
    }
    Ok(versions)
}

/// Waits until the broker has nothing of any business.
async fn nothing_is_left(world: &World) -> Result<()> {
    let left = async || -> Result<Vec<String>> {
        let there = wirepost_topology::Actual::read(&world.setup.management()?).await?;
        let exchanges = there.exchanges.iter().map(|exchange| exchange.name.clone());
        // The installation's marker and its control stream belong to no business.
        let of_all = [names::INSTALLATION, names::CONTROL];
        let exchanges = exchanges.filter(|name| name.starts_with("wirepost.") && !of_all.contains(&name.as_str()));
        let queues = there.queues.iter().map(|queue| queue.name.clone()).filter(|name| name != names::CONTROL);
        Ok(exchanges.chain(queues).collect())
    };
    let gone = eventually("nothing of any business is left on the broker", PATIENCE, || async {
        Ok(left().await?.is_empty())
    });
    match gone.await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(format!("left: {:?}", left().await?))),
    }
}
