//! The process's settings: read in one place, passed down, printed at start with secrets left out.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Longest wait for a broker's confirm before a client is told.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// How an edge runs. Made by `main` from flags and environment, by `wirepost dev` and by tests directly.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This edge's name in queues, events and logs; the pod's name in a cluster.
    pub edge: String,
    /// Public listener (HTTP and WebSocket).
    pub listen: SocketAddr,
    /// Admin listener; never exposed with the public one.
    pub admin: SocketAddr,
    /// Certificate chain and key (PEM), reloaded on change; `None` = plain, behind a proxy that ends TLS.
    pub tls: Option<TlsFiles>,
    /// What clients reach this edge by, as `wss://host[:port][/path]`; `None` = taken from the request's Host header.
    pub public_url: Option<String>,
    /// Pause between two log lines about the same, where others can cause any number of them.
    pub log_pause: Duration,
    /// Connections at most; beyond it 503 with Retry-After before the upgrade.
    pub max_connections: usize,
    /// Longest time for a request's header, and for the TLS handshake.
    pub header_timeout: Duration,
    /// WebSocket pings to quiet clients; a peer that answers nothing for two of them is dead.
    pub heartbeat: Duration,
    /// How long a ticket of the token call can be used to connect.
    pub ticket_ttl: Duration,
    /// Bytes queued for one socket at most; beyond it 4008.
    pub outbound_bytes: usize,
    /// Messages queued for one socket at most; beyond it 4008.
    pub outbound_messages: usize,
    /// Longest time without progress in writing to a socket; beyond it 4008.
    pub write_timeout: Duration,
    /// Unconfirmed messages of one connection; at the limit its socket is not read until a confirm comes.
    pub window: usize,
    /// Bytes of recent pushes in memory, all businesses together.
    pub log_bytes: usize,
    /// How long a business is read on after its last client left.
    pub linger: Duration,
    /// Bytes of one piece read for clients that catch up.
    pub catch_up_bytes: usize,
    /// Pieces read at the same time, all businesses together.
    pub catch_up_readers: usize,
    /// How often quiet clients are told their position.
    pub position_interval: Duration,
    /// How long the edge goes on accepting after SIGTERM, until load balancers have heard of it.
    pub endpoint_lag: Duration,
    /// Time over which clients are told to go.
    pub drain_window: Duration,
    /// From SIGTERM to the end at the latest.
    pub drain_deadline: Duration,
}

/// Paths of PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            edge: "edge".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            tls: None,
            public_url: None,
            log_pause: Duration::from_mins(1),
            max_connections: 20_000,
            header_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(25),
            ticket_ttl: Duration::from_secs(30),
            outbound_bytes: 1 << 20,
            outbound_messages: 1024,
            write_timeout: Duration::from_secs(30),
            window: 64,
            log_bytes: 64 << 20,
            linger: Duration::from_mins(3),
            catch_up_bytes: 1 << 20,
            catch_up_readers: 4,
            position_interval: Duration::from_secs(30),
            endpoint_lag: Duration::from_secs(5),
            drain_window: Duration::from_secs(20),
            drain_deadline: Duration::from_secs(45),
        }
    }
}
