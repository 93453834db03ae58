//! The process's settings: read in one place, passed down, printed at start with secrets left out.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use wirepost_core::public_url::PublicUrl;

use crate::address::{Proxies, limits::Limits};
pub use wirepost_broker::CONFIRM_TIMEOUT;

/// How an edge runs. Made by `main` from flags and environment, by `wirepost dev` and by tests directly.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This edge's name in queues, events and logs; the pod's name in a cluster.
    pub edge: String,
    /// Public listener (HTTP and WebSocket).
    pub listen: SocketAddr,
    /// Admin listener; never exposed with the public one.
    pub admin: SocketAddr,
    /// Certificate chain and key (PEM), reloaded on change; `None` = plain, behind a proxy that terminates TLS.
    pub tls: Option<TlsFiles>,
    /// What clients reach this edge by, as `wss://host[:port][/path]`; `None` = taken from the request's Host header.
    pub public_url: Option<PublicUrl>,
    /// Whether, without a public URL, a name in the Host header counts as this edge's own, so that its pages may connect.
    /// Anybody can make a name point to an edge; an address is one only for pages of that address.
    pub trust_host_names: bool,
    /// Pause between two log lines about the same, where others can cause any number of them.
    pub log_pause: Duration,
    /// Connections at most; beyond it 503 with Retry-After before the upgrade.
    pub max_connections: usize,
    /// TCP connections of the public port at most, where the limit of open files allows fewer than needed. See
    /// [`Self::fit`].
    pub max_tcp_connections: Option<usize>,
    /// Which proxies are believed.
    pub proxies: Proxies,
    /// Limits of each client address.
    pub address_limits: Limits,
    /// Bytes that connections may hold together whose callers have not been let in; beyond it those that are waited for
    /// give way.
    pub handshake_bytes: usize,
    /// Longest time for a request's header, and for the TLS handshake.
    pub header_timeout: Duration,
    /// WebSocket pings to quiet clients; a peer that does not answer two of them is dead.
    pub heartbeat: Duration,
    /// How long a ticket of the token call can be used to connect.
    pub ticket_ttl: Duration,
    /// Bytes queued for one socket at most; beyond it 4008.
    pub outbound_bytes: usize,
    /// Messages queued for one socket at most; beyond it 4008.
    pub outbound_messages: usize,
    /// Bytes on their way to all sockets together, each push counted once; beyond it those that take nothing are closed
    /// with 4008.
    pub backlog_bytes: usize,
    /// Bytes that unfinished messages of clients may take together; beyond it they are not read until there is room.
    pub inbound_bytes: usize,
    /// Businesses whose clients may negotiate compression.
    pub compression: CompressedBusinesses,
    /// Longest time without progress in writing to a socket; beyond it 4008.
    pub write_timeout: Duration,
    /// Longest time without progress of a client's unfinished message; beyond it 4008.
    pub read_timeout: Duration,
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
    /// How often quiet clients are sent their position.
    pub position_interval: Duration,
    /// How long the edge still accepts after SIGTERM, until load balancers have noticed.
    pub endpoint_lag: Duration,
    /// Time over which clients are asked to reconnect elsewhere.
    pub drain_window: Duration,
    /// From SIGTERM to the end at the latest.
    pub drain_deadline: Duration,
    /// Where the other edges' admin ports are, as `name:port`; this edge may be among them.
    pub peers: Vec<String>,
    /// Between two censuses of a business.
    pub census_interval: Duration,
    /// How clients are let go for an even load.
    pub balance: Balance,
}

/// When clients are let go, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Clients a second at most; 0: none.
    pub per_second: u32,
    /// An edge lets clients go that holds so many percent more than the mean of all.
    pub above_percent: u32,
    /// How long the edges must have been the same ones, before.
    pub after: Duration,
}

/// Businesses whose clients may negotiate compression: none by default, since the size of a compressed message tells
/// something about its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompressedBusinesses(Vec<String>);

impl CompressedBusinesses {
    /// Stands for every business.
    const ALL: &str = "*";

    /// Whether this business is one of them.
    pub fn covers(&self, business: &str) -> bool {
        self.0.iter().any(|listed| listed == Self::ALL || listed == business)
    }
}

