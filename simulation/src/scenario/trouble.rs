//! What goes wrong.

use std::time::Duration;

use anyhow::Result;
use rand::{random_bool, random_range};
use tokio::time::sleep;

use super::Run;
use crate::{
    broker::{Cluster, Flow, Mood, node_name},
    declaration::{Accepts, Variant, other_than},
    network::{Fault, World},
};

/// A kind of trouble.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Connections of a node break.
    Cut,
    FreezeNode,
    /// What is written to a node, or by it, vanishes.
    Swallow,
    NodeDown,
    /// A node's replicas stand still.
    Lag,
    /// A stream has another leader.
    Elect,
    /// A stream has none for a while.
    NoLeader,
    /// Retention deletes.
    Truncate,
    /// Readers of a stream are sent nothing for a while, or little. Retention may pass them meanwhile.
    Stall,
    /// A stream is deleted and declared again.
    Recreate,
    /// The node of a business's queues is down.
    LoseQueues,
    /// Publishes are not taken as usual.
    Mood,
    /// The declaration changes.
    Declare,
    /// A business accepts other messages of the other one, or none.
    Accept,
    KillEdge,
    DrainEdge,
    FreezeEdge,
}

use Trouble::{
    Accept, Cut, Declare, DrainEdge, Elect, FreezeEdge, FreezeNode, KillEdge, Lag, LoseQueues, NoLeader, NodeDown,
    Recreate, Stall, Swallow, Truncate,
};

/// What can happen; what stands twice happens more often.
const ANY: &[Trouble] = &[
    Cut,
    Cut,
    FreezeNode,
    Swallow,
    NodeDown,
    Lag,
    Lag,
    Elect,
    NoLeader,
    Truncate,
    Truncate,
    Stall,
    Stall,
    Recreate,
    LoseQueues,
    Trouble::Mood,
    Trouble::Mood,
    Declare,
    Accept,
    Accept,
    KillEdge,
    DrainEdge,
    FreezeEdge,
];
/// What can happen to one business alone.
const OF_ONE: &[Trouble] =
    &[Elect, NoLeader, Truncate, Truncate, Stall, Stall, Recreate, LoseQueues, Trouble::Mood, Trouble::Mood, Declare];

impl Run {
    /// Things go wrong, so many times.
    pub(super) async fn trouble(&mut self, times: u32) -> Result<()> {
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
        let kinds = if self.spares { OF_ONE } else { ANY };
        let kind = kinds[random_range(0..kinds.len())];
        tracing::info!(?kind, node, business, edge, "fault");
        match kind {
            Cut => self.world.strike(&node_name(node), Fault::Cut, || random_bool(0.4)),
            FreezeNode => {
                self.world.freeze(&node_name(node), true);
                self.later(random_range(100..20_000), move |(world, _)| world.freeze(&node_name(node), false));
            }
            Swallow => self.world.strike(&node_name(node), Fault::Swallow, || random_bool(0.3)),
            NodeDown => {
                self.cluster.set_up(node, false);
                self.later(random_range(100..15_000), move |(_, cluster)| cluster.set_up(node, true));
            }
            Lag => {
                self.cluster.lag(node, true);
                self.later(random_range(100..20_000), move |(_, cluster)| cluster.lag(node, false));
            }
            Elect => self.cluster.elect(&business, true),
            NoLeader => {
                self.cluster.elect(&business, false);
                self.later(random_range(100..8000), move |(_, cluster)| cluster.elect(&business, true));
            }
            Truncate => self.cluster.truncate(&business),
            Stall => {
                self.cluster.set_flow(&business, if random_bool(0.5) { Flow::Nothing } else { Flow::Trickle });
                let (passes, time) = (random_bool(0.6), random_range(100..12_000));
                if passes {
                    let business = business.clone();
                    self.later(random_range(0..time), move |(_, cluster)| cluster.truncate_all(&business));
                }
                self.later(time, move |(_, cluster)| {
                    if passes {
                        cluster.truncate_all(&business);
                    }
                    cluster.set_flow(&business, Flow::Free);
                });
            }
            Recreate if self.oracle.is_transient(&business) => {}
            Recreate => {
                self.cluster.delete(&business);
                let time = if random_bool(0.5) { 0 } else { random_range(1..6000) };
                sleep(Duration::from_millis(time)).await;
                self.cluster.declare(&business);
            }
            LoseQueues => {
                self.cluster.lose_queues(&business, true);
                self.later(random_range(100..15_000), move |(_, cluster)| cluster.lose_queues(&business, false));
            }
            Trouble::Mood => {
                let only = self.spares.then_some(business);
                let mood = Mood {
                    blocked: only.is_none() && random_bool(0.2),
                    silent: random_bool(0.3),
                    full: random_bool(0.3),
                    unbound: random_bool(0.2),
                    missing: random_bool(0.2),
                    only,
                };
                self.cluster.set_mood(mood);
                self.later(random_range(100..10_000), |(_, cluster)| cluster.set_mood(Mood::default()));
            }
            Declare => self.redeclare(&business).await?,
            Accept if self.declared.len() < 2 => {}
            Accept => self.accept(&business).await?,
            KillEdge => self.gone(edge, true).await?,
            DrainEdge => self.gone(edge, false).await?,
            FreezeEdge => {
                let name = format!("edge{edge}");
                self.world.freeze(&name, true);
                self.later(random_range(100..8000), move |(world, _)| world.freeze(&name, false));
            }
        }
        Ok(())
    }

