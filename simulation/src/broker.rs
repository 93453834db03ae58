//! A model of a RabbitMQ cluster: what it stores, which node knows how much of it, and what it promises. The protocols are
//! in [`streams`] and [`amqp`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::random_range;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use wirepost_core::names;

use crate::{network::World, oracle::Oracle};
use queues::Queues;
pub(crate) use share::Message;
use share::{Links, Unrouted};
pub(crate) use storage::Flow;
use storage::StreamState;

mod amqp;
mod queues;
mod share;
mod storage;
mod streams;

pub(crate) const STREAM_PORT: u16 = 5552;
pub(crate) const AMQP_PORT: u16 = 5672;
/// A node that has just started does not know the end of its streams for this long.
const STARTING: Duration = Duration::from_millis(1500);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    /// Changes with what is stored, and with who knows of it.
    changed: watch::Sender<u64>,
    world: World,
    oracle: Oracle,
    /// The streams' broker tells its newest offset (RabbitMQ 4.3).
    new: bool,
}

struct State {
    nodes: Vec<Node>,
    streams: BTreeMap<String, StreamState>,
    queues: Queues,
    links: Links,
    unrouted: Unrouted,
    /// Businesses without a stream.
    transient: BTreeSet<String>,
    /// What happens to publishes at the moment.
    mood: Mood,
}

struct Node {
    up: bool,
    ready_at: Instant,
    /// Its replicas stand still.
    lags: bool,
}

/// How the cluster takes publishes.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a trouble of its own, and they come together")]
pub(crate) struct Mood {
    /// `connection.blocked`.
    pub(crate) blocked: bool,
    /// Confirms do not come; what is published is stored all the same, or not.
    pub(crate) silent: bool,
    /// Queues are full.
    pub(crate) full: bool,
    /// The bindings are gone.
    pub(crate) unbound: bool,
    /// Exchanges are gone.
    pub(crate) missing: bool,
    /// Of this business only.
    pub(crate) only: Option<String>,
}

impl Mood {
    /// What it is for a business.
    fn of(&self, business: &str) -> Self {
        if self.only.as_ref().is_none_or(|only| only == business) { self.clone() } else { Self::default() }
    }
}

pub(crate) fn node_name(node: usize) -> String {
    format!("node{node}")
}

impl Cluster {
    /// A cluster of this many nodes that listens.
    pub(crate) fn start(world: &World, oracle: &Oracle, nodes: usize, new: bool) -> Self {
        let node = |_| Node { up: true, ready_at: Instant::now(), lags: false };
        let state = State {
            nodes: (0..nodes).map(node).collect(),
            streams: BTreeMap::new(),
            queues: Queues::default(),
            links: Links::default(),
            unrouted: Unrouted::default(),
            transient: BTreeSet::new(),
            mood: Mood::default(),
        };
        let cluster = Self {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
            world: world.clone(),
            oracle: oracle.clone(),
            new,
        };
        for node in 0..nodes {
            let (mut streams, mut amqp) =
                (world.listen(&node_name(node), STREAM_PORT), world.listen(&node_name(node), AMQP_PORT));
            let of = cluster.clone();
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        biased;
                        Some(socket) = streams.recv() => drop(tokio::spawn(streams::serve(of.clone(), node, socket))),
                        Some(socket) = amqp.recv() => drop(tokio::spawn(amqp::serve(of.clone(), node, socket))),
                        else => return,
                    }
                }
            });
        }
        cluster
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn nodes(&self) -> usize {
        self.lock().nodes.len()
    }

    pub(crate) fn mood(&self) -> Mood {
        self.lock().mood.clone()
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.lock().mood = mood;
        self.move_back();
        self.change();
    }

    fn is_up(&self, node: usize) -> bool {
        self.lock().nodes[node].up
    }

    /// A business has no stream: its pushes go to the queues of edges.
    pub(crate) fn make_transient(&self, business: &str) {
        self.lock().transient.insert(business.to_owned());
        self.oracle.transient(business);
    }

    /// The queues of a `Transient` business are on a node that is down, or back.
    pub(crate) fn lose_queues(&self, business: &str, lost: bool) {
        self.queues(|queues, _| queues.lose(business, lost));
    }

    /// Calls about queues.
    fn queues<T>(&self, act: impl FnOnce(&mut Queues, &[bool]) -> T) -> T {
        let mut state = self.lock();
        let up: Vec<bool> = state.nodes.iter().map(|node| node.up).collect();
        let done = act(&mut state.queues, &up);
        drop(state);
        self.change();
        done
    }

    /// Puts a push into the queues of a `Transient` business: whether there are any. `None`: one can't take it.
    fn push(&self, business: &str, message: &Message) -> Option<bool> {
        let count = self.queues(|queues, up| queues.push(business, message, up))?;
        if count > 0 {
            self.oracle.pushed(business, message);
        }
        Some(count > 0)
    }

    fn is_transient(&self, business: &str) -> bool {
        self.lock().transient.contains(business)
    }

    /// A node's replicas stand still, or go on.
    pub(crate) fn lag(&self, node: usize, lags: bool) {
        let mut state = self.lock();
        state.nodes[node].lags = lags;
        if !lags {
            for stream in state.streams.values_mut() {
                let next = stream.next;
                if let Some(known) = &mut stream.known[node] {
                    *known = next;
                }
            }
        }
        drop(state);
        self.change();
    }

    /// A node goes down with all its connections, or comes back.
    pub(crate) fn set_up(&self, node: usize, up: bool) {
        let mut state = self.lock();
        state.nodes[node].up = up;
        state.nodes[node].ready_at = Instant::now() + STARTING;
        let led: Vec<String> = state
            .streams
            .iter_mut()
            .filter(|(_, stream)| if up { stream.leader.is_none() } else { stream.leader == Some(node) })
            .map(|(name, stream)| {
                if !up {
                    stream.leader = None;
                    // What was not committed is lost.
                    for pending in stream.pending.drain(..) {
                        self.oracle.lost(names::owner(name).unwrap_or_default(), &pending.message.body);
                    }
                }
                name.clone()
            })
            .collect();
        if up {
            state.queues.node_up(node);
        } else {
            state.queues.node_down(node);
        }
        drop(state);
        self.world.isolate(&node_name(node), !up);
        self.change();
        let cluster = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(random_range(50..1500))).await;
            for stream in led {
                if let Some(business) = names::owner(&stream) {
                    cluster.elect(business, true);
                }
            }
            // Its end is known a while after its start, and it has caught up.
            sleep(STARTING).await;
            let lags = cluster.lock().nodes[node].lags;
            cluster.lag(node, lags);
        });
    }

    /// Publishes as a service would, by AMQP: whether it is stored. `to`: the businesses that its headers name, where it is
    /// for several.
    pub(crate) async fn publish(&self, business: &str, body: String, to: Option<Vec<String>>) -> bool {
        if let Some(to) = to {
            sleep(Duration::from_millis(random_range(0..15))).await;
            let Some(copies) = self.share(business, to, &body.into()) else { return false };
            let mut stored = copies.taken && copies.routed;
            for committed in copies.committed {
                stored &= committed.await.unwrap_or(false);
            }
            return stored;
        }
        let message = Message::own(body);
        if self.is_transient(business) {
            sleep(Duration::from_millis(random_range(0..15))).await;
            return self.push(business, &message) == Some(true);
        }
        match self.append(&names::stream(business), &message) {
            Some(committed) => committed.await.unwrap_or(false),
            None => false,
        }
    }
}
