//! A short interruption is not written to the status of every business; a lasting one is.

use anyhow::{Context, Result, ensure};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::{Operator, World, condition_of};
use wirepost_testing::proxy::{Network, Proxy};

use crate::conditions::{business, conditions, of, versions};

/// A blip affects every business, so a write for each would be visible.
const BUSINESSES: usize = 12;
const FAILURES: &str = "wirepost_operator_broker_failures_total";
const UNREACHABLE: &str = "wirepost_operator_edges_unreachable";

/// A world whose operator reaches the management API through the proxy, with five edges.
async fn world(delay: u64) -> Result<(World, Proxy, Operator, Vec<Mirror>)> {
    let world = World::new().await?;
    let (proxy, management) = Proxy::of_uri(&world.setup.vhost().broker.management).await?;
    let operator = world
        .operator("one")
        .flag("management", management)
        .flag("status-delay-seconds", delay)
        .flag("ready-edges-percent", 80)
        .start()
        .await?;
    let mut edges = Vec::new();
    for n in 0..5 {
        edges.push(Mirror::start(&world, &format!("edge-{n}")).await?);
    }
    let metric = || async { Ok(operator.metric("wirepost_operator_edges").await? > 4.5) };
    eventually("all edges are known", PATIENCE, metric).await?;
    Ok((world, proxy, operator, edges))
}

/// Waits until this many edges do not answer.
async fn unreachable(operator: &Operator, count: u32) -> Result<()> {
    let all = || async { Ok((operator.metric(UNREACHABLE).await? - f64::from(count)).abs() < 0.5) };
    eventually(&format!("{count} edges do not answer"), PATIENCE, all).await
}

async fn reconciles(operator: &Operator) -> Result<f64> {
    let mut all = 0.0;
    for outcome in ["Ready", "Waiting", "Error"] {
        all += operator.metric(&format!("wirepost_operator_reconciles_total{{outcome=\"{outcome}\"}}")).await?;
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blip_of_the_broker_or_of_edges_writes_nothing() -> Result<()> {
    let (world, proxy, operator, edges) = world(30).await?;
    let name = |n: usize| format!("shop-{n}");
    for n in 0..BUSINESSES {
        world.apply(&business(&name(n), "")).await?;
    }
    for n in 0..BUSINESSES {
        world
            .wait(&name(n), "be Ready on all edges", |wsb| {
                condition_of(wsb, "Programmed")
                    .is_some_and(|c| c.status == "True" && c.message.starts_with("every ready edge"))
            })
            .await?;
        world.condition(&name(n), "Ready", "True").await?;
    }
    let (before, writes) = (versions(&world).await?, operator.writes().await?);
    // Each was reconciled and found worse than its status says; otherwise this proves nothing.
    let noticed = async |since: f64| {
        let all = || async { Ok(reconciles(&operator).await? >= since + BUSINESSES as f64) };
        eventually("every business was reconciled", PATIENCE, all).await
    };

    let (failures, since) = (operator.metric(FAILURES).await?, reconciles(&operator).await?);
    proxy.set(Network::Stalled);
    eventually("a look fails", PATIENCE, || async { Ok(operator.metric(FAILURES).await? > failures) }).await?;
    noticed(since).await?;
    proxy.set(Network::Fine);
    operator.looks(2).await?;

    for silent in [1, edges.len()] {
        let since = reconciles(&operator).await?;
        for edge in &edges[..silent] {
            edge.silence(true);
        }
        unreachable(&operator, u32::try_from(silent)?).await?;
        noticed(since).await?;
        for edge in &edges {
            edge.silence(false);
        }
        unreachable(&operator, 0).await?;
    }
    operator.looks(1).await?;

    let after = versions(&world).await?;
    let changed: Vec<_> = before.iter().filter(|(key, version)| after.get(*key) != Some(version)).collect();
    ensure!(changed.is_empty() && after.len() == before.len(), "written: {changed:?}");
    ensure!(operator.writes().await? - writes < 0.5);
    ensure!(operator.metric("wirepost_operator_status_delays_total").await? > 1.5, "nothing was delayed");
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_outage_is_reported_as_unknown_and_counted_by_reason() -> Result<()> {
    let (world, proxy, operator, edges) = world(1).await?;
    world.apply(&business("shop", "")).await?;
    world.condition("shop", "Ready", "True").await?;
    let counted = async |condition: &str, status: &str, reason: &str| {
        let series = format!(
            "wirepost_operator_business_conditions{{condition=\"{condition}\",status=\"{status}\",reason=\"{reason}\"}}"
        );
        let is = || async { Ok((operator.metric(&series).await? - 1.0).abs() < 0.5) };
        eventually(&series, PATIENCE, is).await
    };

    // One of five is no reason to call all businesses unready; it is named, and counted.
    edges[4].silence(true);
    let wsb = world
        .wait("shop", "be programmed on 4 of 5 edges", |wsb| {
            wsb.status.as_ref().and_then(|s| s.edges.as_ref()?.summary.as_deref()) == Some("4/5")
        })
        .await?;
    ensure!(conditions(&wsb)?["Ready"] == of("True", "Ready"));
    let programmed = condition_of(&wsb, "Programmed").context("no condition")?;
    ensure!(programmed.status == "True" && programmed.message.contains("edge-4"), "{programmed:?}");

    edges[3].silence(true);
    let found = conditions(&world.reason("shop", "Ready", "EdgesUnreachable").await?)?;
    ensure!(found["Programmed"] == of("Unknown", "EdgesUnreachable") && found["Ready"].0 == "Unknown", "{found:?}");
    ensure!(found["Reconciling"] == of("True", "EdgesUnreachable"), "{found:?}");
    counted("Ready", "Unknown", "EdgesUnreachable").await?;
    for edge in &edges {
        edge.silence(false);
    }
    world.condition("shop", "Ready", "True").await?;

    proxy.set(Network::Stalled);
    let found = conditions(&world.reason("shop", "Ready", "BrokerUnavailable").await?)?;
    ensure!(found["Provisioned"] == of("Unknown", "BrokerUnavailable"), "{found:?}");
    ensure!(found["Ready"].0 == "Unknown" && found["Reconciling"].1 == "BrokerUnavailable", "{found:?}");
    proxy.set(Network::Fine);
    world.condition("shop", "Ready", "True").await?;
    counted("Ready", "True", "Ready").await?;

    // Its team must act: tools that wait for it need not wait on.
    world.apply(&business("shop", "").replace("{name: orders}", "{name: absent, existing: true}")).await?;
    let found = conditions(&world.reason("shop", "Ready", "QueueNotFound").await?)?;
    ensure!(found["Stalled"] == of("True", "QueueNotFound"), "{found:?}");
    counted("Stalled", "True", "QueueNotFound").await?;
    operator.had_every_right()
}
