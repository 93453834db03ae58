//! Edges come and go while clients talk: scaled, killed with their pod, killed for their memory, drained with their node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use wirepost_testing::broker::eventually;
use wirepost_testing::client::Client;
use wirepost_testing::node::crowd::{Crowd, Kind, size};
use wirepost_testing::node::{EDGE, EDGES, EdgeWatch, Node, SYSTEM, is_ready};

const CLIENTS: usize = 300;
/// For a drain, or for pods to come.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn scaled_from_2_to_4_to_1_clients_see_drains_only() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let mut crowd = Crowd::gather(&node, "scale", size(CLIENTS)).await?;
    crowd.talks().await?;
    crowd.programmed("2/2").await?;

    node.scale(4).await?;
    crowd.programmed("4/4").await?;
    crowd.talks().await?;
    ensure!(crowd.moves().is_empty(), "more edges are no reason to move: {:?}", crowd.moves());

    let four = node.edges().await?;
    ensure!(four.len() == 4, "{} edges", four.len());
    node.scale(1).await?;
    crowd.programmed("1/1").await?;
    let one = node.edges().await?;
    let going: Vec<_> = four.into_iter().filter(|pod| one.iter().all(|one| one.uid() != pod.uid())).collect();
    ensure!(going.len() == 3, "{} edges go", going.len());
    node.gone(&going, PATIENCE).await?;
    crowd.talks().await?;
    let summary = crowd.settle().await?;
    crowd.saw_only(&[])?;
    ensure!(summary.repeated == 0, "{summary:?}");
    let connections = crowd.connected().await?;
    ensure!(connections.len() == 1, "{connections:?}");
    eprintln!("{summary:?}; {} of {} clients moved", crowd.moves().len(), size(CLIENTS));
    crowd.leave().await?;
    node.scale(2).await?;
    node.roll_out(SYSTEM, &format!("deployment/{EDGE}")).await
}

/// What the edge that holds most holds, as a multiple of the mean.
async fn largest(node: &Node) -> Result<f64> {
    let connections = node.connections().await?;
    let all: u64 = connections.values().sum();
    let largest = connections.values().max().copied().unwrap_or_default();
    Ok(largest as f64 * connections.len() as f64 / all.max(1) as f64)
}

