//! What kills pods and stops programs at three in the morning, while clients talk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::time::Instant;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::node::faults::{Programs, Talk, answered_as_promised};
use wirepost_testing::node::{Node, SYSTEM};
use wirepost_testing::traffic::Outcome;

/// For a pod to be there again and everything with it, on two cores.
const RECOVERY: Duration = Duration::from_mins(2);
const WATCH_ERRORS: &str = "wirepost_edge_config_watch_errors_total";
/// The API server is frozen for this long at least, and then dead for this long. What is certain after it is awaited: that the leader gives
/// up, and that the watches of the edges fail.
const AWAY: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn another_operator_takes_over_what_was_applied_when_the_leader_was_killed() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let killed = node.leader().await?;
    node.kill(&killed).await?;
    node.declare("faults-leader").await?;
    node.declared("faults-leader").await?;
    let leader = node.leader().await?;
    ensure!(leader != killed, "{leader} still leads");
    node.roll_out(SYSTEM, "deployment/wirepost-operator").await?;
    node.undeclare("faults-leader").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn a_killed_broker_loses_nothing_and_cuts_no_client_off() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let mut talk = Talk::start(&node, "faults-broker").await?;
    let old = broker(&node).await?.uid().context("a pod has a uid")?;
    node.kill("rabbitmq-0").await?;
    eventually("another pod of the broker", RECOVERY, || async {
        Ok(broker(&node).await?.uid().is_some_and(|new| new != old))
    })
    .await?;
    node.roll_out(SYSTEM, "statefulset/rabbitmq").await?;
    talk.recovers(RECOVERY).await?;
    node.changes("faults-broker", 9999).await?;
    let outcomes = talk.end().await?;
    answered_as_promised(&outcomes)?;
    ensure!(outcomes.iter().any(|outcome| !outcome.acked()), "the broker was away, and no order noticed");
    Ok(())
}

async fn broker(node: &Node) -> Result<Pod> {
    Ok(node.cluster.api::<Pod>(SYSTEM).get("rabbitmq-0").await?)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn clients_notice_nothing_of_an_api_server_that_is_away() -> Result<()> {
    let Some(programs) = Programs::ours("clients_notice_nothing_of_an_api_server_that_is_away") else { return Ok(()) };
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let mut talk = Talk::start(&node, "faults-api").await?;
    let away = without_api_server(&node, &programs, &mut talk).await;
    programs.start().await?;
    away?;
    node.roll_out(SYSTEM, "deployment/wirepost-operator").await?;
    // Two tries of an edge's watch fail: the one that finds the server away, and the one whose place it has forgotten.
    let in_use = || async { node.changes("faults-api", 9999).await.map(|()| true) };
    eventually("a change is in use again", RECOVERY / 2, in_use).await?;
    talk.flows(RECOVERY).await?;
    let outcomes = talk.end().await?;
    ensure!(outcomes.iter().all(Outcome::acked), "{:?}", outcomes.iter().find(|outcome| !outcome.acked()));
    Ok(())
}

/// It freezes until the leader has given up, and is dead until every edge's watch has noticed, and longer. Messages flow all the time.
async fn without_api_server(node: &Node, programs: &Programs, talk: &mut Talk<'_>) -> Result<()> {
    let (operators, edges) = (node.admin_ports("operator").await?, node.admin_ports("edge").await?);
    let nobody_leads = || async {
        for &operator in &operators {
            // An edge that has ended is restarted and does not serve immediately: an error proves nothing yet.
            if node.scrape(operator, "wirepost_operator_leader").await? > 0.0 {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let mut noticed = Vec::new();
    for &edge in &edges {
        noticed.push((edge, node.scrape(edge, WATCH_ERRORS).await?));
    }
    ensure!(operators.len() == 2 && edges.len() == 2 && !nobody_leads().await?, "{operators:?} {edges:?}");
    programs.pause("apiserver").await?;
    let frozen = async {
        let end = Instant::now() + AWAY;
        eventually("the leader gives up", RECOVERY, nobody_leads).await?;
        talks_until(talk, end).await
    };
    let frozen = frozen.await;
    // In any case: where it is frozen still nothing that comes next gets an answer, and nothing starts it.
    programs.kill9("apiserver").await?;
    frozen?;
    let end = Instant::now() + AWAY;
    for (edge, before) in noticed {
        let more = || async { Ok(node.scrape(edge, WATCH_ERRORS).await? > before) };
        eventually("the watch of an edge notices", RECOVERY, more).await?;
    }
    talks_until(talk, end).await
}

/// Newcomers as well, at the end.
async fn talks_until(talk: &mut Talk<'_>, end: Instant) -> Result<()> {
    while Instant::now() < end {
        talk.goes_on(PATIENCE).await?;
    }
    talk.flows(PATIENCE).await
}
