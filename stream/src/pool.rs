//! The connections of a client.
//!
//! Connections are opened on demand, one attempt at a time, and shared: a failed attempt fails for all its waiters, so
//! the 250 subscriptions of a lost connection cause one attempt, not 250.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout},
};
use tracing::{info, warn};
use wirepost_runtime::{backoff::Backoff, tasks::Tasks};

use crate::{
    config::Config,
    connection::{Connection, Reservation},
    error::Error,
    flow::lock,
    handshake::Address,
    metrics::Counters,
};

/// Longest time to open a connection to a node that is asked something and not needed.
const REACH_TIMEOUT: Duration = Duration::from_secs(1);
/// More nodes than have a stream.
const NODES: usize = 1 << 10;
/// How long a node that was not reached is left alone then.
const OUT_OF_REACH: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(crate) struct Pool {
    config: Arc<Config>,
    counters: Arc<Counters>,
    tasks: Tasks,
    open: Mutex<Connections>,
    dialing: AsyncMutex<Dialing>,
    /// Held while a node is reached for its own sake: hundreds of subscriptions cause one attempt.
    reaching: AsyncMutex<()>,
    /// Nodes that were not reached, and when. The broker names no more than it has.
    unreached: Mutex<HashMap<Address, Instant>>,
}

#[derive(Debug, Default)]
struct Connections {
    closed: bool,
    list: Vec<Arc<Connection>>,
}

#[derive(Debug)]
struct Dialing {
    backoff: Backoff,
    /// No attempt before this.
    not_before: Instant,
    failed: Option<(Instant, Error)>,
    /// The index of the next configured host.
    host: usize,
    /// Which node that has a stream is next; at odd numbers a configured host is.
    node: usize,
}

impl Pool {
    pub(crate) fn new(config: Arc<Config>, counters: Arc<Counters>, tasks: Tasks) -> Self {
        let dialing = Dialing {
            backoff: Backoff::new(config.backoff.0, config.backoff.1),
            not_before: Instant::now(),
            failed: None,
            // Clients begin at different nodes.
            host: rand::random_range(0..config.hosts.len().max(1)),
            node: 2 * rand::random_range(0..NODES),
        };
        Self {
            config,
            counters,
            tasks,
            open: Mutex::default(),
            dialing: AsyncMutex::new(dialing),
            reaching: AsyncMutex::default(),
            unreached: Mutex::default(),
        }
    }

    /// Reserves room for one subscription, on a new connection if necessary.
    ///
    /// `nodes`: the nodes that have the stream, by the address they tell; empty: any. Waits for the pause between
    /// attempts and for one attempt, so not longer than the longest backoff and `connect_timeout` together.
    pub(crate) async fn reserve(&self, nodes: &[Address]) -> Result<Reservation, Error> {
        if let Some(reservation) = self.reserve_open(nodes)? {
            return Ok(reservation);
        }
        let asked = Instant::now();
        let mut dialing = self.dialing.lock().await;
        if let Some(reservation) = self.reserve_open(nodes)? {
            return Ok(reservation);
        }
        if let Some((at, error)) = &dialing.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        tokio::time::sleep_until(dialing.not_before).await;
        let address = self.next_address(&mut dialing, nodes)?;
        match Connection::open(&self.config, &address, &self.counters, &self.tasks).await {
            Ok(connection) => {
                if dialing.failed.take().is_some() {
                    info!(%address, "stream broker reached again");
                }
                dialing.backoff.reset();
                self.add(connection)
            }
            Err(error) => {
                let pause = dialing.backoff.next_pause();
                if dialing.failed.is_none() {
                    warn!(%address, %error, "cannot reach the stream broker, retrying");
                }
                dialing.not_before = Instant::now() + pause;
                dialing.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Reserves room on exactly this node, by the address that it tells; `None` if it is not reached within
    /// [`REACH_TIMEOUT`]. Not tried again then for [`OUT_OF_REACH`]: nodes may be reachable through a load balancer only.
    pub(crate) async fn reach(&self, node: &Address) -> Option<Reservation> {
        let is_out_of_reach = || lock(&self.unreached).get(node).is_some_and(|since| since.elapsed() < OUT_OF_REACH);
        if let Ok(Some(reservation)) = self.reserve_open(std::slice::from_ref(node)) {
            return Some(reservation);
        }
        // Not `dialing`, which may wait for a pause. Whoever had it before may have opened one, or found out.
        let _one = self.reaching.lock().await;
        if let Ok(Some(reservation)) = self.reserve_open(std::slice::from_ref(node)) {
            return Some(reservation);
        }
        if is_out_of_reach() {
            return None;
        }
        let opening = Connection::open(&self.config, node, &self.counters, &self.tasks);
        let reservation = match timeout(REACH_TIMEOUT, opening).await {
            Ok(Ok(connection)) if connection.advertised() == Some(node) => self.add(connection).ok(),
            Ok(_) | Err(_) => None,
        };
        if reservation.is_none() {
            let mut unreached = lock(&self.unreached);
            unreached.retain(|_, since| since.elapsed() < OUT_OF_REACH);
            unreached.insert(node.clone(), Instant::now());
        }
        reservation
    }

    fn reserve_open(&self, nodes: &[Address]) -> Result<Option<Reservation>, Error> {
        let mut open = lock(&self.open);
        if open.closed {
            return Err(Error::Closed);
        }
        open.list.retain(|connection| connection.is_open());
        let fits = |connection: &&Arc<Connection>| {
            nodes.is_empty() || connection.advertised().is_some_and(|address| nodes.contains(address))
        };
        Ok(open.list.iter().filter(fits).find_map(Connection::reserve))
    }

    fn add(&self, connection: Connection) -> Result<Reservation, Error> {
        let connection = Arc::new(connection);
        let mut open = lock(&self.open);
        if open.closed {
            return Err(Error::Closed);
        }
        let lost = || Error::ConnectionLost("ended at once".to_owned());
        let reservation = Connection::reserve(&connection).ok_or_else(lost)?;
        open.list.push(connection);
        Ok(reservation)
    }

    /// Alternates between the configured hosts and the nodes with a replica: a node's own address may be unreachable
    /// from here, while a load balancer leads to the node sooner or later.
    fn next_address(&self, dialing: &mut Dialing, nodes: &[Address]) -> Result<Address, Error> {
        if !nodes.is_empty() {
            let turn = dialing.node;
            dialing.node = turn.wrapping_add(1);
            if turn.is_multiple_of(2) {
                return Ok(nodes[(turn / 2) % nodes.len()].clone());
            }
        }
        let hosts = &self.config.hosts;
        let no_host =
            || Error::Connect { address: "the broker".to_owned(), reason: "no host is configured".to_owned() };
        let index = dialing.host.checked_rem(hosts.len()).ok_or_else(no_host)?;
        dialing.host = dialing.host.wrapping_add(1);
        let (host, port) = &hosts[index];
        Ok(Address { host: host.clone(), port: *port })
    }

    /// Ends all connections and opens no new ones.
    pub(crate) fn close(&self) {
        let mut open = lock(&self.open);
        open.closed = true;
        let list = std::mem::take(&mut open.list);
        drop(open);
        for connection in list {
            connection.close();
        }
    }
}
