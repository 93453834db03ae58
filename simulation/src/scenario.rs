//! One run: a cluster, edges, clients and services, trouble for a while, calm, and the end.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Result;
use rand::{random_bool, random_range};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use wirepost_edge::{config::settings::Settings, identity::keys::KeyRing};
use wirepost_runtime::clock;

use crate::{
    broker::{Cluster, Mood, node_name},
    client::{Client, Clients, Phase},
    declaration::Variant,
    edge::Edge,
    network::{Fault, World},
    oracle::{Oracle, View},
};

/// After it, everything that can come has come: clients know the end of their stream.
const CALM: Duration = Duration::from_secs(75);
/// How long services push in the calm.
const PUSHES: Duration = Duration::from_secs(15);
const BUSINESSES: [&str; 2] = ["alpha", "beta"];

/// What came of a run.
pub(crate) struct Report {
    pub(crate) violations: Vec<String>,
    /// The same whenever the seed is run.
    pub(crate) trace: u64,
    pub(crate) summary: String,
}

struct Run {
    world: World,
    oracle: Oracle,
    cluster: Cluster,
    keys: Arc<KeyRing>,
    settings: Settings,
    /// `None`: gone, and not back yet.
    edges: Vec<Option<Edge>>,
    declared: Vec<(String, Variant)>,
    /// Trouble is for the first business only.
    spares: bool,
}

/// Runs what chance, which follows from the seed, makes of it.
pub(crate) async fn run() -> Result<Report> {
    let (world, oracle) = (World::default(), Oracle::default());
    let nodes = random_range(1..=3);
    let cluster = Cluster::start(&world, &oracle, nodes, random_bool(0.8));
    let businesses = random_range(1..=BUSINESSES.len());
    let declared: Vec<_> = BUSINESSES[..businesses].iter().map(|name| ((*name).to_owned(), Variant::Full)).collect();
    for (number, (business, _)) in declared.iter().enumerate() {
        if number == 1 && random_bool(0.4) {
            cluster.make_transient(business);
        } else {
            cluster.declare(business);
        }
    }
    // At times only one of two businesses is in trouble.
    let spared = (businesses == 2 && random_bool(0.3)).then_some(BUSINESSES[1]);
    if let Some(business) = spared {
        oracle.spare(business);
    }
    let mut run = Run {
        world: world.clone(),
        oracle: oracle.clone(),
        cluster: cluster.clone(),
        keys: Arc::new(KeyRing::random()),
        settings: settings(),
        edges: Vec::new(),
        declared,
        spares: spared.is_some(),
    };
    let edges: Vec<String> = (0..random_range(1..=2)).map(|number| format!("edge{number}")).collect();
    for name in &edges {
        let edge = run.edge(name)?;
        run.edges.push(Some(edge));
    }
    let (phase_sender, phase) = watch::channel(Phase::Trouble);
    let mut tasks = tokio::task::JoinSet::new();
    let clients = Arc::new(Clients {
        world,
        oracle: oracle.clone(),
        cluster: cluster.clone(),
        keys: Arc::clone(&run.keys),
        edges,
        phase: phase.clone(),
        numbers: AtomicU64::new(1),
        tags: ["red", "blue"].map(str::to_owned).to_vec(),
        others: ["alice", "bob", "carol"].map(str::to_owned).to_vec(),
    });
    for (business, _) in &run.declared {
        for (number, (id, kind)) in
            [("alice", "app"), ("bob", "web"), ("alice", "web"), ("carol", "app")].into_iter().enumerate()
        {
            let view = View::new(&format!("{business}/{id}{number}"), business, id, kind);
            tasks.spawn(Client { shared: Arc::clone(&clients), view }.live());
        }
        for number in 0..2 {
            tasks.spawn(service(cluster.clone(), business.clone(), number, phase.clone()));
        }
    }
    run.trouble(random_range(3..25)).await?;
    run.calm().await?;
    phase_sender.send_replace(Phase::Calm);
    tracing::info!("calm");
    sleep(CALM).await;
    phase_sender.send_replace(Phase::End);
    tracing::info!("end");
    if tokio::time::timeout(Duration::from_mins(1), async { while tasks.join_next().await.is_some() {} }).await.is_err()
    {
        oracle.violation("a client does not end".to_owned());
    }
    // Readers linger, pages are kept for a while.
    sleep(run.settings.linger + Duration::from_secs(30)).await;
    for edge in run.edges.iter().flatten() {
        edge.check();
        for account in edge.open_accounts() {
            oracle.violation(format!("{}: {account} at rest", edge.name));
        }
    }
    oracle.check_order();
    let (trace, summary) = oracle.summary();
    Ok(Report { violations: oracle.violations(), trace, summary })
}

