//! A business counts its connections by events, and comes to the truth whatever dies: as docs/services.md tells authors
//! of services to do it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::timeout;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::Client;
use wirepost_testing::edge::{Edge, EdgeBuilder};
use wirepost_testing::fleet::Fleet;
use wirepost_testing::proxy::{Network, Proxy};
use wirepost_testing::service::{Service, next_json};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// What a process of an edge is known to have.
#[derive(Default)]
struct Known {
    edge: String,
    connections: BTreeSet<String>,
    /// Censuses of each other process since its own last one.
    others: BTreeMap<String, u32>,
}

/// The counter of docs/services.md.
#[derive(Default)]
struct Counter {
    processes: BTreeMap<String, Known>,
    /// Connections that were taken for lost with their edge.
    lost: Vec<String>,
    /// A census did not agree: the list has to be asked for.
    doubts: bool,
}

impl Counter {
    fn take(&mut self, event: &Value) -> Result<()> {
        let instance = event["instance"].as_str().context("no instance")?.to_owned();
        let known = self.processes.entry(instance.clone()).or_default();
        event["edge"].as_str().context("no edge")?.clone_into(&mut known.edge);
        match event["event"].as_str() {
            Some("connected") => {
                known.connections.insert(event["connectionId"].as_str().context("no id")?.to_owned());
            }
            Some("disconnected") => {
                known.connections.remove(event["connectionId"].as_str().context("no id")?);
            }
            Some("census") => {
                known.others.clear();
                let digest = known.connections.iter().map(|id| number(id)).fold(0, |digest, id| digest ^ id);
                let agrees = event["connections"] == known.connections.len()
                    && event["digest"].as_str() == Some(&format!("{digest:032x}"));
                self.doubts |= !agrees;
                let silent = |known: &mut Known| {
                    let times = known.others.entry(instance.clone()).or_default();
                    *times += 1;
                    *times >= 3
                };
                let gone: Vec<String> = self
                    .processes
                    .iter_mut()
                    .filter(|(process, _)| **process != instance)
                    .filter_map(|(process, known)| silent(known).then(|| process.clone()))
                    .collect();
                for process in gone {
                    self.lost.extend(self.processes.remove(&process).into_iter().flat_map(|known| known.connections));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Starts again with what the edges say now.
    async fn correct(&mut self, edge: &Edge) -> Result<bool> {
        let (status, body) = edge.get("/payments/websocket/presence", &[("list", "true"), ("limit", "500")]).await?;
        ensure!(status == 200, "{status}: {body}");
        let data = &body["data"];
        if data["complete"] != true {
            return Ok(false);
        }
        self.processes.clear();
        for one in data["edges"].as_array().context("no edges")? {
            let Some(instance) = one["instance"].as_str() else { continue };
            let of_edge = data["list"].as_array().context("no list")?.iter();
            let of_edge = of_edge.filter(|connection| connection["edge"] == one["edge"]);
            let ids = of_edge.filter_map(|connection| connection["connectionId"].as_str().map(str::to_owned));
            let edge = one["edge"].as_str().unwrap_or_default().to_owned();
            let known = Known { edge, connections: ids.collect(), others: BTreeMap::new() };
            self.processes.insert(instance.to_owned(), known);
        }
        self.doubts = false;
        Ok(true)
    }

    fn all(&self) -> BTreeSet<String> {
        self.processes.values().flat_map(|known| known.connections.iter().cloned()).collect()
    }
}

fn number(id: &str) -> u128 {
    u128::from_str_radix(&id.replace('-', ""), 16).unwrap_or_default()
}

fn edge(fleet: &Fleet, setup: &Setup, place: usize) -> EdgeBuilder {
    fleet.edge(setup, place).flag("census-seconds", 2)
}

fn ids(clients: &[Client]) -> BTreeSet<String> {
    clients.iter().filter_map(|client| client.welcome["connectionId"].as_str().map(str::to_owned)).collect()
}

async fn connect(edge: &Edge, count: usize, who: &str) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for n in 0..count {
        clients.push(edge.client(&format!("{who}-{n}"), "app").connect().await?);
    }
    Ok(clients)
}

#[tokio::test]
async fn a_counter_by_events_comes_to_the_truth_after_an_edge_was_killed_and_after_lost_events() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(3);
    let (network, amqp) = Proxy::of_uri(&setup.edge_amqp().await?).await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("#").await?;
    let e1 = edge(&fleet, &setup, 0).start().await?;
    let e2 = edge(&fleet, &setup, 1).flag("amqp", amqp).start().await?;
    let e3 = edge(&fleet, &setup, 2).start().await?;
    let mut counter = Counter::default();
    let mut on_first = connect(&e1, 3, "first").await?;
    let on_second = connect(&e2, 4, "second").await?;
    let on_third = connect(&e3, 5, "third").await?;
    let mut truth: BTreeSet<_> = [ids(&on_first), ids(&on_second), ids(&on_third)].into_iter().flatten().collect();
    until(&mut counter, &mut events, &truth).await?;
    ensure!(!counter.doubts, "nothing was lost");

    // Killed: what it had is lost, each once, and nothing else.
    let lost = ids(&on_third);
    e3.kill9()?;
    truth = &truth - &lost;
    until(&mut counter, &mut events, &truth).await?;
    ensure!(counter.lost.len() == lost.len() && lost == counter.lost.iter().cloned().collect());
    ensure!(!counter.doubts, "nothing was lost but an edge");

    // The broker is away from one edge: its events are dropped.
    network.set(Network::Stalled);
    network.cut();
    eventually("it has noticed", PATIENCE, || async { Ok(e2.count("wirepost_edge_broker_up").await? == 0) }).await?;
    let gone = on_second.into_iter().next().context("a client")?;
    truth.remove(gone.welcome["connectionId"].as_str().context("no id")?);
    gone.leave().await?;
    e2.await_metric("wirepost_broker_dropped_events", 1.0).await?;
    network.set(Network::Fine);
    take_until(&mut counter, &mut events, |counter| counter.doubts).await?;
    eventually("all edges answer", PATIENCE, || async {
        Ok(e1.count("wirepost_edge_peers{kind=\"answers\"}").await? == 1)
    })
    .await?;
    ensure!(counter.correct(&e1).await?, "an edge does not answer");

    // Those who were on the closed connections of that edge have gone with its clients' sockets.
    truth = counter.all();
    ensure!(truth.is_superset(&ids(&on_first)), "{truth:?}");
    on_first.extend(connect(&e1, 2, "later").await?);
    truth.extend(ids(&on_first));
    until(&mut counter, &mut events, &truth).await?;
    ensure!(!counter.doubts, "what it learned agrees with what is told since");

    // All are gone with one edge, and the other one has nobody: it speaks all the same.
    drop(e2);
    e1.kill9()?;
    let another = edge(&fleet, &setup, 2).start().await?;
    until(&mut counter, &mut events, &BTreeSet::new()).await?;
    drop((another, on_third));
    Ok(())
}

async fn take_until(counter: &mut Counter, events: &mut lapin::Consumer, is: impl Fn(&Counter) -> bool) -> Result<()> {
    let waited = timeout(PATIENCE, async {
        while !is(counter) {
            counter.take(&next_json(events).await?)?;
        }
        anyhow::Ok(())
    });
    waited.await.with_context(|| format!("the counter has {:?}", counter.all()))?
}

/// Takes events until the counter has exactly these connections, and the next two censuses agree.
async fn until(counter: &mut Counter, events: &mut lapin::Consumer, truth: &BTreeSet<String>) -> Result<()> {
    take_until(counter, events, |counter| counter.all() == *truth).await?;
    for _ in 0..2 {
        let census = timeout(PATIENCE, async {
            loop {
                let event = next_json(events).await?;
                counter.take(&event)?;
                if event["event"] == "census" {
                    return anyhow::Ok(());
                }
            }
        });
        census.await??;
    }
    ensure!(counter.all() == *truth, "it had the truth, and lost it: {:?}", counter.all());
    Ok(())
}

#[tokio::test]
async fn a_census_agrees_with_the_events_before_it_however_many_come_and_go() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("#").await?;
    let edge = setup.edge("e1").flag("census-seconds", 0.1).start().await?;
    let mut counter = Counter::default();
    let comers = async {
        for round in 0..10 {
            let clients = connect(&edge, 8, &format!("r{round}")).await?;
            for client in clients {
                client.leave().await?;
            }
        }
        anyhow::Ok(())
    };
    let counting = async {
        let (mut with_clients, mut seen) = (0, 0);
        while seen < 160 || !counter.all().is_empty() {
            let event = timeout(Duration::from_mins(1), next_json(&mut events)).await??;
            counter.take(&event)?;
            ensure!(!counter.doubts, "{event}, and the counter has {:?}", counter.all());
            seen += u32::from(event["event"] != "census");
            with_clients += u32::from(event["event"] == "census" && event["connections"] != 0);
        }
        ensure!(with_clients > 0, "no census came while clients were here");
        Ok(())
    };
    tokio::try_join!(comers, counting)?;
    Ok(())
}
