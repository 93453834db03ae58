//! Where the broker is, as which user to connect, and all bounds; checked as a whole before anything connects.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use wirepost_rabbitmq::{
    Address, BrokerTls, ClientFiles, CredentialFiles, Credentials, ManagementClient, ManagementSettings, TlsFiles,
};

use wirepost_runtime::network::{Network, Tcp};

use super::alarm;

/// Default of [`Config::connections`].
pub const CONNECTIONS: usize = 2;
/// Default of [`Config::return_after`]: a node that has just started has enough to do.
const RETURN_AFTER: Duration = Duration::from_secs(10);
/// More would only cost the broker memory.
const MAX_CONNECTIONS: usize = 64;
/// A queue's name has at most 255 bytes and holds the business type as well.
const MAX_EDGE_NAME: usize = 128;

/// How an edge reaches RabbitMQ. Build it with [`Config::new`] or [`Config::parse`], then change fields.
#[derive(Clone)]
pub struct Config {
    /// This edge's name: in the queues of `Transient` businesses (two edges must not share one) and in connection names.
    pub edge: String,
    /// `amqp://` or `amqps://` URIs of the broker's nodes or of a load balancer, tried in turn; user, password and vhost included,
    /// the vhost the same in all of them.
    pub amqp: Vec<String>,
    /// Host and port of the stream listeners, tried in turn; `None` = no business with delivery `Durable` can be read.
    pub stream: Option<Vec<(String, u16)>>,
    /// Whether the stream listeners speak TLS.
    pub stream_tls: bool,
    /// URI of the management API, `http(s)://user:password@host:port`, polled for alarms; `None` = an alarm is learned from the
    /// first publish that it stops.
    pub management: Option<String>,
    /// Files whose content replaces the user name and the password of every URI; read at each connect, so that a rotated secret takes
    /// effect. White space at their ends does not count.
    pub username_file: Option<PathBuf>,
    /// See `username_file`.
    pub password_file: Option<PathBuf>,
    /// CA certificates (PEM) that the broker's certificates are checked against, read at each connect; `None` = those of the operating
    /// system.
    pub ca_file: Option<PathBuf>,
    /// The certificate that we show to a broker which asks for one, read at each connect.
    pub client_files: Option<ClientFiles>,
    /// Connections that publish and do nothing else.
    pub connections: usize,
    /// Messages waiting for one of them at most; beyond it they are refused as unavailable.
    pub lane_messages: usize,
    /// Bytes waiting for all of them together at most; beyond it they are refused as unavailable.
    pub waiting_bytes: usize,
    /// Events waiting for one of them at most; beyond it they are dropped and counted.
    pub event_capacity: usize,
    /// Unacknowledged messages of one `Transient` business at most (`basic.qos`).
    pub prefetch: u16,
    /// After how long, at least, a publishing connection that an outage has led to another node returns to its own; twice as long at most.
    pub return_after: Duration,
    /// How AMQP and streams are reached.
    pub network: Arc<dyn Network>,
}

impl Config {
    /// A configuration with the defaults for one AMQP URI.
    pub fn new(edge: impl Into<String>, amqp: impl Into<String>) -> Self {
        Self {
            edge: edge.into(),
            amqp: vec![amqp.into()],
            stream: None,
            stream_tls: false,
            management: None,
            username_file: None,
            password_file: None,
            ca_file: None,
            client_files: None,
            connections: CONNECTIONS,
            lane_messages: 32_768,
            waiting_bytes: 64 << 20,
            event_capacity: 1024,
            prefetch: 200,
            return_after: RETURN_AFTER,
            network: Arc::new(Tcp),
        }
    }