/// Small bounds, so that they are met.
fn settings() -> Settings {
    Settings {
        outbound_bytes: random_range(4_000..200_000),
        outbound_messages: random_range(8..200),
        backlog_bytes: random_range(50_000..2_000_000),
        log_bytes: if random_bool(0.5) { random_range(0..20_000) } else { 1 << 20 },
        linger: Duration::from_secs(random_range(1..10)),
        catch_up_bytes: random_range(500..20_000),
        catch_up_readers: random_range(1..3),
        position_interval: Duration::from_secs(5),
        write_timeout: Duration::from_secs(random_range(3..30)),
        heartbeat: Duration::from_secs(random_range(5..25)),
        ..Settings::default()
    }
}

/// Pushes as a business's service.
async fn service(cluster: Cluster, business: String, number: u32, phase: watch::Receiver<Phase>) {
    let (mut count, mut calm_since) = (0, None);
    loop {
        let pause = if random_bool(0.1) { 9000 } else { 2000 };
        sleep(Duration::from_millis(random_range(0..pause))).await;
        if *phase.borrow() != Phase::Trouble {
            // Only for a while, so that everybody can reach the end.
            let since: &mut Instant = calm_since.get_or_insert_with(Instant::now);
            if since.elapsed() > PUSHES {
                return;
            }
        }
        for _ in 0..random_range(1..random_range(2..9)) {
            count += 1;
            let mut body = json!({
                "id": format!("{business}{number}-{count}"),
                "messageType": if random_bool(0.3) { "news" } else { "note" },
                "content": "x".repeat(random_range(0..random_range(1..2000))),
            });
            match random_range(0..4) {
                0 => body["toUniqueId"] = "*".into(),
                1 => body["toUniqueId"] = ["alice", "bob", "carol"][random_range(0..3)].into(),
                2 => body["tags"] = vec![["red", "blue", "green"][random_range(0..3)]].into(),
                _ => {
                    body["toUniqueId"] = ["*", "alice", "bob"][random_range(0..3)].into();
                    body["tags"] = json!(["red"]);
                }
            }
            if random_bool(0.1) {
                body["expiresAt"] = (clock::now_ms() + random_range(50..15_000)).into();
            }
            let publishing = cluster.publish(&business, body.to_string());
            let _ = tokio::time::timeout(Duration::from_secs(20), publishing).await;
        }
    }
}

impl Run {
    fn edge(&self, name: &str) -> Result<Edge> {
        let settings = Settings { edge: name.to_owned(), ..self.settings.clone() };
        Edge::start(&self.world, &self.oracle, &self.keys, name, self.cluster.nodes(), settings, &self.declared)
    }

    /// Things go wrong, so many times.
    async fn trouble(&mut self, times: u32) -> Result<()> {
        for _ in 0..times {
            sleep(Duration::from_millis(random_range(0..random_range(1..6000)))).await;
            self.fault().await?;
        }
        Ok(())
    }

