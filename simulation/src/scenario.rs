//! One run: a cluster, edges, clients and services, trouble for a while, calm, and the end.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Result;
use rand::{random_bool, random_range};
use tokio::{sync::watch, time::sleep};
use wirepost_edge::{config::settings::Settings, identity::keys::KeyRing};

use crate::{
    broker::Cluster,
    client::{Client, Clients, Phase},
    declaration::{Accepts, BUSINESSES, Declared, other_than},
    edge::Edge,
    network::World,
    oracle::{Oracle, View},
    service::Service,
};

mod trouble;

/// After it, everything that can come has come: clients know the end of their stream.
const CALM: Duration = Duration::from_secs(75);

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
    declared: Vec<(String, Declared)>,
    /// Trouble is for the first business only.
    spares: bool,
}

/// Runs what chance, which follows from the seed, makes of it.
pub(crate) async fn run() -> Result<Report> {
    let (world, oracle) = (World::default(), Oracle::default());
    let nodes = random_range(1..=3);
    let cluster = Cluster::start(&world, &oracle, nodes, random_bool(0.8));
    let businesses = random_range(1..=BUSINESSES.len());
    let mut declared: Vec<_> =
        BUSINESSES[..businesses].iter().map(|name| ((*name).to_owned(), Declared::new())).collect();
    for (number, (business, _)) in declared.iter().enumerate() {
        if random_bool(if number == 1 { 0.4 } else { 0.1 }) {
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
    let sharing = let_accept(&cluster, &mut declared, spared.is_some());
    let mut run = Run {
        world: world.clone(),
        oracle: oracle.clone(),
        cluster: cluster.clone(),
        keys: Arc::new(KeyRing::random()),
        settings: settings(spared.is_some()),
        edges: Vec::new(),
        declared,
        spares: spared.is_some(),
    };
    let edges: Vec<String> = (0..random_range(1..=2)).map(|number| format!("edge{number}")).collect();
    for name in &edges {
        let edge = run.edge(name, name)?;
        run.edges.push(Some(edge));
    }
    let (phase_sender, phase) = watch::channel(Phase::Trouble);
    let mut tasks = tokio::task::JoinSet::new();
    let clients = Arc::new(Clients {
        world,
        oracle: oracle.clone(),
        cluster,
        keys: Arc::clone(&run.keys),
        edges,
        phase,
        numbers: AtomicU64::new(1),
        tags: ["red", "blue"].map(str::to_owned).to_vec(),
        sharing,
        others: ["alice", "bob", "carol"].map(str::to_owned).to_vec(),
    });
    for (business, _) in &run.declared {
        for (number, (id, kind)) in
            [("alice", "app"), ("bob", "web"), ("alice", "web"), ("carol", "app")].into_iter().enumerate()
        {
            let view = View::new(&format!("{business}/{id}{number}"), business, id, kind);
            tasks.spawn(Client::new(Arc::clone(&clients), view).live());
        }
        for number in 0..2 {
            let business = business.clone();
            tasks.spawn(Service { shared: Arc::clone(&clients), business, number }.live());
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
    oracle.check_kept();
    let (trace, summary) = oracle.summary();
    Ok(Report { violations: oracle.violations(), trace, summary })
}

/// Lets businesses accept messages from each other, at times; those whose clients and services send to both. What one
/// sends to both may wait for the other: the one that is spared doesn't.
fn let_accept(cluster: &Cluster, declared: &mut [(String, Declared)], spares: bool) -> Vec<String> {
    let [(first, of_first), (second, of_second)] = declared else { return Vec::new() };
    if !random_bool(0.6) {
        return Vec::new();
    }
    let accepts = || Accepts::ALL[random_range(0..3)];
    (of_first.accepts, of_second.accepts) =
        if spares { (Accepts::Nothing, Accepts::All) } else { (accepts(), accepts()) };
    (of_first.accepted, of_second.accepted) =
        (of_second.accepts != Accepts::Nothing, of_first.accepts != Accepts::Nothing);
    for (business, declared) in [(&*first, of_first), (&*second, of_second)] {
        if declared.accepted {
            drop(cluster.link(business, other_than(business)));
        }
    }
    if spares { vec![first.clone()] } else { vec![first.clone(), second.clone()] }
}

/// Small bounds, so that they are met. `spares`: what businesses share is scarce, so that one would notice another's
/// trouble.
fn settings(spares: bool) -> Settings {
    Settings {
        outbound_bytes: random_range(4_000..random_range(5_000..200_000)),
        outbound_messages: random_range(8..random_range(9..200)),
        backlog_bytes: random_range(50_000..2_000_000),
        log_bytes: if spares || random_bool(0.5) { random_range(0..20_000) } else { 1 << 20 },
        linger: Duration::from_secs(random_range(1..10)),
        catch_up_bytes: random_range(500..20_000),
        catch_up_readers: if spares { 1 } else { random_range(1..3) },
        position_interval: Duration::from_secs(5),
        write_timeout: Duration::from_secs(random_range(3..30)),
        heartbeat: Duration::from_secs(random_range(5..25)),
        ..Settings::default()
    }
}

impl Run {
    fn edge(&self, name: &str, pod: &str) -> Result<Edge> {
        let settings = Settings { edge: pod.to_owned(), ..self.settings.clone() };
        Edge::start(&self.world, &self.oracle, &self.keys, name, self.cluster.nodes(), settings, &self.declared)
    }
}
