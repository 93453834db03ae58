//! Edges that know each other: their admin ports have addresses that are known before they run.

use crate::edge::EdgeBuilder;
use crate::setup::Setup;

/// The same for all: each edge has a loopback address of its own.
const PORT: u16 = 9190;

/// Places for some edges. Not all of them need to run.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Admin addresses.
    addresses: Vec<String>,
}

impl Fleet {
    /// Places for so many.
    pub fn new(edges: usize) -> Self {
        let (one, two) = (rand::random_range(2..250), rand::random_range(0..250));
        Self { addresses: (1..=edges).map(|edge| format!("127.{one}.{two}.{edge}:{PORT}")).collect() }
    }

    /// The edge of a place, `e1` is the first. It asks all others.
    pub fn edge(&self, setup: &Setup, place: usize) -> EdgeBuilder {
        self.edge_that_knows(setup, place, &self.addresses.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same; it is told of these others only.
    pub fn edge_that_knows(&self, setup: &Setup, place: usize, others: &[&str]) -> EdgeBuilder {
        let edge = setup.edge(&format!("e{}", place + 1));
        edge.flag("admin-listen", self.address(place)).flag("peers", others.join(","))
    }

    /// Where a place is asked.
    pub fn address(&self, place: usize) -> &str {
        &self.addresses[place]
    }
}
