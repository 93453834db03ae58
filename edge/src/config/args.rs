//! Flags and environment of `wirepost-edge`, taken apart in full.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Parser, builder::BoolishValueParser};
use wirepost_core::public_url::{PublicUrl, PublicUrlError};
use wirepost_runtime::logs::LogArgs;

use super::settings::{Balance, ClientCertificates, Settings, TlsFiles};
use crate::{
    address::{ForwardedHeader, Proxies, ProxiesError, limits::Limits},
    broker::rabbit::{ClientFiles, Config, SettingsError},
};

/// The edge of wirepost: terminates WebSockets and carries messages between clients and RabbitMQ.
#[derive(Clone, Parser)]
#[command(name = "wirepost-edge", version)]
pub struct Args {
    /// This edge's name in queues, events and logs; in a cluster the pod's name.
    #[arg(long, env = "WIREPOST_EDGE_NAME", default_value = "edge")]
    pub name: String,
    /// Public address: HTTP and WebSocket.
    #[arg(long, env = "WIREPOST_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Admin address: /livez, /readyz, /metrics, /configz.
    #[arg(long, env = "WIREPOST_ADMIN_LISTEN", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,
    /// Where the configurations are.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Seconds that a business is kept whose ConfigMap is missing (--config-namespace).
    #[arg(long, env = "WIREPOST_REMOVAL_GRACE_SECONDS", default_value = "60", value_parser = seconds)]
    pub removal_grace_seconds: Duration,
    /// Key set that signs tickets (JSON); all edges share it. It is read again when it changes.
    #[arg(long, env = "WIREPOST_KEYS_FILE")]
    pub keys_file: PathBuf,
    /// PEM certificate chain; with --tls-key the edge terminates TLS. Read again when it changes.
    #[arg(long, env = "WIREPOST_TLS_CERTIFICATE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// PEM private key.
    #[arg(long, env = "WIREPOST_TLS_KEY", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// CA certificates (PEM): clients are asked for a certificate, and whoever shows none that such a CA has signed can't
    /// open a connection. Read again when it changes.
    #[arg(long, env = "WIREPOST_TLS_CLIENT_CA", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,
    /// Whether a client must show one, or may do without: a certificate that is shown must be good in any case.
    #[arg(long, env = "WIREPOST_TLS_CLIENT_REQUIRED", default_value = "true", action = clap::ArgAction::Set)]
    pub tls_client_required: bool,
    /// What clients reach the edges by, such as wss://ws.example.com or wss://example.com:8443/ws; without it the Host
    /// header is used.
    #[arg(long, env = "WIREPOST_PUBLIC_URL")]
    pub public_url: Option<String>,
    /// RabbitMQ.
    #[command(flatten)]
    pub rabbit: RabbitArgs,
    /// Sockets at most; beyond it 503 with Retry-After.
    #[arg(long, env = "WIREPOST_MAX_CONNECTIONS", default_value_t = Settings::default().max_connections)]
    pub max_connections: usize,
    /// Proxies in front of the edges, as addresses and networks separated by commas; `none` where there are none. What they
    /// say about a client's address is believed. Without this, clients' addresses are unknown and not limited.
    #[arg(long, env = "WIREPOST_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',')]
    pub trusted_proxies: Vec<String>,
    /// The header in which trusted proxies name the client.
    #[arg(long, env = "WIREPOST_FORWARDED_HEADER", value_enum, default_value_t = ForwardedHeader::default())]
    pub forwarded_header: ForwardedHeader,
    /// Trusted proxies begin each connection with the PROXY protocol (version 1 or 2).
    #[arg(
        long,
        env = "WIREPOST_PROXY_PROTOCOL",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        default_value = "false",
        default_missing_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    pub proxy_protocol: bool,
    /// Sockets of one client address (IPv6: of one /64) at most; beyond it 503 with Retry-After. 0: any number.
    #[arg(long, env = "WIREPOST_CONNECTIONS_PER_ADDRESS", default_value_t = Settings::default().address_limits.connections)]
    pub connections_per_address: u32,
    /// Connections and requests of one client address at most whose callers have not been let in. 0: any number.
    #[arg(long, env = "WIREPOST_HANDSHAKES_PER_ADDRESS", default_value_t = Settings::default().address_limits.handshakes)]
    pub handshakes_per_address: u32,
    /// Refused tokens and keys and failed handshakes of one client address a minute, beyond which its refusals are slowed.
    /// 0: any number.
    #[arg(long, env = "WIREPOST_FAILURES_PER_ADDRESS", default_value_t = Settings::default().address_limits.failures)]
    pub failures_per_address: u32,
    /// Bytes that connections may hold together whose callers have not been let in; beyond it those that make the edge
    /// wait are closed.
    #[arg(long, env = "WIREPOST_HANDSHAKE_BYTES", default_value_t = Settings::default().handshake_bytes)]
    pub handshake_bytes: usize,
    /// Bytes of recent pushes in memory, all businesses together.
    #[arg(long, env = "WIREPOST_LOG_BYTES", default_value_t = Settings::default().log_bytes)]
    pub log_bytes: usize,
    /// Bytes queued for one socket at most; beyond it 4008.
    #[arg(long, env = "WIREPOST_OUTBOUND_BYTES", default_value_t = Settings::default().outbound_bytes)]
    pub outbound_bytes: usize,
    /// Bytes on their way to all sockets together, each push counted once; beyond it those that take nothing are closed
    /// with 4008.
    #[arg(long, env = "WIREPOST_BACKLOG_BYTES", default_value_t = Settings::default().backlog_bytes)]
    pub backlog_bytes: usize,
    /// Bytes that unfinished messages of clients may take together; beyond it they are not read until there is room.
    #[arg(long, env = "WIREPOST_INBOUND_BYTES", default_value_t = Settings::default().inbound_bytes)]
    pub inbound_bytes: usize,
    /// Businesses whose clients may negotiate compression (permessage-deflate), separated by commas; * is all of them.
    #[arg(long, env = "WIREPOST_COMPRESSION", value_name = "BUSINESS", value_delimiter = ',')]
    pub compression: Vec<String>,
    /// Seconds between pings to a quiet client; after two without an answer its connection is closed.
    #[arg(long, env = "WIREPOST_HEARTBEAT_SECONDS", default_value = "25", value_parser = seconds)]
    pub heartbeat_seconds: Duration,
    /// Seconds for a request's header and for the TLS handshake.
    #[arg(long, env = "WIREPOST_HEADER_TIMEOUT_SECONDS", default_value = "10", value_parser = seconds)]
    pub header_timeout_seconds: Duration,
    /// Seconds between two `position` frames to a quiet client at most.
    #[arg(long, env = "WIREPOST_POSITION_SECONDS", default_value = "30", value_parser = seconds)]
    pub position_seconds: Duration,
    /// Seconds without progress in writing to a socket, after which it ends with 4008.
    #[arg(long, env = "WIREPOST_WRITE_TIMEOUT_SECONDS", default_value = "30", value_parser = seconds)]
    pub write_timeout_seconds: Duration,
    /// Seconds without progress of a client's unfinished message, after which the connection ends with 4008.
    #[arg(long, env = "WIREPOST_READ_TIMEOUT_SECONDS", default_value = "30", value_parser = seconds)]
    pub read_timeout_seconds: Duration,
    /// Seconds that a business is read on after its last client left.
    #[arg(long, env = "WIREPOST_LINGER_SECONDS", default_value = "180", value_parser = seconds)]
    pub linger_seconds: Duration,
    /// Seconds that a ticket of the token call can be used to connect.
    #[arg(long, env = "WIREPOST_TICKET_SECONDS", default_value = "30", value_parser = seconds)]
    pub ticket_seconds: Duration,
    /// Seconds during which the edge still accepts after SIGTERM, until load balancers have noticed; the chart sets it.
    #[arg(long, env = "WIREPOST_ENDPOINT_LAG_SECONDS", default_value = "5", value_parser = seconds)]
    pub endpoint_lag_seconds: Duration,
    /// Seconds over which clients are asked to reconnect elsewhere.
    #[arg(long, env = "WIREPOST_DRAIN_WINDOW_SECONDS", default_value = "20", value_parser = seconds)]
    pub drain_window_seconds: Duration,
    /// Seconds from SIGTERM to the end at the latest; the chart keeps the pod's grace period above it.
    #[arg(long, env = "WIREPOST_DRAIN_DEADLINE_SECONDS", default_value = "45", value_parser = seconds)]
    pub drain_deadline_seconds: Duration,
    /// Where the other edges' admin ports are, as name:port, separated by commas: all addresses of each name, in a cluster
    /// those of a headless Service. This edge may be among them. Without it there are no other edges.
    #[arg(long, env = "WIREPOST_PEERS", value_name = "NAME:PORT", value_delimiter = ',', value_parser = peer)]
    pub peers: Vec<String>,
    /// Seconds between two `census` events of a business.
    #[arg(long, env = "WIREPOST_CENSUS_SECONDS", default_value = "15", value_parser = seconds)]
    pub census_seconds: Duration,
    /// Clients a second at most that an edge asks to connect elsewhere, if it holds clearly more than its share. 0: none.
    #[arg(long, env = "WIREPOST_BALANCE_PER_SECOND", default_value_t = Settings::default().balance.per_second, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub balance_per_second: u32,
    /// Percent above the mean of all edges at which that begins. It ends at a quarter of it.
    #[arg(long, env = "WIREPOST_BALANCE_ABOVE_PERCENT", default_value_t = Settings::default().balance.above_percent, value_parser = clap::value_parser!(u32).range(5..=1000))]
    pub balance_above_percent: u32,
    /// Seconds for which the edges must have been the same ones, and well, before that begins.
    #[arg(long, env = "WIREPOST_BALANCE_AFTER_SECONDS", default_value = "60", value_parser = seconds)]
    pub balance_after_seconds: Duration,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
}