    async fn redeclare(&mut self, business: &str) -> Result<()> {
        let variant = Variant::ALL[random_range(0..3)];
        for (name, declared) in &mut self.declared {
            if name == business {
                declared.variant = variant;
            }
        }
        self.tell_edges(&[business]).await
    }

    /// As the operator does it: the broker copies before an edge is told. When nothing is accepted any more the binding goes
    /// at any time, also before the edges know: until then they may take a message that the broker does not copy.
    async fn accept(&mut self, business: &str) -> Result<()> {
        let (from, accepts) = (other_than(business), Accepts::ALL[random_range(0..3)]);
        let unlink = self.cluster.link(from, business);
        for (name, declared) in &mut self.declared {
            if name == business {
                declared.accepts = accepts;
            } else {
                declared.accepted = accepts != Accepts::Nothing;
            }
        }
        if accepts == Accepts::Nothing {
            self.later(random_range(0..random_range(1..10_000)), move |(_, cluster)| unlink(&cluster));
        }
        let told = if random_bool(0.5) { [business, from] } else { [from, business] };
        self.tell_edges(&told).await
    }

    /// What is declared of these businesses, one edge after the other.
    async fn tell_edges(&self, businesses: &[&str]) -> Result<()> {
        for edge in self.edges.iter().flatten() {
            for business in businesses {
                let Some((_, declared)) = self.declared.iter().find(|(name, _)| name == business) else { continue };
                edge.declare(business, *declared)?;
                sleep(Duration::from_millis(random_range(0..500))).await;
            }
        }
        Ok(())
    }

    /// An edge ends, in order or not, and another one of its name begins.
    async fn gone(&mut self, edge: usize, killed: bool) -> Result<()> {
        let Some(gone) = self.edges[edge].take() else { return Ok(()) };
        let (name, mut pod) = (gone.name.clone(), gone.pod.clone());
        if killed {
            gone.kill(&self.world);
            sleep(Duration::from_millis(random_range(0..6000))).await;
        } else {
            // Both run for a while: two edges must not have the same queues.
            pod.push('+');
            gone.drain(
                Duration::from_millis(random_range(1..10_000)),
                Duration::from_millis(random_range(1000..20_000)),
            );
        }
        self.edges[edge] = Some(self.edge(&name, &pod)?);
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
    pub(super) async fn calm(&mut self) -> Result<()> {
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
