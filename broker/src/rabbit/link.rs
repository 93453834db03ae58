//! One AMQP connection that reconnects forever: connect, watch, cut, back off.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::Event;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_rabbitmq::{Address, CaCertificates, Connection, CredentialFiles, Endpoint};
use wirepost_runtime::backoff::Backoff;

use super::counters::Counters;

/// Between heartbeats; a connection that brings nothing for two is dead (lapin and RabbitMQ agree on that).
pub(super) const HEARTBEAT: Duration = Duration::from_secs(4);
/// Longest wait for the broker's answer to our close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// First and longest bound of the pauses between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// How often a connection is checked besides its events.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// What connections are made with.
pub(super) struct Dialer {
    pub(super) addresses: Vec<Address>,
    pub(super) files: CredentialFiles,
    pub(super) ca: Arc<CaCertificates>,
    pub(super) edge: String,
    pub(super) counters: Arc<Counters>,
}

/// The state of a link.
#[derive(Clone, Debug)]
pub(super) enum Status {
    /// No connection, and why.
    Down(String),
    /// Connected.
    Up(Arc<Connection>),
    /// Connected; the broker takes no publishes on it, and why.
    Blocked(Arc<Connection>, String),
}

impl Status {
    pub(super) fn live(&self) -> Option<&Arc<Connection>> {
        match self {
            Self::Up(live) | Self::Blocked(live, _) => Some(live),
            Self::Down(_) => None,
        }
    }
}

impl Dialer {
    /// Where to connect at this attempt, with the credentials and CA certificates that are valid now.
    pub(super) fn endpoint(&self, attempt: usize, name: &str) -> Result<Endpoint, String> {
        let address = self.addresses[attempt % self.addresses.len()].clone();
        let login = self.files.apply(address.login()).map_err(|error| error.to_string())?;
        let name = format!("wirepost-edge {} {name}", self.edge);
        Endpoint::new(address.with_login(login), Some(&self.ca), name)
            .map_err(|error| format!("{error}; give a ca_file"))
    }

    async fn connect(&self, attempt: usize, name: &str) -> Result<Connection, String> {
        let endpoint = self.endpoint(attempt, name)?;
        Connection::open(&endpoint, HEARTBEAT).await.map_err(|error| error.to_string())
    }
}

/// A handle to a supervised connection; the caller of [`Link::new`] owns the task that runs it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    status: watch::Receiver<Status>,
    reset: Arc<Notify>,
}

impl Link {
    /// The link and what runs it until `cancel`. `name` is shown in the broker's list of connections.
    pub(super) fn new(
        dialer: Arc<Dialer>,
        name: String,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, status) = watch::channel(Status::Down("not connected yet".to_owned()));
        let reset = Arc::new(Notify::new());
        let link = Self { status, reset: reset.clone() };
        (link, Supervisor { dialer, name, cancel, reset, status: sender }.run())
    }

    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Gives up the present connection: it is unresponsive.
    pub(super) fn reset(&self) {
        self.reset.notify_one();
    }
}

struct Supervisor {
    dialer: Arc<Dialer>,
    name: String,
    cancel: CancellationToken,
    reset: Arc<Notify>,
    status: watch::Sender<Status>,
}

impl Supervisor {
    async fn run(self) {
        let cancel = self.cancel.clone();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut pause = Duration::ZERO;
        let mut failures = 0;
        // Links begin at different nodes.
        let mut attempt = rand::random_range(0..self.dialer.addresses.len());
        loop {
            let connecting = async {
                sleep(pause).await;
                self.dialer.connect(attempt, &self.name).await
            };
            let connected = tokio::select! {
                () = cancel.cancelled() => break,
                connected = connecting => connected,
            };
            let reason = match connected {
                Ok(live) => {
                    self.dialer.counters.connects.add(1);
                    if failures > 0 {
                        tracing::info!(link = self.name, failures, "connected to the broker again");
                    }
                    failures = 0;
                    let since = Instant::now();
                    let live = Arc::new(live);
                    let Some(reason) = self.watch(&live).await else { break };
                    self.dialer.counters.connections_lost.add(1);
                    live.cut();
                    backoff.lasted(since.elapsed());
                    tracing::warn!(link = self.name, reason, "lost the connection to the broker");
                    reason
                }
                Err(reason) => {
                    attempt += 1;
                    failures += 1;
                    self.dialer.counters.connect_failures.add(1);
                    // The first failure, then ever fewer.
                    if u32::is_power_of_two(failures) {
                        tracing::warn!(link = self.name, failures, reason, "the broker is away");
                    }
                    reason
                }
            };
            self.status.send_replace(Status::Down(reason));
            pause = backoff.next_pause();
        }
        self.status.send_replace(Status::Down("closed".to_owned()));
    }

    /// Until the connection ends (the reason), or until cancelled (`None`; it is closed then).
    async fn watch(&self, connection: &Arc<Connection>) -> Option<String> {
        let mut events = std::pin::pin!(connection.events_listener());
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A request to give up meant an earlier connection.
        let _ = futures_util::FutureExt::now_or_never(self.reset.notified());
        self.status.send_replace(Status::Up(connection.clone()));
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => {
                    let closing = connection.close(200, "closing".into());
                    let _ = timeout(CLOSE_TIMEOUT, closing).await;
                    connection.cut();
                    return None;
                }
                () = self.reset.notified() => return Some("it answers nothing".to_owned()),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(link = self.name, reason, "the broker takes no messages");
                        self.status.send_replace(Status::Blocked(connection.clone(), reason));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(link = self.name, "the broker takes messages again");
                        self.status.send_replace(Status::Up(connection.clone()));
                    }
                    Some(Event::Error(error)) if !connection.is_open() => return Some(error.to_string()),
                    None => return Some("the connection ended".to_owned()),
                    Some(_) => {}
                },
                _ = checks.tick() => if !connection.is_open() {
                    return Some("the connection ended".to_owned());
                },
            }
        }
    }
}