fn peer(text: &str) -> Result<String, String> {
    let (name, port) = text.rsplit_once(':').ok_or("write name:port")?;
    let port: u16 = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
    if name.is_empty() || port == 0 { Err("write name:port".to_owned()) } else { Ok(text.to_owned()) }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Exactly one of the two.
#[derive(Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct SourceArgs {
    /// Directory with one JSON configuration per business.
    #[arg(long, env = "WIREPOST_CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,
    /// Kubernetes namespace with one ConfigMap per business, labelled wirepost.dev/config=business. The API server
    /// comes from KUBECONFIG, else from the pod's service account.
    #[arg(long, env = "WIREPOST_CONFIG_NAMESPACE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub config_namespace: Option<String>,
}

/// Where the configurations are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory with a file for each business.
    Directory(PathBuf),
    /// A namespace with a ConfigMap for each business; needs the feature `kubernetes`.
    Kubernetes {
        /// Where the ConfigMaps are.
        namespace: String,
        /// How long a business is kept whose ConfigMap is missing.
        removal_grace: Duration,
    },
}

/// A flag that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// The public address.
    #[error("--public-url (WIREPOST_PUBLIC_URL): {0}")]
    PublicUrl(#[from] PublicUrlError),
    /// The proxies.
    #[error(transparent)]
    Proxies(#[from] ProxiesError),
}

/// What the flags say: process, configurations, keys, broker.
pub struct Parts {
    /// The process's settings.
    pub settings: Settings,
    /// Configurations.
    pub source: Source,
    /// Key set.
    pub keys_file: PathBuf,
    /// RabbitMQ.
    pub rabbit: RabbitArgs,
}

/// Where RabbitMQ is and as whom; `wirepost dev` has the same flags.
// No Debug: the URIs hold passwords.
#[derive(Clone, clap::Args)]
pub struct RabbitArgs {
    /// amqp:// or amqps:// URIs of the broker's nodes or of a load balancer, separated by commas, with the vhost.
    #[arg(long, env = "WIREPOST_AMQP", hide_env_values = true)]
    pub amqp: String,
    /// Stream listeners, `rabbitmq-stream://host:port` or `rabbitmq-stream+tls://host:port`, separated by commas.
    /// Without them no business with delivery Durable can be read.
    #[arg(long, env = "WIREPOST_STREAM", hide_env_values = true)]
    pub stream: Option<String>,
    /// Management API, `http(s)://user:password@host:port`: asked for alarms, so that publishes are refused before the
    /// first victim.
    #[arg(long, env = "WIREPOST_MANAGEMENT", hide_env_values = true)]
    pub management: Option<String>,
    /// File whose content replaces the user name in the URIs; read at each connect.
    #[arg(long, env = "WIREPOST_AMQP_USERNAME_FILE")]
    pub amqp_username_file: Option<PathBuf>,
    /// File whose content replaces the password in the URIs; read at each connect.
    #[arg(long, env = "WIREPOST_AMQP_PASSWORD_FILE")]
    pub amqp_password_file: Option<PathBuf>,
    /// CA certificates (PEM) that the broker's certificates are checked against; without it those of the operating
    /// system.
    #[arg(long, env = "WIREPOST_AMQP_CA_FILE")]
    pub amqp_ca_file: Option<PathBuf>,
    /// Certificate (PEM, chain) that is shown to a broker which asks for one; read at each connect, like its key.
    #[arg(long, env = "WIREPOST_AMQP_CERTIFICATE_FILE", requires = "amqp_key_file")]
    pub amqp_certificate_file: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "WIREPOST_AMQP_KEY_FILE", requires = "amqp_certificate_file")]
    pub amqp_key_file: Option<PathBuf>,
}