/// At a higher pace than the default, so that it takes about a minute.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn new_edges_get_their_share_of_2000_clients_who_see_drains_only() -> Result<()> {
    const CLIENTS: usize = 2_000;
    let node = Node::connect().await?;
    node.install(&["edge.balance.perSecond=30", "edge.balance.afterSeconds=10"]).await?;
    let mut crowd = Crowd::gather(&node, "even", size(CLIENTS)).await?;
    crowd.talks().await?;
    node.scale(4).await?;
    crowd.programmed("4/4").await?;
    let begun = Instant::now();
    let even = || async { Ok(node.connections().await?.len() == 4 && largest(&node).await? <= 1.3) };
    eventually("no edge holds more than 1.3 times the mean", Duration::from_mins(5), even).await?;
    let took = begun.elapsed();
    crowd.talks().await?;
    let summary = crowd.settle().await?;
    crowd.saw_only(&[])?;
    ensure!(summary.repeated == 0, "{summary:?}");
    let (connections, moves) = (crowd.connected().await?, crowd.moves().len());
    eprintln!("{summary:?}; even after {took:.0?}, {moves} moves of {} clients: {connections:?}", size(CLIENTS));
    crowd.leave().await?;
    node.scale(2).await?;
    node.roll_out(SYSTEM, &format!("deployment/{EDGE}")).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn a_pod_deleted_by_force_costs_its_clients_a_reconnect_and_others_nothing() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let mut crowd = Crowd::gather(&node, "force", size(CLIENTS)).await?;
    crowd.talks().await?;
    let (victim, victims) = fuller(&node, &crowd).await?;
    let name = victim.name_any();
    node.kubectl(&["delete", "pod", &name, "--namespace", SYSTEM, "--force", "--grace-period=0"]).await?;
    node.roll_out(SYSTEM, &format!("deployment/{EDGE}")).await?;
    crowd.talks().await?;
    let summary = crowd.settle().await?;
    let connections = crowd.connected().await?;
    ensure!(connections.len() == 2 && !connections.contains_key(&name), "{connections:?}");
    broke_for(&crowd, victims)?;
    ensure!(summary.repeated == 0, "{summary:?}: a cursor continues exactly");
    eprintln!("{summary:?}; {victims} of {} clients were cut off; sockets: {connections:?}", size(CLIENTS));
    crowd.leave().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn an_edge_killed_for_its_memory_restarts_and_the_other_is_not_disturbed() -> Result<()> {
    /// Guests who begin a message and do not end it: an edge keeps as much of each as a message may have.
    const GUESTS: usize = 900;
    const BEGUN: usize = 120 << 10;
    let node = Node::connect().await?;
    // Together more than the edge may have: its bound for begun messages alone would keep it below 80 MiB.
    node.install(&["edge.resources.limits.memory=80Mi", "edge.inboundBytes=209715200"]).await?;
    let mut crowd = Crowd::gather(&node, "memory", size(CLIENTS)).await?;
    crowd.talks().await?;
    let watch = EdgeWatch::of(&node).await?;
    let (victim, victims) = fuller(&node, &crowd).await?;
    let name = victim.name_any();
    let ip = victim.status.and_then(|status| status.pod_ip).context("the pod has no address")?;
    let edge = format!("{ip}:8080").parse()?;

    let crowd_ref = &crowd;
    let begin = |n| async move {
        let mut guest = crowd_ref.guest(&format!("guest-{n}"), edge).await?;
        let begun = Frame::message(vec![b' '; BEGUN], OpCode::Data(Data::Text), false);
        guest.send_message(Message::Frame(begun)).await?;
        anyhow::Ok(guest)
    };
    // The last of them find no edge any more.
    let guests: Result<Vec<Client>> = stream::iter(0..GUESTS).map(begin).buffered(16).try_collect().await;
    let killed = || async { Ok(watch.fates()[&name].ended == Some((137, "OOMKilled".to_owned()))) };
    let was_killed = eventually("the edge is killed", PATIENCE, killed).await;
    was_killed.with_context(|| format!("{:?}; {:?}", guests.as_ref().map(Vec::len), watch.fates()))?;
    drop(guests);
    let back = || async { Ok(node.edges().await?.iter().all(is_ready)) };
    eventually("both edges are ready", PATIENCE, back).await?;
    crowd.talks().await?;
    let summary = crowd.settle().await?;
    crowd.connected().await?;
    for (pod, fate) in watch.fates() {
        let restarts = i32::from(pod == name);
        ensure!(fate.gone || fate.restarts == restarts, "{pod}: {fate:?}");
    }
    broke_for(&crowd, victims)?;
    ensure!(summary.repeated == 0, "{summary:?}");
    eprintln!("{summary:?}; {victims} of {} clients were cut off", size(CLIENTS));
    crowd.leave().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn a_drained_node_gives_up_all_edges_but_what_the_budget_keeps() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let mut crowd = Crowd::gather(&node, "drain", size(CLIENTS)).await?;
    crowd.talks().await?;
    let before = node.edges().await?;
    let of_one = before.first().and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
    let name = of_one.context("there is no edge on a node")?;

    // The first edge is evicted at once, and every few seconds kubectl asks for the other one.
    let drain = ["drain", name, "--pod-selector", EDGES, "--timeout", "15s"];
    let drained = node.kubectl(&drain).await;
    let seen = async {
        let stayed: Vec<_> = node.edges().await?.into_iter().filter(is_ready).collect();
        crowd.talks().await?;
        anyhow::Ok((stayed, crowd.connected().await?))
    };
    let seen = seen.await;
    // Whatever became of it, for those who come next.
    node.kubectl(&["uncordon", name]).await?;
    let refusal = drained.err().context("the last edge was evicted")?.to_string();
    ensure!(refusal.contains("disruption budget"), "{refusal}");
    let (stayed, connections) = seen?;
    ensure!(stayed.len() == 1 && before.iter().any(|pod| pod.uid() == stayed[0].uid()), "{stayed:#?}");
    ensure!(
        connections.get(&stayed[0].name_any()) == Some(&(size(CLIENTS) as u64)),
        "not all are at the edge that stayed"
    );

    node.roll_out(SYSTEM, &format!("deployment/{EDGE}")).await?;
    crowd.programmed("2/2").await?;
    let summary = crowd.settle().await?;
    crowd.saw_only(&[])?;
    ensure!(summary.repeated == 0, "{summary:?}");
    eprintln!("{summary:?}; {} of {} clients moved", crowd.moves().len(), size(CLIENTS));
    crowd.leave().await
}

/// The edge with more clients, and how many.
async fn fuller(node: &Node, crowd: &Crowd<'_>) -> Result<(Pod, usize)> {
    let connections = crowd.connected().await?;
    let fuller = connections.into_iter().max_by_key(|&(_, clients)| clients);
    let (name, clients) = fuller.context("there is no edge")?;
    let pod = node.edges().await?.into_iter().find(|pod| pod.name_any() == name);
    Ok((pod.context("the edge is gone")?, clients as usize))
}

/// Checks that the connections of this many clients broke, each once, and that no other client noticed anything. Until the Service has heard of it,
/// some who come back at once may be sent to where no edge is any more.
fn broke_for(crowd: &Crowd<'_>, victims: usize) -> Result<()> {
    crowd.saw_only(&[Kind::Broken, Kind::Refused])?;
    let troubles = crowd.troubles();
    let of =
        |kind| troubles.iter().filter(|trouble| trouble.kind == kind).map(|trouble| trouble.client).collect::<Vec<_>>();
    let (mut broken, refused) = (of(Kind::Broken), of(Kind::Refused));
    let some = &troubles[..troubles.len().min(5)];
    let times = broken.len();
    broken.sort_unstable();
    broken.dedup();
    ensure!(broken.len() == times, "{} clients were cut off {times} times: {some:#?}", broken.len());
    ensure!(broken.len() == victims, "{} of {victims} connections broke: {some:#?}", broken.len());
    ensure!(refused.iter().all(|client| broken.contains(client)), "others were refused: {some:#?}");
    eprintln!("{victims} connections broke, {} times a client came too early", refused.len());
    Ok(())
}
