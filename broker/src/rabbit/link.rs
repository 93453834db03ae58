//! One AMQP connection that is made again for ever: connect, watch, cut, back off.
//!
//! lapin waits without limit in several places, among them an unanswered handshake and a socket that takes no bytes, each time with a
//! thread of its own. So the socket is known here as well, and shutting it down ends whatever hangs on it.

use std::{
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties, Event,
    tcp::{RustlsConnector, RustlsConnectorConfig},
    uri::AMQPUri,
};
use rustls::ClientConfig;
use tokio::{
    net::lookup_host,
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_amqp::Address;

use super::{
    config::{self, Credentials},
    counters::Counters,
};

/// Between heartbeats; a connection that brings nothing for two is dead (lapin and RabbitMQ agree on that).
pub(super) const HEARTBEAT: Duration = Duration::from_secs(4);
/// Longest time for name look-up, TCP and TLS.
const DIAL_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest time for those and AMQP's handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the broker's answer to our close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// First and longest pause between attempts; each is drawn from its upper half.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// A connection that lived this long begins the next outage with the first pause again.
const STEADY: Duration = Duration::from_secs(10);
/// How often a connection is looked at beside its events.
const LOOK: Duration = Duration::from_millis(500);

/// What connections are made with.
pub(super) struct Dialer {
    pub(super) uris: Vec<AMQPUri>,
    pub(super) credentials: Credentials,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) edge: String,
    pub(super) counters: Arc<Counters>,
}

/// How a link is.
#[derive(Clone, Debug)]
pub(super) enum Status {
    /// No connection, and why.
    Down(String),
    /// Connected.
    Up(Arc<Live>),
    /// Connected; the broker takes no publishes on it, and why.
    Blocked(Arc<Live>, String),
}

impl Status {
    pub(super) fn live(&self) -> Option<&Arc<Live>> {
        match self {
            Self::Up(live) | Self::Blocked(live, _) => Some(live),
            Self::Down(_) => None,
        }
    }
}

/// A connection. Channels made from it end with it.
pub(super) struct Live {
    pub(super) connection: Connection,
    socket: Arc<Socket>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

/// A second handle to the socket that lapin works on.
#[derive(Debug, Default)]
struct Socket(Mutex<SocketState>);

#[derive(Debug, Default)]
struct SocketState {
    socket: Option<TcpStream>,
    /// Nobody waits for it any more.
    cut: bool,
}

impl Socket {
    /// Takes a handle to a socket that has just been opened; false if it came too late.
    fn opened(&self, socket: TcpStream) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = state.cut;
        if cut {
            let _ = socket.shutdown(Shutdown::Both);
        } else {
            state.socket = Some(socket);
        }
        !cut
    }

    /// Ends it at once, without a word to the peer.
    fn cut(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.cut = true;
        if let Some(socket) = state.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Cuts the socket of an attempt that was given up, also when its future is dropped.
struct CutUnlessKept(Option<Arc<Socket>>);

impl Drop for CutUnlessKept {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            socket.cut();
        }
    }
}

impl Dialer {
    /// Where to connect without lapin, at this attempt, with the credentials that hold now.
    pub(super) fn address(&self, attempt: usize, name: &str) -> Result<Address, String> {
        let uri = self.credentials.apply(&self.uris[attempt % self.uris.len()])?;
        let name = format!("wirepost-edge {} {name}", self.edge);
        Address::new(&uri, self.tls.clone(), name).map_err(|error| format!("{error}; give a ca_file"))
    }