    /// From the texts of flags and environment: URIs separated by commas. `stream` as `rabbitmq-stream://host:port`,
    /// `rabbitmq-stream+tls://host:port` or `host:port`; a user in it is ignored, the AMQP one is used.
    ///
    /// # Errors
    /// All bad settings together.
    pub fn parse(
        edge: &str,
        amqp: &str,
        stream: Option<&str>,
        management: Option<&str>,
    ) -> Result<Self, SettingsError> {
        let list = |text: &str| -> Vec<String> {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let mut config = Self::new(edge, "");
        let mut bad = Vec::new();
        config.amqp = list(amqp);
        config.management = management.map(str::trim).filter(|uri| !uri.is_empty()).map(str::to_owned);
        for address in stream.map(list).unwrap_or_default() {
            let (tls, rest) = match address.split_once("://") {
                None => (false, address.as_str()),
                Some(("rabbitmq-stream", rest)) => (false, rest),
                Some(("rabbitmq-stream+tls", rest)) => (true, rest),
                Some((scheme, _)) => {
                    bad.push(format!("stream: scheme {scheme} is neither rabbitmq-stream nor rabbitmq-stream+tls"));
                    continue;
                }
            };
            config.stream_tls |= tls;
            let authority = rest.split('/').next().unwrap_or_default();
            let host_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            match host_port.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
                Some((host, Ok(port))) if !host.is_empty() => {
                    config.stream.get_or_insert_default().push((host.to_owned(), port));
                }
                _ => bad.push(format!("stream: {host_port} is not host:port")),
            }
        }
        match config.check() {
            Ok(_) if bad.is_empty() => Ok(config),
            Ok(_) => Err(SettingsError(bad)),
            Err(SettingsError(more)) => Err(SettingsError([bad, more].concat())),
        }
    }

    /// What the broker is reached by, parsed.
    pub(super) fn check(&self) -> Result<Checked, SettingsError> {
        let mut bad = Vec::new();
        let mut addresses: Vec<Address> = Vec::new();
        for (index, text) in self.amqp.iter().enumerate() {
            // The URI itself contains a password: errors name its position in the list.
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(reason) => bad.push(format!("amqp: URI {} of {}: {reason}", index + 1, self.amqp.len())),
            }
        }
        if self.amqp.is_empty() {
            bad.push("amqp: no URI; give amqp://user:password@host:5672/vhost".to_owned());
        }
        if addresses.windows(2).any(|pair| pair[0].vhost() != pair[1].vhost()) {
            bad.push("amqp: the URIs name different vhosts".to_owned());
        }
        if self.edge.is_empty() || self.edge.len() > MAX_EDGE_NAME {
            bad.push(format!("edge: a name has 1 to {MAX_EDGE_NAME} bytes, not {}", self.edge.len()));
        }
        if self.stream.as_ref().is_some_and(Vec::is_empty) {
            bad.push("stream: no address; give host:port or leave it out".to_owned());
        }
        let https = self.management.as_deref().is_some_and(|url| url.starts_with("https://"));
        let tls_files = TlsFiles { ca: self.ca_file.clone(), client: self.client_files.clone() };
        let needed =
            tls_files != TlsFiles::default() || self.stream_tls || https || addresses.iter().any(Address::is_tls);
        let tls = Arc::new(BrokerTls::new(tls_files.clone()));
        if needed && let Err(error) = tls.client_tls() {
            bad.push(format!("TLS: {error}"));
        }
        let files = CredentialFiles { user: self.username_file.clone(), password: self.password_file.clone() };
        for (name, files) in [
            ("username_file", CredentialFiles { password: None, ..files.clone() }),
            ("password_file", CredentialFiles { user: None, ..files.clone() }),
        ] {
            if let Err(error) = files.check() {
                bad.push(format!("{name}: {error}"));
            }
        }
        let management = addresses.first().zip(self.management.as_deref()).map(|(address, url)| {
            ManagementClient::new(ManagementSettings {
                url: with_default_port(url),
                vhost: address.vhost().to_owned(),
                credentials: (!names_a_user(url)).then(|| Credentials { login: address.login(), files: files.clone() }),
                tls: tls_files.clone(),
                timeout: Some(alarm::TIMEOUT),
            })
        });
        let management = management.transpose().unwrap_or_else(|error| {
            bad.push(format!("management: {error}"));
            None
        });
        for (name, value, max) in [
            ("connections", self.connections, MAX_CONNECTIONS),
            ("lane_messages", self.lane_messages, 1 << 20),
            ("waiting_bytes", self.waiting_bytes, usize::MAX),
            ("event_capacity", self.event_capacity, 1 << 20),
            ("prefetch", usize::from(self.prefetch), usize::from(u16::MAX)),
        ] {
            if value == 0 || value > max {
                bad.push(format!("{name}: {value} is not within 1 to {max}"));
            }
        }
        if bad.is_empty() { Ok(Checked { addresses, tls, management, files }) } else { Err(SettingsError(bad)) }
    }
}