    async fn fault(&mut self) -> Result<()> {
        let node = random_range(0..self.cluster.nodes());
        let businesses = if self.spares { 1 } else { self.declared.len() };
        let (business, _) = self.declared[random_range(0..businesses)].clone();
        let edge = random_range(0..self.edges.len());
        let kind = if self.spares { [7, 8, 9, 10, 11, 14][random_range(0..6)] } else { random_range(0..18) };
        tracing::info!(kind, node, business, edge, "fault");
        match kind {
            0 | 1 => self.world.strike(&node_name(node), Fault::Cut, || random_bool(0.4)),
            2 => {
                self.world.freeze(&node_name(node), true);
                self.later(random_range(100..20_000), move |run| run.0.freeze(&node_name(node), false));
            }
            3 => self.world.strike(&node_name(node), Fault::Swallow, || random_bool(0.3)),
            4 => {
                self.cluster.set_up(node, false);
                self.later(random_range(100..15_000), move |(_, cluster)| cluster.set_up(node, true));
            }
            5 | 6 => {
                self.cluster.lag(node, true);
                self.later(random_range(100..20_000), move |(_, cluster)| cluster.lag(node, false));
            }
            7 => self.cluster.elect(&business, true),
            8 => {
                self.cluster.elect(&business, false);
                self.later(random_range(100..8000), move |(_, cluster)| cluster.elect(&business, true));
            }
            9 | 10 => self.cluster.truncate(&business),
            11 if !self.oracle.is_transient(&business) => {
                self.cluster.delete(&business);
                let time = if random_bool(0.5) { 0 } else { random_range(1..6000) };
                sleep(Duration::from_millis(time)).await;
                self.cluster.declare(&business);
            }
            12 => self.gone(edge, true).await?,
            13 => self.gone(edge, false).await?,
            14 => {
                let variant = Variant::ALL[random_range(0..3)];
                for (name, declared) in &mut self.declared {
                    if *name == business {
                        *declared = variant;
                    }
                }
                for edge in self.edges.iter().flatten() {
                    edge.declare(&business, variant)?;
                    sleep(Duration::from_millis(random_range(0..500))).await;
                }
            }
            15 | 16 => {
                let mood = Mood {
                    blocked: random_bool(0.2),
                    silent: random_bool(0.3),
                    full: random_bool(0.3),
                    unbound: random_bool(0.2),
                    missing: random_bool(0.2),
                };
                self.cluster.set_mood(mood);
                self.later(random_range(100..10_000), |(_, cluster)| cluster.set_mood(Mood::default()));
            }
            _ => {
                let name = format!("edge{edge}");
                self.world.freeze(&name, true);
                self.later(random_range(100..8000), move |(world, _)| world.freeze(&name, false));
            }
        }
        Ok(())
    }

    /// An edge ends, in order or not, and another one of its name begins.
    async fn gone(&mut self, edge: usize, killed: bool) -> Result<()> {
        let Some(gone) = self.edges[edge].take() else { return Ok(()) };
        let name = gone.name.clone();
        if killed {
            gone.kill(&self.world);
            sleep(Duration::from_millis(random_range(0..6000))).await;
        } else {
            gone.drain(
                Duration::from_millis(random_range(1..10_000)),
                Duration::from_millis(random_range(1000..20_000)),
            );
        }
        self.edges[edge] = Some(self.edge(&name)?);
        Ok(())
    }

    fn later(&self, millis: u64, end: impl FnOnce((World, Cluster)) + Send + 'static) {
        let parts = (self.world.clone(), self.cluster.clone());
        tokio::spawn(async move {
            sleep(Duration::from_millis(millis)).await;
            end(parts);
        });
    }

    /// Whatever is wrong is mended.
    async fn calm(&mut self) -> Result<()> {
        // What was to be mended later is mended by then.
        sleep(Duration::from_secs(20)).await;
        self.cluster.set_mood(Mood::default());
        for (business, _) in &self.declared {
            self.cluster.elect(business, true);
        }
        sleep(Duration::from_secs(5)).await;
        Ok(())
    }
}