impl From<Vec<String>> for CompressedBusinesses {
    fn from(mut names: Vec<String>) -> Self {
        names.retain(|name| !name.is_empty());
        Self(names)
    }
}

/// Paths of PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Whether clients are asked for a certificate.
    pub clients: Option<ClientCertificates>,
}

/// Certificates of clients. They let a connection in and say nothing about who the client is: that is in its ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// CA certificates that may have signed them.
    pub ca: PathBuf,
    /// Whether a client without one is refused.
    pub required: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            edge: "edge".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            tls: None,
            public_url: None,
            trust_host_names: true,
            log_pause: Duration::from_mins(1),
            max_connections: 20_000,
            max_tcp_connections: None,
            proxies: Proxies::default(),
            address_limits: Limits::default(),
            handshake_bytes: 32 << 20,
            header_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(25),
            ticket_ttl: Duration::from_secs(30),
            outbound_bytes: 1 << 20,
            outbound_messages: 1024,
            backlog_bytes: 64 << 20,
            inbound_bytes: 64 << 20,
            compression: CompressedBusinesses::default(),
            write_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(30),
            window: 64,
            log_bytes: 64 << 20,
            linger: Duration::from_mins(3),
            catch_up_bytes: 1 << 20,
            catch_up_readers: 4,
            position_interval: Duration::from_secs(30),
            endpoint_lag: Duration::from_secs(5),
            drain_window: Duration::from_secs(20),
            drain_deadline: Duration::from_secs(45),
            peers: Vec::new(),
            census_interval: Duration::from_secs(15),
            balance: Balance { per_second: 10, above_percent: 20, after: Duration::from_mins(1) },
        }
    }
}

/// File descriptors beside those of the public port: connections to the broker and the API server, files, connections
/// that are being refused.
const SPARE_FILES: u64 = 100;
/// TCP connections that the public port takes in any case.
const FEWEST_TCP_CONNECTIONS: usize = 16;
/// Of these for connections whose callers have not been let in.
const FEWEST_STRANGERS: usize = 8;

impl Settings {
    /// TCP connections that the public port takes. Beyond its sockets: token calls, and connections that are answered
    /// with 503.
    pub fn tcp_connections(&self) -> usize {
        let wanted = self.max_connections + self.max_connections / 10 + 256;
        self.max_tcp_connections.map_or(wanted, |most| most.min(wanted))
    }

    /// Connections whose callers have not been let in: as many as are left by the sockets.
    pub fn strangers(&self) -> usize {
        self.tcp_connections().saturating_sub(self.max_connections).max(1)
    }

    /// Limits clients to what a process that may open this many files can serve: further ones get 503, as from any full
    /// edge, and does not hang. Returns a warning if that is fewer than configured.
    pub fn fit(&mut self, files: u64) -> Option<String> {
        let room = usize::try_from(files.saturating_sub(SPARE_FILES)).unwrap_or(usize::MAX).max(FEWEST_TCP_CONNECTIONS);
        self.max_tcp_connections = Some(room);
        let sockets = room - (room / 11).max(FEWEST_STRANGERS);
        if sockets >= self.max_connections {
            return None;
        }
        let asked = std::mem::replace(&mut self.max_connections, sockets);
        let needed = asked as u64 + asked as u64 / 10 + SPARE_FILES + wirepost_runtime::descriptors::RESERVED;
        Some(format!(
            "this process may open {files} files, enough for {sockets} sockets but not for {asked} (--max-connections): clients beyond that get 503; raise the hard limit of open files to {needed}, or lower --max-connections"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_accepts_no_more_clients_than_it_has_file_descriptors_for() {
        for (files, sockets, told) in
            [(1 << 20, 20_000, false), (22_100, 20_000, false), (1024, 840, true), (50, 8, true)]
        {
            let mut settings = Settings::default();
            let text = settings.fit(files);
            assert_eq!((settings.max_connections, text.is_some()), (sockets, told), "{files}: {text:?}");
            assert!(settings.tcp_connections() > sockets);
            assert!(files < SPARE_FILES + 16 || settings.tcp_connections() as u64 <= files - SPARE_FILES);
        }
    }
}
