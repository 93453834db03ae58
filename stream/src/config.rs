//! Settings of a client, with their defaults.

use std::{fmt, sync::Arc, time::Duration};

use wirepost_runtime::{
    network::{Network, Tcp},
    tasks::Supervisor,
};

/// User and password of SASL PLAIN. `Debug` hides the password.
#[derive(Clone)]
pub struct Credentials {
    /// The broker's user.
    pub username: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Called at each connect, so that renewed certificates take effect; must not block for long. Its error fails the connect.
pub type Tls = Arc<dyn Fn() -> Result<Arc<rustls::ClientConfig>, String> + Send + Sync>;

/// Addresses, credentials, timeouts and limits. Create it with [`Config::new`], then change fields.
#[derive(Clone)]
pub struct Config {
    /// Addresses of the stream listeners, tried in turn; a load balancer counts as one.
    pub hosts: Vec<(String, u16)>,
    /// The virtual host, `/` by default.
    pub vhost: String,
    /// Called at each connect, so that rotated credentials take effect; must not block for long.
    pub credentials: Arc<dyn Fn() -> Credentials + Send + Sync>,
    /// TLS, checked against the host's name; `None`: plain TCP.
    pub tls: Option<Tls>,
    /// Shown in the broker's list of connections.
    pub connection_name: String,
    /// Heartbeat interval in whole seconds, at least 1; a connection silent for two intervals is dead.
    pub heartbeat: Duration,
    /// Timeout for TCP, TLS and the protocol's handshake together.
    pub connect_timeout: Duration,
    /// Timeout for an answer, and for the socket to accept a write.
    pub call_timeout: Duration,
    /// How often a quiet subscription is compared with the stream's committed end.
    pub watchdog_interval: Duration,
    /// A connection without subscriptions is closed after this time.
    pub idle_timeout: Duration,
    /// Subscriptions on one connection, 1 to 256. `None`: chosen from the broker's version,
    /// [`SUBSCRIPTIONS_PER_CONNECTION`] from 4.3 on, else 1, because older brokers make the subscriptions of a
    /// connection wait for each other (rabbitmq-server#14766).
    pub subscriptions_per_connection: Option<u16>,
    /// Bytes of chunks that all subscriptions may hold together before credits are withheld. Above it each subscription
    /// is limited to half its credits plus one: at worst it is exceeded by that many chunks per subscription.
    pub byte_budget: usize,
    /// Chunks in flight per subscription, at least 1. More is faster over high latency and costs memory; chunks have no
    /// size limit of their own.
    pub credits: u16,
    /// The largest frame, hence chunk, that is accepted; larger ones are dropped and reported as a gap.
    pub max_frame_bytes: usize,
    /// First and longest bound of the pauses between attempts, see [`Backoff`](wirepost_runtime::backoff::Backoff).
    pub backoff: (Duration, Duration),
    /// Receives the failures of the client's tasks. By default it is one of its own: failures are logged, and nobody waits for them.
    pub supervisor: Supervisor,
    /// How the hosts are reached.
    pub network: Arc<dyn Network>,
}

/// Default of [`Config::subscriptions_per_connection`] on brokers that multiplex well.
pub const SUBSCRIPTIONS_PER_CONNECTION: u16 = 250;

impl Config {
    /// A configuration with the defaults: virtual host `/`, plain TCP, heartbeat 5 s, timeouts 5 s, 64 MiB budget.
    pub fn new(
        host: impl Into<String>,
        port: u16,
        credentials: impl Fn() -> Credentials + Send + Sync + 'static,
    ) -> Self {
        Self {
            hosts: vec![(host.into(), port)],
            vhost: "/".to_owned(),
            credentials: Arc::new(credentials),
            tls: None,
            connection_name: "wirepost-stream".to_owned(),
            heartbeat: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(5),
            watchdog_interval: Duration::from_secs(5),
            idle_timeout: Duration::from_mins(1),
            subscriptions_per_connection: None,
            byte_budget: 64 << 20,
            credits: 4,
            max_frame_bytes: 256 << 20,
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            supervisor: Supervisor::default(),
            network: Arc::new(Tcp),
        }
    }

    /// Heartbeat in the unit of the wire.
    pub(crate) fn heartbeat_seconds(&self) -> u32 {
        self.heartbeat.as_secs_f64().ceil().clamp(1.0, 3600.0) as u32
    }

    /// The number of subscriptions on a connection to a broker of this version.
    pub(crate) fn subscriptions_on(&self, broker_version: &str) -> u16 {
        let default = if fixed(broker_version) { SUBSCRIPTIONS_PER_CONNECTION } else { 1 };
        self.subscriptions_per_connection.unwrap_or(default).clamp(1, 256)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("hosts", &self.hosts)
            .field("vhost", &self.vhost)
            .field("tls", &self.tls.is_some())
            .field("heartbeat", &self.heartbeat)
            .field("subscriptions_per_connection", &self.subscriptions_per_connection)
            .field("byte_budget", &self.byte_budget)
            .field("credits", &self.credits)
            .finish_non_exhaustive()
    }
}

/// Whether this version certainly contains rabbitmq-server#14766. It was merged in 2025-10; we do not know which 4.2
/// release has it, so 4.3 is the limit. An unparsable version counts as old.
fn fixed(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (4, 3),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fixed_broker_gets_many_subscriptions_on_a_connection() {
        for (version, expected) in
            [("4.3.6", 250), ("4.3.0-rc.1", 250), ("5.0.0", 250), ("4.2.9", 1), ("4.0.5", 1), ("", 1)]
        {
            let config = Config::new("h", 1, || unreachable!());
            assert_eq!(config.subscriptions_on(version), expected, "{version}");
        }
    }

    #[test]
    fn debug_hides_secrets() {
        let credentials = Credentials { username: "u".into(), password: "hunter2".into() };
        let config = Config::new("h", 1, {
            let c = credentials.clone();
            move || c.clone()
        });
        assert!(!format!("{credentials:?} {config:?}").contains("hunter2"));
    }
}
