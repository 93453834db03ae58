//! Replicas on the nodes of a cluster: queues that were created while nodes were missing get the others later.

use anyhow::{Result, ensure};
use wirepost_testing::broker::{BrokerCluster, PATIENCE, eventually};
use wirepost_topology::keeper::FailureKind;
use wirepost_topology::{Problem, ReplicaRepair};

use crate::kept::Kept;

const QUEUE: &str = "wirepost.pay.q.orders";
const STREAM: &str = "wirepost.pay.stream";
const ALL: [usize; 3] = [0, 1, 2];

#[tokio::test(flavor = "multi_thread")]
async fn queues_created_on_one_node_get_replicas_when_others_join_and_an_operator_that_expects_them_waits() -> Result<()>
{
    let cluster = BrokerCluster::start_first("replicas").await?;
    let learns = Kept::of(cluster.node(0).vhost().await?, None).await?;
    let expects = Kept::of(cluster.node(0).vhost().await?, Some(3)).await?;
    ensure!(learns.ensure("pay", false).await?.report.is_clean(), "nothing says that there should be more nodes");
    let refused = expects.ensure("pay", false).await.map(|ensured| ensured.report);
    ensure!(refused.as_ref().is_err_and(|failure| failure.kind == FailureKind::Unavailable), "{refused:?}");
    ensure!(cluster.members(0, &expects.vhost.name, STREAM).await.is_err(), "the stream was created nevertheless");

    cluster.node(1).start_again().await?;
    cluster.node(2).start_again().await?;
    eventually("the queue has its copies", PATIENCE, || async {
        Ok(cluster.members(0, &learns.vhost.name, QUEUE).await? == ALL)
    })
    .await?;
    // Its own replicas need an administrator.
    let few = async || -> Result<Vec<Problem>> { Ok(learns.ensure("pay", false).await?.report.problems.clone()) };
    let by_hand = |problem: &Problem| matches!(problem, Problem::TooFewReplicas { queue, repair: ReplicaRepair::ByHand { .. }, .. } if queue == STREAM);
    eventually("only the stream lacks some", PATIENCE, || async {
        let few = few().await?;
        Ok(few.len() == 1 && few.iter().all(by_hand))
    })
    .await?;
    for node in ["2", "3"] {
        let name = cluster.name();
        let add = format!(
            "ok = rabbit_stream_queue:add_replica(<<\"{}\">>, <<\"{STREAM}\">>, 'wirepost-{name}-{node}@localhost').",
            learns.vhost.name
        );
        cluster.node(0).ctl(&["eval", &add]).await?;
    }
    eventually("nothing is missing", PATIENCE * 2, || async { Ok(few().await?.is_empty()) }).await?;

    eventually("who waited has everything", PATIENCE, || async {
        Ok(expects.ensure("pay", false).await?.report.is_clean())
    })
    .await?;
    for name in [QUEUE, STREAM] {
        ensure!(cluster.members(0, &expects.vhost.name, name).await? == ALL, "{name} has too few copies");
    }
    Ok(())
}
