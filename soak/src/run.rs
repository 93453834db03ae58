//! The phases of a run: everybody talks while faults happen; then all faults are over, and what has no answer gets one; then everything may
//! arrive; then all leave, and the edges' accounts must be zero.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use wirepost_testing::usage;

use crate::audit::{Extent, Kind, Violation, audit};
use crate::chance::Chance;
use crate::member::{CREW, Member, VICTIMS};
use crate::plan::PLANS;
use crate::publisher::{By, Publisher};
use crate::record::{Journal, Record};
use crate::world::{Stage, World};
use crate::{consumer, faults, lies, witness};

/// For every sender to get its answer, once nothing is broken any more.
const ANSWERS: Duration = Duration::from_mins(2);
/// For everything to arrive and every account to become zero, on a busy machine.
const SETTLED: Duration = Duration::from_mins(2);
/// Between two audits of a running soak.
const AUDITS: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);
/// A debug build that serves fifty clients has far less.
const MEMORY: u64 = 400 << 20;
/// What is zero when nobody is there. `page_bytes` and `log_bytes` are caches with a time of their own.
const ACCOUNTS: [&str; 10] = [
    "wirepost_edge_connections",
    "wirepost_edge_outbound_bytes",
    "wirepost_edge_backlog_bytes",
    "wirepost_edge_inbound_bytes",
    "wirepost_edge_readers",
    "wirepost_edge_log_bytes",
    "wirepost_edge_page_bytes",
    "wirepost_broker_waiting",
    "wirepost_broker_in_flight",
    "wirepost_broker_held_back",
];
/// Each of these is a bug of ours.
const BUGS: [&str; 2] = ["wirepost_edge_task_restarts_total", "wirepost_edge_task_panics_total"];

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how long faults happen; lies, until each has been told.
    pub time: Duration,
    pub seed: u64,
    /// Edges at the same time.
    pub edges: usize,
    /// The mean of the pause between two messages of one service.
    pub pace: Duration,
    /// Nodes of the broker, 1 or 3. None: a shared broker, and nothing is broken.
    pub nodes: usize,
    /// Whether an operator keeps broker and edges as declared, or the soak itself by files.
    pub operator: bool,
    /// Whether there are proxies that lie; then nothing is awaited that never comes.
    pub lies: bool,
}

/// What a run found.
pub struct Found {
    pub record: Record,
    pub violations: Vec<Violation>,
    /// The edges' logs, while this is kept.
    pub world: Arc<World>,
}

/// Runs all of it. An error: the soak itself could not go on.
pub async fn run(options: Options) -> Result<Found> {
    let world = World::start(options.edges, options.nodes, options.operator).await?;
    let mut others = JoinSet::new();
    let mut publishers = JoinSet::new();
    for (business, plan) in PLANS.into_iter().enumerate() {
        if plan.is_durable() {
            others.spawn(witness::watch(Arc::clone(&world), business));
        }
        for queue in ["orders", "visits"] {
            let chance = Chance::new(options.seed, &format!("{}-{queue}", plan.name));
            others.spawn(consumer::serve(Arc::clone(&world), business, queue, chance));
        }
        for by in [By::Amqp, By::Http] {
            let extra = if options.lies && (business == VICTIMS || PLANS[VICTIMS].accepts(&plan)) {
                lies::Lie::ALL.map(lies::Lie::victim).to_vec()
            } else {
                vec![]
            };
            publishers.spawn(Publisher::new(&world, business, by, options.pace, options.seed).also_to(extra).publish());
        }
        for crew in CREW {
            others.spawn(Member::new(&world, business, crew, options.seed).live());
        }
    }
    let mut liars = lies::Liars::default();
    if options.lies {
        let (victims, who) = lies::victims(&world, options.seed).await?;
        liars = who;
        for victim in victims {
            others.spawn(victim.live());
        }
    }
    let until = Instant::now() + options.time;
    let lanes = if options.nodes > 0 { faults::begin(&world, options.seed, until) } else { Vec::new() };
    let watching = tokio::spawn(watch_edges(Arc::clone(&world)));
    let early = talk(&world, until, options.lies).await;
    let late = Instant::now() + SETTLED;
    while !liars.have_lied() {
        ensure!(Instant::now() < late, "not every proxy has had something to lie about");
        sleep(LOOK).await;
    }
    if !early.is_empty() {
        // No further fault.
        world.stage.send_replace(Stage::Listening);
    }
    for lane in lanes {
        lane.await?.context("a fault can't be healed")?;
    }
    world.stage.send_replace(Stage::Listening);
    if early.is_empty() {
        settle(&world, &options, publishers).await?;
    }
    let mut violations = if early.is_empty() { arrived(&world, &options).await } else { early };
    world.stage.send_replace(Stage::Leaving);
    let left = timeout(SETTLED, async { while others.join_next().await.is_some() {} }).await;
    ensure!(left.is_ok(), "not all clients and services end");
    watching.await?;
    drop(liars);
    if violations.is_empty() || options.lies {
        violations.extend(at_rest(&world).await?);
    }
    Ok(Found { record: world.journal.record(), violations, world })
}

