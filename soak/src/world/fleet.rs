//! The edges, each behind a proxy for its clients and proxies to the broker. An edge that is replaced has a new name, as a pod has.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use wirepost_testing::broker::TestBroker;
use wirepost_testing::edge::Edge;
use wirepost_testing::proxy::Proxy;
use wirepost_testing::setup::Setup;

use super::Control;
use crate::chance::Chance;

/// Where a client connects.
#[derive(Clone, Debug)]
pub struct Place {
    pub edge: Arc<Edge>,
    /// The proxy in front of it.
    pub front: Arc<Proxy>,
}

impl Place {
    /// Where to connect in the edge's place.
    pub fn address(&self) -> SocketAddr {
        self.front.address
    }
}

/// The way of an edge to one port of all nodes of the broker.
#[derive(Debug)]
pub struct Line {
    /// One for each node.
    pub proxies: Vec<Proxy>,
    /// Separated by commas, as the edge takes them.
    uris: String,
}

impl Line {
    async fn to(uris: &[String]) -> Result<Arc<Self>> {
        let (mut proxies, mut through) = (Vec::new(), Vec::new());
        for uri in uris {
            let (proxy, uri) = Proxy::of_uri(uri).await?;
            proxies.push(proxy);
            through.push(uri);
        }
        Ok(Arc::new(Self { proxies, uris: through.join(",") }))
    }
}

/// One place for an edge, and its lines to the broker.
#[derive(Debug)]
struct Slot {
    amqp: Arc<Line>,
    stream: Arc<Line>,
    /// Edges that were here.
    generation: u32,
    place: Option<Place>,
}

/// See the module.
#[derive(Debug)]
pub struct Fleet {
    setup: Setup,
    slots: Mutex<Vec<Slot>>,
}

impl Fleet {
    pub(super) async fn start(setup: &Setup, control: &Control, nodes: &[TestBroker], edges: usize) -> Result<Self> {
        let vhost = &setup.vhost().name;
        // As in production: nobody but the operator is an administrator.
        let edges_user = setup.edge_amqp().await?;
        let user = edges_user.split(['/', '@']).nth(2).context("an address without a user")?;
        let host = |node: &TestBroker| node.amqp.rsplit('@').next().unwrap_or_default().to_owned();
        let amqp: Vec<String> = nodes.iter().map(|node| format!("amqp://{user}@{}/{vhost}", host(node))).collect();
        let streams: Vec<String> = nodes.iter().map(|node| node.stream.clone()).collect();
        let mut slots = Vec::new();
        for _ in 0..edges {
            let (amqp, stream) = (Line::to(&amqp).await?, Line::to(&streams).await?);
            slots.push(Slot { amqp, stream, generation: 0, place: None });
        }
        let fleet = Self { setup: setup.clone(), slots: Mutex::new(slots) };
        for slot in 0..edges {
            fleet.fill(control, slot).await?;
        }
        Ok(fleet)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many places there are.
    pub fn size(&self) -> usize {
        self.lock().len()
    }

    /// Starts an edge in a slot. The one that was there, which still runs, is returned.
    pub async fn fill(&self, control: &Control, slot: usize) -> Result<Option<Place>> {
        let (name, amqp, stream) = {
            let mut slots = self.lock();
            let slot_now = &mut slots[slot];
            slot_now.generation += 1;
            let name = format!("soak-{slot}-{}", slot_now.generation);
            (name, slot_now.amqp.uris.clone(), slot_now.stream.uris.clone())
        };
        let edge = control
            .configures(self.setup.edge(&name))?
            .quiet()
            .log_filter("info,wirepost_edge=info,wirepost_stream=debug,wirepost_broker=debug")
            .flag("amqp", amqp)
            .flag("stream", stream)
            // Small and short, so that every path is used within minutes.
            .flag("log-bytes", 64 << 10)
            .flag("outbound-bytes", 64 << 10)
            .flag("linger-seconds", 3)
            .flag("position-seconds", 2)
            .flag("drain-window-seconds", 2)
            .start()
            .await?;
        control.came(&name, edge.admin).await?;
        let front = Proxy::start(edge.public).await?;
        let place = Place { edge: Arc::new(edge), front: Arc::new(front) };
        Ok(self.lock()[slot].place.replace(place))
    }

    /// Takes the edge out of a slot; nobody connects to it any more.
    pub fn take(&self, slot: usize) -> Option<Place> {
        self.lock()[slot].place.take()
    }

    /// The edge in a slot.
    pub fn place(&self, slot: usize) -> Option<Place> {
        self.lock()[slot].place.clone()
    }

    /// All edges that take clients.
    pub fn places(&self) -> Vec<Place> {
        self.lock().iter().filter_map(|slot| slot.place.clone()).collect()
    }

    /// One of them.
    pub fn pick(&self, chance: &mut Chance) -> Result<Place> {
        chance.pick(&self.places()).cloned().context("no edge takes clients")
    }

    /// The lines of a slot to the broker: AMQP, and streams.
    pub fn lines(&self, slot: usize) -> (Arc<Line>, Arc<Line>) {
        let slots = self.lock();
        (Arc::clone(&slots[slot].amqp), Arc::clone(&slots[slot].stream))
    }
}