impl fmt::Debug for Config {
    /// Without the URIs, which contain passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self
            .amqp
            .iter()
            .filter_map(|uri| uri.parse::<Address>().ok())
            .map(|address| format!("{}/{}", address.host_and_port(), address.vhost()))
            .collect();
        f.debug_struct("Config")
            .field("edge", &self.edge)
            .field("amqp", &hosts)
            .field("stream", &self.stream)
            .field("management", &self.management.is_some())
            .field("username_file", &self.username_file)
            .field("password_file", &self.password_file)
            .field("ca_file", &self.ca_file)
            .field("client_files", &self.client_files)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

/// Every setting that is wrong, each with a remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad broker settings: {}", .0.join("; "))]
pub struct SettingsError(pub Vec<String>);

/// What [`Config::check`] made.
pub(super) struct Checked {
    pub(super) addresses: Vec<Address>,
    pub(super) tls: Arc<BrokerTls>,
    pub(super) management: Option<ManagementClient>,
    pub(super) files: CredentialFiles,
}

/// Whether the URL contains a user.
fn names_a_user(url: &str) -> bool {
    url.split('/').nth(2).is_some_and(|authority| authority.contains('@'))
}

/// The URL with RabbitMQ's own port where it names none.
fn with_default_port(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // Colons of an IPv6 address stand in brackets.
    if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        return url.to_owned();
    }
    let port = if scheme == "https" { 15671 } else { 15672 };
    format!("{scheme}://{authority}:{port}{path}")
}

impl From<SettingsError> for io::Error {
    fn from(bad: SettingsError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bad_settings_are_reported_together_and_no_password_is_shown() {
        let mut config = Config::new("", "amqp://u:hunter2@h/a");
        config.amqp.push("http://u:hunter2@h/a".into());
        config.amqp.push("amqp://u:hunter2@h/b".into());
        config.ca_file = Some("/nowhere/ca".into());
        config.management = Some("ftp://u:hunter2@h".into());
        config.password_file = Some("/nowhere/password".into());
        config.connections = 0;
        let Err(SettingsError(bad)) = config.check() else { panic!("accepted") };
        for name in ["amqp: URI 2", "amqp: the URIs", "edge:", "TLS:", "management:", "password_file:", "connections:"]
        {
            assert!(bad.iter().any(|line| line.starts_with(name)), "{name} is missing in {bad:#?}");
        }
        assert!(!format!("{bad:?} {config:?}").contains("hunter2"));
    }

    #[test]
    fn flags_and_variables_are_parsed() {
        let config = Config::parse(
            "e1",
            "amqp://a:b@one:5672/v, amqp://a:b@two/v",
            Some("rabbitmq-stream://a:b@one:5552,two:5553"),
            Some("http://a:b@one:15672"),
        )
        .unwrap();
        assert_eq!(config.amqp.len(), 2);
        assert_eq!(config.stream, Some(vec![("one".into(), 5552), ("two".into(), 5553)]));
        assert!(!config.stream_tls);
        let bad = Config::parse("e1", "", Some("one,ftp://two:1"), None).unwrap_err();
        assert_eq!(bad.0.len(), 3, "{bad}");
    }

    #[test]
    fn without_a_ca_file_the_cas_of_the_operating_system_are_trusted() {
        let streams = Some("rabbitmq-stream+tls://one:5551");
        let config = Config::parse("e1", "amqps://a:b@one/v", streams, Some("https://one")).unwrap();
        assert!(config.check().is_ok_and(|checked| checked.tls.client_tls().is_ok()));
    }

    #[test]
    fn the_management_api_is_asked_at_its_own_port_unless_another_is_named() {
        for (given, asked) in [
            ("http://host", "http://host:15672"),
            ("https://u:p@host/prefix", "https://u:p@host:15671/prefix"),
            ("http://host:80/", "http://host:80/"),
            ("http://[::1]", "http://[::1]:15672"),
            ("http://u:1@[::1]:9", "http://u:1@[::1]:9"),
        ] {
            assert_eq!(with_default_port(given), asked);
        }
    }
}
