//! The HorizontalPodAutoscaler of the chart really scales: by the load of clients, up and down again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;
use wirepost_testing::broker::eventually;
use wirepost_testing::node::crowd::{Crowd, size};
use wirepost_testing::node::{EDGE, Node, SYSTEM, is_ready};

const METRICS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/metrics-server.yaml");
const CLIENTS: usize = 300;
/// metrics-server polls every 10 s, the autoscaler every 5 s (tests/cluster/node.sh), and it needs two polls of the first.
const PATIENCE: Duration = Duration::from_secs(90);
/// As in [`VALUES`].
const CPU_PERCENT: u32 = 60;
/// Idle edges of a debug build need a sixth of their request (50m), those of a crowd thrice of it.
const VALUES: [&str; 6] = [
    "edge.autoscaling.enabled=true",
    "edge.autoscaling.maxReplicas=3",
    "edge.autoscaling.cpuPercent=60",
    "edge.autoscaling.memoryPercent=0",
    "edge.autoscaling.scaleDown.stabilizationSeconds=0",
    "edge.autoscaling.scaleDown.periodSeconds=15",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn load_brings_an_edge_and_its_end_takes_it_away() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let ours = node.kubectl(&["get", "apiservice", "v1beta1.metrics.k8s.io"]).await.is_err();
    if ours {
        node.kubectl(&["apply", "--filename", METRICS]).await?;
    }
    let scaled = scales(&node).await;
    // Without its server the API group would fail every discovery, and with it the end of every namespace.
    if ours {
        node.kubectl(&["delete", "--filename", METRICS]).await?;
    }
    scaled?;
    node.install(&[]).await
}

async fn scales(node: &Node) -> Result<()> {
    node.upgrade(&VALUES).await?;
    let autoscaler = async || {
        let state = node.kubectl(&["describe", "hpa", EDGE, "--namespace", SYSTEM]).await;
        state.unwrap_or_else(|error| format!("{error:#}"))
    };
    // Edges that start are busy as well: only when both are idle and the autoscaler sees that, more are the crowd's doing.
    let idle = || async {
        let cpu = "jsonpath={.status.currentMetrics[0].resource.current.averageUtilization}";
        let cpu = node.kubectl(&["get", "hpa", EDGE, "--namespace", SYSTEM, "--output", cpu]).await?;
        let idle = cpu.parse::<u32>().is_ok_and(|cpu| cpu < CPU_PERCENT);
        let edges = node.edges().await?;
        Ok(idle && edges.len() == 2 && edges.iter().all(is_ready))
    };
    if let Err(error) = eventually("the autoscaler sees two idle edges", PATIENCE, idle).await {
        return Err(error.context(autoscaler().await));
    }
    let mut crowd = Crowd::gather(node, "autoscaling", size(CLIENTS)).await?;
    let began = Instant::now();
    let three = || async { Ok(node.connections().await?.len() == 3) };
    if let Err(error) = eventually("there are three edges", PATIENCE, three).await {
        return Err(error.context(autoscaler().await));
    }
    let took = began.elapsed();
    let state = autoscaler().await;
    ensure!(state.contains("SuccessfulRescale") && state.contains("New size: 3"), "{state}");
    crowd.programmed("3/3").await?;
    crowd.talks().await?;

    let summary = crowd.settle().await?;
    let two = || async { Ok(node.edges().await?.len() == 2) };
    if let Err(error) = eventually("there are two edges again", PATIENCE, two).await {
        return Err(error.context(autoscaler().await));
    }
    crowd.programmed("2/2").await?;
    crowd.connected().await.context("after the end of the third edge")?;
    crowd.saw_only(&[])?;
    eprintln!("{summary:?}; a third edge is ready {took:?} after the clients");
    crowd.leave().await
}
