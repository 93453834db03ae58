//! A broker of three nodes: while each of them dies, freezes, is cut off, runs out of disk and restarts, everything that was confirmed or
//! acknowledged arrives, and afterwards the work is spread over the nodes as it was before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use wirepost_core::names;
use wirepost_testing::broker::{BrokerCluster, eventually, publish};
use wirepost_testing::client::{Client, Event};
use wirepost_testing::edge::Edge;
use wirepost_testing::service::{Service, body, payment};
use wirepost_testing::setup::{PAYMENTS, Setup, TICKER};

/// How long the broker may take to find itself again, on a slow machine.
const FOUND: Duration = Duration::from_mins(2);
/// How long a node is frozen or cut off: edges give up their connections to it, and clients are told.
const OUTAGE: Duration = Duration::from_secs(6);
/// Messages of each kind that must pass before and after a fault.
const SOME: usize = 20;

/// What was promised, and what came.
#[derive(Default)]
struct Seen {
    /// Numbers of pushes that the broker confirmed.
    confirmed: Vec<u64>,
    /// Numbers of a client's messages that an edge acknowledged.
    acked: Vec<u64>,
    /// Numbers of pushes that the client got, in order, repeats left out.
    received: Vec<u64>,
    /// Codes of refusals.
    nacks: BTreeSet<String>,
    gaps: usize,
}

type Shared = Arc<Mutex<Seen>>;