    async fn connect(&self, attempt: usize, name: &str) -> Result<Live, String> {
        let uri = &self.uris[attempt % self.uris.len()];
        let place = format!("{}:{}", uri.authority.host, uri.authority.port);
        let mut uri = self.credentials.apply(uri)?;
        uri.query.heartbeat = Some(HEARTBEAT.as_secs() as u16);
        let socket = Arc::new(Socket::default());
        let mut guard = CutUnlessKept(Some(socket.clone()));
        let runtime = lapin::runtime::default_runtime().map_err(|error| error.to_string())?;
        let tls = config::is_tls(&uri).then(|| self.connector()).transpose()?;
        let dial = {
            let (socket, runtime) = (socket.clone(), runtime.clone());
            // Runs on lapin's thread: a dropped attempt does not end it, its own timeout does.
            async move |uri: AMQPUri, _| {
                let dialing = async {
                    let address = (uri.authority.host.as_str(), uri.authority.port);
                    let addresses: Vec<_> = lookup_host(address).await?.collect();
                    let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        let second = TcpStream::from(plain.get_ref().as_fd().try_clone_to_owned()?);
                        if !socket.opened(second) {
                            return Err(std::io::ErrorKind::ConnectionAborted.into());
                        }
                    }
                    match &tls {
                        None => Ok(stream),
                        Some(connector) => stream.into_rustls(connector, &uri.authority.host).await,
                    }
                };
                let dialed = timeout(DIAL_TIMEOUT, dialing).await;
                dialed.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(lapin::Error::from)
            }
        };
        let properties =
            ConnectionProperties::default().with_connection_name(format!("wirepost-edge {} {name}", self.edge).into());
        match timeout(CONNECT_TIMEOUT, Connection::connector(uri, runtime, dial, properties)).await {
            Ok(Ok(connection)) => {
                guard.0 = None;
                Ok(Live { connection, socket })
            }
            Ok(Err(error)) => Err(format!("cannot connect to {place}: {error}")),
            Err(_) => Err(format!("cannot connect to {place}: no answer within {CONNECT_TIMEOUT:?}")),
        }
    }

    fn connector(&self) -> Result<RustlsConnector, String> {
        match &self.tls {
            Some(config) => Ok(config.clone().into()),
            None => RustlsConnectorConfig::new_with_native_certs()
                .and_then(RustlsConnectorConfig::connector_with_no_client_auth)
                .map_err(|error| {
                    format!("cannot use the authorities of the operating system: {error}; give a ca_file")
                }),
        }
    }
}

/// A handle to a supervised connection; the task that runs it belongs to who called [`Link::new`].
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

    /// Gives up the present connection: it answers nothing.
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
        let mut pause = Duration::ZERO;
        let mut failures = 0;
        // Links begin at different nodes.
        let mut attempt = rand::random_range(0..self.dialer.uris.len());
        loop {
            let connecting = async {
                sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
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
                    live.socket.cut();
                    if since.elapsed() >= STEADY {
                        pause = Duration::ZERO;
                    }
                    tracing::warn!(link = self.name, reason, "lost the connection to the broker");
                    reason
                }
                Err(reason) => {
                    attempt += 1;
                    failures += 1;
                    self.dialer.counters.connect_failures.add(1);
                    // The first one and then fewer and fewer.
                    if u32::is_power_of_two(failures) {
                        tracing::warn!(link = self.name, failures, reason, "the broker is away");
                    }
                    reason
                }
            };
            self.status.send_replace(Status::Down(reason));
            pause = (pause * 2).clamp(BACKOFF.0, BACKOFF.1);
        }
        self.status.send_replace(Status::Down("closed".to_owned()));
    }

    /// Until the connection ends (the reason), or until cancelled (`None`; it is closed then).
    async fn watch(&self, live: &Arc<Live>) -> Option<String> {
        let connection = &live.connection;
        let mut events = std::pin::pin!(connection.events_listener());
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A request to give up was for an earlier connection.
        let _ = futures_util::FutureExt::now_or_never(self.reset.notified());
        self.status.send_replace(Status::Up(live.clone()));
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => {
                    let closing = connection.close(200, "closing".into());
                    let _ = timeout(CLOSE_TIMEOUT, closing).await;
                    live.socket.cut();
                    return None;
                }
                () = self.reset.notified() => return Some("it answers nothing".to_owned()),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(link = self.name, reason, "the broker takes no messages");
                        self.status.send_replace(Status::Blocked(live.clone(), reason));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(link = self.name, "the broker takes messages again");
                        self.status.send_replace(Status::Up(live.clone()));
                    }
                    Some(Event::Error(error)) if !connection.status().connected() => return Some(error.to_string()),
                    None => return Some("the connection ended".to_owned()),
                    Some(_) => {}
                },
                _ = looks.tick() => if !connection.status().connected() {
                    return Some("the connection ended".to_owned());
                },
            }
        }
    }
}