/// While everybody talks: what is certainly broken already ends the run.
async fn talk(world: &World, until: Instant, lies: bool) -> Vec<Violation> {
    loop {
        tokio::time::sleep_until(until.min(Instant::now() + AUDITS)).await;
        if Instant::now() >= until {
            return Vec::new();
        }
        let found = audited(&world.journal, Extent::Running).await;
        if !found.is_empty() && !lies {
            return found;
        }
    }
}

async fn audited(journal: &Journal, extent: Extent) -> Vec<Violation> {
    let record = journal.record();
    // An error: the audit panicked, which the caller must not take for a clean record.
    match tokio::task::spawn_blocking(move || audit(&record, extent)).await {
        Ok(found) => found,
        Err(error) => vec![Violation {
            kind: Kind::Broken,
            at: journal.elapsed(),
            message: None,
            client: None,
            what: format!("the audit itself: {error}"),
        }],
    }
}

/// Until everybody has an answer, and nothing waits in `unrouted`.
async fn settle(world: &World, options: &Options, mut publishers: JoinSet<()>) -> Result<()> {
    let answered = timeout(ANSWERS, async {
        while publishers.join_next().await.is_some() {}
        while world.open() > 0 {
            sleep(LOOK).await;
        }
    });
    if answered.await.is_err() {
        world.journal.broken(format!("{} messages are not confirmed {ANSWERS:?} after the last fault", world.open()));
    }
    if options.nodes > 0 {
        for plan in PLANS {
            world.control.move_back(&world.setup, plan).await?;
        }
    }
    Ok(())
}

/// What is missing for good.
async fn arrived(world: &World, options: &Options) -> Vec<Violation> {
    let end = Instant::now() + if options.lies { LOOK * 6 } else { SETTLED };
    loop {
        sleep(LOOK).await;
        let found = audited(&world.journal, Extent::Complete).await;
        if found.is_empty() || Instant::now() > end {
            return found;
        }
    }
}

/// Programs that end or panic on their own, until all leave.
async fn watch_edges(world: Arc<World>) {
    let mut known = BTreeSet::new();
    while world.stage() < Stage::Leaving {
        sleep(LOOK).await;
        for place in world.fleet.places() {
            let name = &place.edge.name;
            let still = world.fleet.places().iter().any(|now| now.edge.name == *name);
            if !place.edge.running() && still && known.insert(name.clone()) {
                world.journal.broken(format!("{name} has ended on its own"));
            }
        }
    }
}

/// The edges when nobody is there any more.
async fn at_rest(world: &World) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    let mut broken = |what| {
        let at = world.journal.elapsed();
        found.push(Violation { kind: Kind::Broken, at, message: None, client: None, what });
    };
    let end = Instant::now() + SETTLED;
    for place in world.fleet.places() {
        let (edge, name) = (&place.edge, &place.edge.name);
        loop {
            let mut owed = Vec::new();
            for account in ACCOUNTS {
                let value = edge.metric(account).await?;
                if value != 0.0 {
                    owed.push(format!("{account} {value}"));
                }
            }
            if owed.is_empty() {
                break;
            }
            if Instant::now() > end {
                broken(format!("{name}, when nobody is there any more: {}", owed.join(", ")));
                break;
            }
            sleep(LOOK).await;
        }
        let (_, metrics) = edge.admin("/metrics").await?;
        for line in metrics.lines().filter(|line| BUGS.iter().any(|bug| line.starts_with(bug))) {
            if !line.ends_with(" 0") {
                broken(format!("{name}: {line}"));
            }
        }
        let memory = usage::of(edge.pid)?.memory;
        if memory > MEMORY {
            broken(format!("{name} keeps {} MiB when nobody is there any more", memory >> 20));
        }
    }
    Ok(found)
}