fn look<T>(seen: &Shared, at: impl FnOnce(&mut Seen) -> T) -> T {
    at(&mut seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// A service that pushes to alice, by whichever node takes it, each push until it is confirmed.
async fn push(nodes: Vec<String>, seen: Shared, stop: CancellationToken) -> Result<()> {
    let (mut node, mut n) = (0, 0);
    while !stop.is_cancelled() {
        node += 1;
        let uri = &nodes[node % nodes.len()];
        let connecting = Connection::connect(uri, ConnectionProperties::default());
        let Ok(Ok(connection)) = timeout(Duration::from_secs(5), connecting).await else { continue };
        let Ok(channel) = connection.create_channel().await else { continue };
        if channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await.is_err() {
            continue;
        }
        while !stop.is_cancelled() {
            let mut envelope = payment("alice", n);
            envelope["id"] = format!("push-{n}").into();
            let exchange = names::push_exchange("payments");
            let (key, bytes) = ("any", envelope.to_string());
            let publishing = publish(&channel, &exchange, key, bytes.as_bytes());
            match timeout(Duration::from_secs(5), publishing).await {
                Ok(Ok(())) => {
                    look(&seen, |seen| seen.confirmed.push(n));
                    n += 1;
                    sleep(Duration::from_millis(20)).await;
                }
                // By another node, with the same id.
                _ => break,
            }
        }
    }
    Ok(())
}

/// A client that sends orders, each until it is acknowledged.
async fn order(mut bob: Client, seen: Shared, stop: CancellationToken) -> Result<()> {
    let mut n = 0;
    while !stop.is_cancelled() {
        bob.send(&json!({"id": format!("order-{n}"), "messageType": "order.placed", "content": {"n": n}})).await?;
        let answer = bob.answer().await?;
        if answer["op"] == "ack" {
            look(&seen, |seen| seen.acked.push(n));
            n += 1;
            sleep(Duration::from_millis(20)).await;
            continue;
        }
        ensure!(answer["retryable"] == json!(true), "{answer}");
        look(&seen, |seen| seen.nacks.insert(answer["code"].as_str().unwrap_or_default().to_owned()));
        sleep(Duration::from_millis(answer["retryAfterMs"].as_u64().unwrap_or(500).min(2000))).await;
    }
    Ok(())
}

/// Alice, who returns with her cursor.
async fn receive(edge: Arc<Edge>, mut alice: Client, seen: Shared, stop: CancellationToken) -> Result<()> {
    let mut known = BTreeSet::new();
    while !stop.is_cancelled() {
        match alice.event(Duration::from_secs(1)).await {
            Ok(Event::Push(push)) => {
                let n = push["content"]["n"].as_u64().context("a push without a number")?;
                if known.insert(n) {
                    look(&seen, |seen| seen.received.push(n));
                }
            }
            Ok(Event::Control(frame)) if frame["op"] == "gap" => look(&seen, |seen| seen.gaps += 1),
            Ok(Event::End(_)) => {
                let cursor = alice.newest().context("no cursor")?;
                alice = edge.client("alice", "app").cursor(cursor).connect().await?;
            }
            // Or nothing came.
            Ok(Event::Control(_) | Event::Position(_)) | Err(_) => {}
        }
    }
    Ok(())
}

/// Some more of each kind passes.
async fn passes(seen: &Shared, when: &str) -> Result<()> {
    let before = look(seen, |seen| (seen.confirmed.len(), seen.acked.len()));
    eventually(&format!("messages pass {when}"), FOUND, || async {
        let now = look(seen, |seen| (seen.confirmed.len(), seen.acked.len()));
        Ok(now.0 >= before.0 + SOME && now.1 >= before.1 + SOME)
    })
    .await?;
    let confirmed = look(seen, |seen| seen.confirmed.clone());
    eventually(&format!("what was confirmed has come {when}"), FOUND, || async {
        let received: BTreeSet<u64> = look(seen, |seen| seen.received.iter().copied().collect());
        Ok(confirmed.iter().all(|n| received.contains(n)))
    })
    .await
}

/// On which node each publishing connection of an edge is, by its name.
async fn lanes(cluster: &BrokerCluster, asked: usize) -> Result<BTreeMap<String, String>> {
    let answer = cluster.node(asked).call("GET", "/api/connections", "").await?;
    let connections: Vec<Value> = serde_json::from_str(&answer)?;
    let lane = |connection: &Value| {
        let name = connection["client_properties"]["connection_name"].as_str()?;
        Some((name.contains("publishing").then(|| name.to_owned())?, connection["node"].as_str()?.to_owned()))
    };
    Ok(connections.iter().filter_map(lane).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_holds_while_nodes_die_freeze_part_and_restart() -> Result<()> {
    let cluster = BrokerCluster::start("nodes").await?;
    let vhost = cluster.node(0).vhost().await?;
    let name = vhost.name.clone();
    let setup = Setup::on(vhost, &[PAYMENTS]).await?;

    // One operator declares everything by one node, and others lead nevertheless; the replicas are on all.
    let mut declared = vec![PAYMENTS.to_owned()];
    let mut leaders = BTreeSet::new();
    for n in 0..4 {
        declared.push(TICKER.replace("name: ticker", &format!("name: ticker-{n}")));
        setup.declare(&declared.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        for queue in ["stream", "dead"].map(|queue| format!("wirepost.ticker-{n}.{queue}")) {
            leaders.insert(cluster.leader(0, &name, &queue).await?);
            ensure!(cluster.members(0, &name, &queue).await? == [0, 1, 2], "{queue}");
        }
    }
    ensure!(leaders.len() > 1, "one node leads everything: {leaders:?}");

    let of_edges = setup.edge_amqp().await?;
    let user = of_edges.split_once("://").and_then(|(_, rest)| rest.split_once('@')).context("no user")?.0.to_owned();
    let host = |node: usize| {
        let amqp = &cluster.node(node).amqp;
        amqp.rsplit('@').next().unwrap_or_default().to_owned()
    };
    let amqp: Vec<String> = (0..3).map(|node| format!("amqp://{user}@{}/{name}", host(node))).collect();
    let streams: Vec<String> = (0..3).map(|node| cluster.node(node).stream.clone()).collect();
    let start = async |name: &str| {
        let edge = setup.edge(name).flag("amqp", amqp.join(",")).flag("stream", streams.join(","));
        edge.start().await.map(Arc::new)
    };
    let (first, second) = (start("e1").await?, start("e2").await?);

    let (seen, stop, mut traffic) = (Shared::default(), CancellationToken::new(), JoinSet::new());
    let services = (0..3).map(|node| format!("{}/{name}", cluster.node(node).amqp)).collect();
    // Before the first push: she gets what comes from then on.
    let alice = second.client("alice", "app").connect().await?;
    traffic.spawn(receive(Arc::clone(&second), alice, Arc::clone(&seen), stop.clone()));
    traffic.spawn(push(services, Arc::clone(&seen), stop.clone()));
    let bob = first.client("bob", "h5").connect().await?;
    traffic.spawn(order(bob, Arc::clone(&seen), stop.clone()));
    passes(&seen, "at the beginning").await?;

    let mut before = BTreeMap::new();
    eventually("all publishing connections are listed", FOUND, || async { Ok(lanes(&cluster, 0).await?.len() == 4) })
        .await?;
    before.append(&mut lanes(&cluster, 0).await?);
    for edge in ["e1", "e2"] {
        let nodes: BTreeSet<&String> =
            before.iter().filter(|(name, _)| name.contains(&format!(" {edge} "))).map(|(_, node)| node).collect();
        assert_eq!(nodes.len(), 2, "{edge} is on two nodes: {before:?}");
    }

    let leader = async |asked: usize| cluster.leader(asked, &name, "wirepost.payments.stream").await;
    let dead = leader(0).await?;
    cluster.node(dead).kill9().await?;
    passes(&seen, "without the node that led the stream").await?;
    cluster.node(dead).start_again().await?;
    passes(&seen, "when it has returned").await?;

    for node in 0..3 {
        cluster.node(node).stop().await?;
        cluster.node(node).start_again().await?;
    }
    passes(&seen, "after each node has restarted").await?;

    let frozen = leader(dead).await?;
    cluster.node(frozen).pause().await?;
    sleep(OUTAGE).await;
    cluster.node(frozen).resume().await?;
    passes(&seen, "after the leader of the stream was frozen").await?;

    let parted = leader(dead).await?;
    cluster.node(parted).part().await?;
    sleep(OUTAGE).await;
    cluster.node(parted).rejoin().await?;
    passes(&seen, "after the leader of the stream was cut off").await?;

    let led = leader(dead).await?;
    let moves = format!(
        "rabbit_stream_queue:restart_stream(<<\"{name}\">>, <<\"wirepost.payments.stream\">>, \
         #{{preferred_leader_node => 'wirepost-{}@localhost'}}).",
        cluster.node((led + 1) % 3).name()
    );
    // RabbitMQ prefers that node among those that have every message: at this moment it may lack the newest.
    let another_leads = || async {
        cluster.node(0).ctl(&["eval", &moves]).await?;
        Ok(leader(dead).await? != led)
    };
    eventually("another node leads the stream", FOUND, another_leads).await?;
    passes(&seen, "when the leader of the stream has moved").await?;

    // One node is enough: RabbitMQ takes nothing on any of them.
    look(&seen, |seen| seen.nacks.clear());
    cluster.node(2).ctl(&["set_disk_free_limit", "100000GB"]).await?;
    eventually("clients are told", FOUND, || async {
        Ok(look(&seen, |seen| seen.nacks.contains("broker_unavailable")))
    })
    .await?;
    cluster.node(2).ctl(&["set_disk_free_limit", "50MB"]).await?;
    passes(&seen, "when there is room on the disk again").await?;

    eventually("each connection is back at its own node", FOUND, || async { Ok(lanes(&cluster, 0).await? == before) })
        .await?;
    passes(&seen, "when the connections have returned").await?;

    stop.cancel();
    while let Some(ended) = traffic.join_next().await {
        ended??;
    }
    let (received, gaps) = look(&seen, |seen| (seen.received.clone(), seen.gaps));
    ensure!(received.is_sorted(), "alice got pushes in another order");
    assert_eq!(gaps, 0, "nothing was missing, so nobody is told");
    all_orders(&setup, &look(&seen, |seen| seen.acked.clone())).await
}

/// The queue has every acknowledged order.
async fn all_orders(setup: &Setup, acked: &[u64]) -> Result<()> {
    let service = Service::connect(setup).await?;
    let mut queue = service.consume("orders", 1000).await?;
    let mut left: BTreeSet<u64> = acked.iter().copied().collect();
    while !left.is_empty() {
        let Ok(delivery) = timeout(FOUND, wirepost_testing::broker::next(&mut queue)).await else {
            bail!("{} acknowledged orders are missing: {left:?}", left.len());
        };
        let delivery = delivery?;
        left.remove(&body(&delivery)?["content"]["n"].as_u64().context("an order without a number")?);
        delivery.ack(lapin::options::BasicAckOptions::default()).await?;
    }
    Ok(())
}