impl RabbitArgs {
    /// The broker's configuration for an edge of this name.
    ///
    /// # Errors
    /// All invalid settings together.
    pub fn into_config(self, edge: &str) -> Result<Config, SettingsError> {
        let Self {
            amqp,
            stream,
            management,
            amqp_username_file,
            amqp_password_file,
            amqp_ca_file,
            amqp_certificate_file,
            amqp_key_file,
        } = self;
        let client = amqp_certificate_file.zip(amqp_key_file);
        let config = Config::parse(edge, &amqp, stream.as_deref(), management.as_deref())?;
        Ok(Config {
            username_file: amqp_username_file,
            password_file: amqp_password_file,
            ca_file: amqp_ca_file,
            client_files: client.map(|(certificate, key)| ClientFiles { certificate, key }),
            ..config
        })
    }
}

impl Args {
    /// Takes the flags apart.
    ///
    /// # Errors
    /// The public URL is none that clients could connect to.
    pub fn into_parts(self) -> Result<Parts, FlagError> {
        let Self {
            name,
            listen,
            admin_listen,
            source: SourceArgs { config_dir, config_namespace },
            removal_grace_seconds,
            keys_file,
            tls_certificate,
            tls_key,
            tls_client_ca,
            tls_client_required,
            public_url,
            rabbit,
            max_connections,
            trusted_proxies,
            forwarded_header,
            proxy_protocol,
            connections_per_address,
            handshakes_per_address,
            failures_per_address,
            handshake_bytes,
            log_bytes,
            outbound_bytes,
            backlog_bytes,
            inbound_bytes,
            compression,
            heartbeat_seconds,
            header_timeout_seconds,
            position_seconds,
            write_timeout_seconds,
            read_timeout_seconds,
            linger_seconds,
            ticket_seconds,
            endpoint_lag_seconds,
            drain_window_seconds,
            drain_deadline_seconds,
            peers,
            census_seconds,
            balance_per_second,
            balance_above_percent,
            balance_after_seconds,
            log: _,
        } = self;
        let clients = tls_client_ca.map(|ca| ClientCertificates { ca, required: tls_client_required });
        let settings = Settings {
            edge: name,
            listen,
            admin: admin_listen,
            tls: tls_certificate.zip(tls_key).map(|(certificate, key)| TlsFiles { certificate, key, clients }),
            // Not by clap: it would print the address, and with it a password.
            public_url: public_url.map(|url| url.parse::<PublicUrl>()).transpose()?,
            max_connections,
            proxies: Proxies::new(&trusted_proxies, forwarded_header, proxy_protocol)?,
            address_limits: Limits {
                connections: connections_per_address,
                handshakes: handshakes_per_address,
                failures: failures_per_address,
            },
            handshake_bytes,
            log_bytes,
            outbound_bytes,
            backlog_bytes,
            inbound_bytes,
            compression: compression.into(),
            heartbeat: heartbeat_seconds,
            header_timeout: header_timeout_seconds,
            position_interval: position_seconds,
            write_timeout: write_timeout_seconds,
            read_timeout: read_timeout_seconds,
            linger: linger_seconds,
            ticket_ttl: ticket_seconds,
            endpoint_lag: endpoint_lag_seconds,
            drain_window: drain_window_seconds,
            drain_deadline: drain_deadline_seconds,
            peers,
            census_interval: census_seconds,
            balance: Balance {
                per_second: balance_per_second,
                above_percent: balance_above_percent,
                after: balance_after_seconds,
            },
            ..Settings::default()
        };
        let source = match (config_dir, config_namespace) {
            (Some(directory), _) => Source::Directory(directory),
            // Clap lets neither both nor none of them pass.
            (None, namespace) => {
                Source::Kubernetes { namespace: namespace.unwrap_or_default(), removal_grace: removal_grace_seconds }
            }
        };
        Ok(Parts { settings, source, keys_file, rabbit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &[&str]) -> Result<Source, String> {
        let rest = ["wirepost-edge", "--keys-file=k", "--amqp=amqp://x"];
        let args = Args::try_parse_from(rest.iter().chain(source)).map_err(|error| error.to_string())?;
        Ok(args.into_parts().map_err(|error| error.to_string())?.source)
    }

    #[test]
    fn configurations_come_from_one_place() {
        assert_eq!(parse(&["--config-dir=d"]), Ok(Source::Directory("d".into())));
        let removal_grace = Duration::from_millis(500);
        let kubernetes = Source::Kubernetes { namespace: "ns".into(), removal_grace };
        assert_eq!(parse(&["--config-namespace=ns", "--removal-grace-seconds=0.5"]), Ok(kubernetes));
        for wrong in [&[][..], &["--config-dir=d", "--config-namespace=ns"]] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("--config-dir") && error.contains("--config-namespace"), "{error}");
        }
        assert!(parse(&["--config-namespace="]).is_err());
    }

    #[test]
    fn a_public_url_that_can_not_work_is_refused_at_the_start() {
        assert!(parse(&["--config-dir=d", "--public-url=https://ws.example"]).is_ok());
        let error = parse(&["--config-dir=d", "--public-url=wss://u:secret@x"]).unwrap_err();
        assert!(error.contains("user name or password") && !error.contains("secret"), "{error}");
    }
}
