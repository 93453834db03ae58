//! One edge without ports: its whole state, a broker connection over the simulated network, and sockets that open as in the
//! product.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use axum::Router;
use bytes::BytesMut;
use rand::random_range;
use tokio::{io::AsyncReadExt, runtime::Handle, time::Instant};
use tokio_util::sync::CancellationToken;
use wirepost_broker::rabbit::{Config, RabbitBroker};
use wirepost_edge::{
    broker::Broker,
    catalog::Change,
    config::settings::Settings,
    http::{
        router,
        socket::direct::{Direct, Head},
        state::State,
    },
    identity::keys::KeyRing,
    metrics::Metrics,
    net::listener::Doors,
    socket::write_progress::WriteProgress,
};
use wirepost_runtime::{readiness::Readiness, tasks::Supervisor};

use crate::{
    broker::{AMQP_PORT, STREAM_PORT, node_name},
    declaration::Declared,
    network::{End, Fault, World},
    oracle::Oracle,
};

mod calls;

pub(crate) const PORT: u16 = 8080;

/// See the module.
pub(crate) struct Edge {
    pub(crate) name: String,
    /// The name of its pod, which its queues have.
    pub(crate) pod: String,
    /// The name under which it connects, of this edge and no later one.
    life: String,
    state: Arc<State>,
    supervisor: Supervisor,
    accepting: CancellationToken,
    oracle: Oracle,
}

/// The numbers of an edge at rest must be 0.
const ACCOUNTS: &[&str] = &[
    "wirepost_edge_connections",
    "wirepost_edge_outbound_bytes",
    "wirepost_edge_backlog_bytes",
    "wirepost_edge_inbound_bytes",
    "wirepost_edge_log_bytes",
    "wirepost_edge_page_bytes",
    "wirepost_edge_readers",
    "wirepost_broker_waiting",
    "wirepost_broker_waiting_bytes",
    "wirepost_broker_in_flight",
    "wirepost_broker_held_back",
    "wirepost_broker_stream_held_bytes",
    "wirepost_broker_stream_subscriptions",
];

impl Edge {
    /// An edge that serves these businesses.
    pub(crate) fn start(
        world: &World,
        oracle: &Oracle,
        keys: &Arc<KeyRing>,
        name: &str,
        nodes: usize,
        settings: Settings,
        declared: &[(String, Declared)],
    ) -> Result<Self> {
        let supervisor = Supervisor::default();
        let uri = |node| format!("amqp://guest:guest@{}:{AMQP_PORT}/%2f", node_name(node));
        let (pod, mut config) = (settings.edge.clone(), Config::new(&*settings.edge, uri(0)));
        config.amqp = (0..nodes).map(uri).collect();
        config.stream = Some((0..nodes).map(|node| (node_name(node), STREAM_PORT)).collect());
        let life = format!("{name}#{}", rand::random::<u32>());
        config.network = Arc::new(world.host(&life));
        // Few lanes, so that businesses share them.
        config.connections = random_range(1..=2);
        let broker: Arc<dyn Broker> = Arc::new(RabbitBroker::start_on(Handle::current(), config, &supervisor)?);
        let metrics = Arc::new(Metrics::with_broker(&*broker));
        let addresses = Doors::new(&settings, &metrics).addresses;
        let keys = Arc::clone(keys);
        let state = State::new(settings, keys, broker, metrics, Readiness::default(), addresses, &supervisor);
        let edge = Self {
            name: name.to_owned(),
            pod,
            life,
            state: Arc::new(state),
            supervisor,
            accepting: CancellationToken::new(),
            oracle: oracle.clone(),
        };
        edge.oracle.edge_begins(name, &edge.life);
        edge.state.catalog.set_current(true);
        for (business, declared) in declared {
            edge.declare(business, *declared)?;
        }
        let (mut sockets, accepting) = (world.listen(name, PORT), edge.accepting.clone());
        let state = Arc::clone(&edge.state);
        let router = router(Arc::clone(&state));
        tokio::spawn(async move {
            while let Some(Some(socket)) = accepting.run_until_cancelled(sockets.recv()).await {
                let (state, router) = (Arc::clone(&state), router.clone());
                tokio::spawn(async move {
                    if let Err(error) = open(state, router, socket).await {
                        tracing::info!(%error, "no socket");
                    }
                });
            }
        });
        Ok(edge)
    }

    /// Changes the declaration of a business.
    pub(crate) fn declare(&self, business: &str, declared: Declared) -> Result<()> {
        let config = Box::new(declared.config(business, self.oracle.is_transient(business))?);
        // Before it: what is judged from now on may be judged by either.
        self.oracle.declared(business, &self.life, declared);
        match self.state.catalog.apply([Change::Set(config)]).pop() {
            None => Ok(()),
            Some(error) => bail!("{error}"),
        }
    }

    /// Shuts down in order; whether all connections ended in time.
    async fn shut_down(&self, window: Duration, time: Duration) -> bool {
        tracing::info!(edge = self.name, "shuts down");
        self.accepting.cancel();
        let deadline = Instant::now() + time;
        self.state.sockets.drain.begin(window, deadline);
        let left = self.state.connections.finished_by(deadline).await;
        self.state.catalog.stop().await;
        self.state.broker.close().await;
        self.check();
        left.is_ok()
    }

    /// Asks its clients to leave, and ends. Nothing is left of it then.
    pub(crate) fn drain(self, window: Duration, time: Duration) {
        tokio::spawn(async move {
            if self.shut_down(window, time).await {
                for account in self.open_accounts() {
                    self.oracle.violation(format!("{}: {account} after its end", self.name));
                }
            }
        });
    }

    /// Nobody reaches it any more, and it reaches nobody.
    pub(crate) fn kill(self, world: &World) {
        tracing::info!(edge = self.name, "is killed");
        self.accepting.cancel();
        world.isolate(&self.life, true);
        world.strike(&self.name, Fault::Cut, || true);
        tokio::spawn(async move { self.shut_down(Duration::from_millis(1), Duration::from_secs(1)).await });
    }

    /// A panic of a task, if there was one.
    pub(crate) fn check(&self) {
        if let Some(failure) = self.supervisor.failure() {
            self.oracle.violation(format!("{}: {failure}", self.name));
        }
        let text = self.state.metrics.encode();
        for line in text.lines().filter(|line| line.contains("task_panics") || line.contains("task_restarts")) {
            if !line.starts_with('#') && !line.ends_with(" 0") {
                self.oracle.violation(format!("{}: {line}", self.name));
            }
        }
    }

    /// The accounts that are not 0.
    pub(crate) fn open_accounts(&self) -> Vec<String> {
        let text = self.state.metrics.encode();
        let is_account = |line: &&str| ACCOUNTS.iter().any(|name| line.split(' ').next() == Some(name));
        text.lines().filter(is_account).filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect()
    }
}

/// Opens a socket from the bytes of its request, as the listener does, or answers a call.
async fn open(state: Arc<State>, router: Router, mut socket: End) -> Result<()> {
    let mut read = BytesMut::new();
    let request = loop {
        match Head::parse(&read) {
            Head::Socket(request) => break request,
            Head::Other => return calls::answer(router, socket, read).await,
            Head::Partial => {}
        }
        if socket.read_buf(&mut read).await? == 0 {
            bail!("it went before its request was complete");
        }
    };
    let written = WriteProgress::default();
    let opening = Direct::new(state).open(&request, Ipv4Addr::LOCALHOST.into(), written.clone()).context("refused")?;
    opening.begin(socket.counting(move |bytes| written.add(bytes)), &read);
    Ok(())
}
