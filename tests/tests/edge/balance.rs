//! An even load: new edges get their share of the clients that are there already, and nobody notices.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use wirepost_testing::client::{Client, Event};
use wirepost_testing::edge::{Edge, EdgeBuilder};
use wirepost_testing::fleet::Fleet;
use wirepost_testing::service::Service;
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::wait::{PATIENCE, eventually};

/// Connects each client to the next edge, as a load balancer in front of them.
#[derive(Clone)]
struct Balancer {
    address: SocketAddr,
    edges: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Balancer {
    async fn start(edges: &[&Edge]) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let edges: Arc<Mutex<Vec<_>>> = Arc::new(Mutex::new(edges.iter().map(|edge| edge.public).collect()));
        let (address, targets) = (listener.local_addr()?, Arc::clone(&edges));
        tokio::spawn(async move {
            let (next, mut connections) = (AtomicUsize::new(0), JoinSet::new());
            while let Ok((mut client, _)) = listener.accept().await {
                let edge = {
                    let edges = targets.lock().unwrap_or_else(PoisonError::into_inner);
                    edges[next.fetch_add(1, Ordering::Relaxed) % edges.len()]
                };
                connections.spawn(async move {
                    if let Ok(mut edge) = TcpStream::connect(edge).await {
                        let _ = copy_bidirectional(&mut client, &mut edge).await;
                    }
                });
            }
        });
        Ok(Self { address, edges })
    }

    fn add(&self, edge: &Edge) {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner).push(edge.public);
    }
}

/// Reads until `stop`, and goes on elsewhere when it is told to. Every number from 0 to the last one has come once, in
/// order. How many it has got.
async fn member(mut client: Client, balancer: SocketAddr, stop: Arc<AtomicUsize>) -> Result<usize> {
    let (mut got, mut cursor) = (0, client.newest());
    while got < stop.load(Ordering::Relaxed) {
        match client.event(PATIENCE).await? {
            Event::Push(push) => {
                let number = push["content"]["n"].as_u64().context("no number")?;
                ensure!(number == got as u64, "{number} came after {got} messages");
                got += 1;
            }
            Event::Control(control) => ensure!(control["op"] != "gap", "{control}"),
            Event::Position(_) => {}
            Event::End(_) => {
                cursor = client.newest().or(cursor);
                client = again(balancer, &client.resume_token(), cursor.clone()).await?;
            }
        }
    }
    Ok(got)
}

async fn again(balancer: SocketAddr, token: &str, cursor: Option<String>) -> Result<Client> {
    let mut client = Client::back(balancer, token, cursor).await?;
    client.welcome = client.control("welcome").await?;
    Ok(client)
}

fn edge(fleet: &Fleet, setup: &Setup, place: usize) -> EdgeBuilder {
    let edge = fleet.edge(setup, place).flag("drain-window-seconds", 2);
    edge.flag("balance-after-seconds", 3).flag("balance-per-second", 20)
}

async fn sizes(edges: &[&Edge]) -> Result<Vec<f64>> {
    try_join_all(edges.iter().map(|edge| edge.metric("wirepost_edge_connections"))).await
}

async fn let_go(edges: &[&Edge]) -> Result<f64> {
    Ok(try_join_all(edges.iter().map(|edge| edge.metric("wirepost_edge_let_go_total"))).await?.iter().sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn new_edges_get_their_share_and_no_client_loses_anything() -> Result<()> {
    const CLIENTS: usize = 200;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(4);
    let (e1, e2) = tokio::try_join!(edge(&fleet, &setup, 0).start(), edge(&fleet, &setup, 1).start())?;
    let balancer = Balancer::start(&[&e1, &e2]).await?;
    let stop = Arc::new(AtomicUsize::new(usize::MAX));
    let mut members = JoinSet::new();
    let failures: Arc<Mutex<Vec<String>>> = Arc::default();
    for n in 0..CLIENTS {
        let client = e1.client(&format!("client-{n}"), "app").via(balancer.address).connect().await?;
        let (stop, failures) = (Arc::clone(&stop), Arc::clone(&failures));
        members.spawn(async move {
            let got = member(client, balancer.address, stop).await;
            let failure = got.as_ref().err().map(|error| format!("client {n}: {error:#}"));
            failures.lock().unwrap_or_else(PoisonError::into_inner).extend(failure);
            got
        });
    }
    ensure!(sizes(&[&e1, &e2]).await?.iter().all(|size| (*size - 100.0).abs() < 20.0), "they begin even");

    let (e3, e4) = tokio::try_join!(edge(&fleet, &setup, 2).start(), edge(&fleet, &setup, 3).start())?;
    balancer.add(&e3);
    balancer.add(&e4);
    let edges = [&e1, &e2, &e3, &e4];
    // Messages flow all the time.
    let (service, flows) = (Service::connect(&setup).await?, Arc::new(AtomicBool::new(true)));
    let pushing = tokio::spawn({
        let flows = Arc::clone(&flows);
        async move {
            let mut n = 0;
            while flows.load(Ordering::Relaxed) {
                service.push(&json!({"messageType": "till.notice", "toUniqueId": "*", "content": {"n": n}})).await?;
                n += 1;
                sleep(Duration::from_millis(200)).await;
            }
            anyhow::Ok(n)
        }
    });
    let begun = Instant::now();
    let mean = CLIENTS as f64 / edges.len() as f64;
    let even = eventually("no edge holds more than 1.3 times the mean", Duration::from_mins(3), || async {
        let sizes = sizes(&edges).await?;
        let failures = failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(failures.is_empty(), "{failures:?}");
        let all: f64 = sizes.iter().sum();
        Ok(all >= CLIENTS as f64 * 0.98 && sizes.iter().all(|size| *size <= mean * 1.3))
    })
    .await;
    if even.is_err() {
        let mut holds = Vec::new();
        for edge in edges {
            let (_, text) = edge.admin("/metrics").await?;
            let told =
                |line: &&str| line.contains("edge_balance") || line.contains("edge_peers") || line.contains("let_go");
            holds.push(text.lines().filter(told).filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join(" "));
        }
        even.with_context(|| format!("after {:?}: {:?}, {holds:#?}", begun.elapsed(), failures))?;
    }

    // It comes to rest.
    let (mut before, mut quiet) = (let_go(&edges).await?, Instant::now());
    while quiet.elapsed() < Duration::from_secs(12) {
        ensure!(begun.elapsed() < Duration::from_mins(4), "clients are still let go");
        sleep(Duration::from_millis(500)).await;
        let now = let_go(&edges).await?;
        if (now - before).abs() > 0.5 {
            (before, quiet) = (now, Instant::now());
        }
    }
    ensure!(before <= 3.0 * CLIENTS as f64, "{before} clients were moved");
    let sizes = sizes(&edges).await?;
    ensure!(sizes.iter().all(|size| *size <= mean * 1.3), "{sizes:?}");

    flows.store(false, Ordering::Relaxed);
    let pushed = pushing.await??;
    stop.store(usize::try_from(pushed)?, Ordering::Relaxed);
    // One more, so that everybody looks whether it has all.
    let service = Service::connect(&setup).await?;
    service.push(&json!({"messageType": "till.notice", "toUniqueId": "*", "content": {"n": pushed}})).await?;
    let mut done = 0;
    while let Some(member) = members.join_next().await {
        let got = member??;
        ensure!(got >= usize::try_from(pushed)?, "a client got {got} of {pushed}");
        done += 1;
    }
    ensure!(done == CLIENTS);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_zero_clients_a_second_it_is_off() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(2);
    let e1 = edge(&fleet, &setup, 0).flag("balance-per-second", 0).start().await?;
    let mut clients = Vec::new();
    for n in 0..30 {
        clients.push(e1.client(&format!("client-{n}"), "app").connect().await?);
    }
    let e2 = edge(&fleet, &setup, 1).flag("balance-per-second", 0).start().await?;
    e1.await_metric("wirepost_edge_peers{kind=\"answers\"}", 1.0).await?;
    // Not a wait for something: that nothing happens is what this test is about.
    sleep(Duration::from_secs(8)).await;
    ensure!(let_go(&[&e1, &e2]).await? < 0.5 && sizes(&[&e1]).await? == [30.0]);
    for client in &mut clients {
        client.sync().await?;
    }
    Ok(())
}
