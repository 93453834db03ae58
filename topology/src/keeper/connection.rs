//! One AMQP connection, made when it is needed and again when it is lost.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use lapin::{
    Connection, ConnectionProperties,
    tcp::OwnedTLSConfig,
    uri::{AMQPScheme, AMQPUri},
};
use tokio::time::timeout;
use wirepost_topology::Credentials;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds; a connection that brings nothing for two of them is dead.
const HEARTBEAT: u16 = 10;
/// In the broker's list of connections.
const NAME: &str = "wirepost-operator";

/// `amqp(s)://user:password@host:port/vhost`, without a way to print the password.
#[derive(Clone)]
pub struct Address(AMQPUri);

/// It is not one. Says nothing of its content, which may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("not an AMQP address: {0}; write amqp://user:password@host:5672/vhost")]
pub struct BadAddress(String);

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}, vhost {}", self.host(), self.port(), self.vhost())
    }
}

impl std::str::FromStr for Address {
    type Err = BadAddress;

    /// Of several, divided by commas, the first.
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let first = text.split(',').next().unwrap_or_default().trim();
        first.parse().map(Self).map_err(BadAddress)
    }
}

impl Address {
    /// The vhost.
    pub fn vhost(&self) -> &str {
        &self.0.vhost
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.0.authority.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.authority.port
    }

    /// `amqp` or `amqps`.
    pub fn scheme(&self) -> &'static str {
        match self.0.scheme {
            AMQPScheme::AMQP => "amqp",
            AMQPScheme::AMQPS => "amqps",
        }
    }

    /// User and password.
    pub fn user(&self) -> (&str, &str) {
        let info = &self.0.authority.userinfo;
        (&info.username, &info.password)
    }
}

/// See the module.
pub(super) struct Link {
    address: Address,
    credentials: Option<Credentials>,
    ca_file: Option<PathBuf>,
    connection: Option<Arc<Connection>>,
}

impl Link {
    pub(super) fn new(address: Address, credentials: Option<Credentials>, ca_file: Option<PathBuf>) -> Self {
        Self { address, credentials, ca_file, connection: None }
    }

    /// A connection that works, as far as can be known.
    pub(super) async fn get(&mut self) -> Result<Arc<Connection>, String> {
        if let Some(connection) = self.connection.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(Arc::clone(connection));
        }
        let uri = self.uri().await?;
        let cert_chain = match &self.ca_file {
            Some(file) => Some(
                tokio::fs::read_to_string(file)
                    .await
                    .map_err(|error| format!("reading {}: {error}", file.display()))?,
            ),
            None => None,
        };
        let tls = OwnedTLSConfig { identity: None, cert_chain };
        let properties = ConnectionProperties::default().with_connection_name(NAME.into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| error.to_string())?;
        let connecting = Connection::connect_uri_with_config(uri, properties, tls, runtime);
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(format!("cannot connect to {:?}: {error}", self.address)),
            Err(_) => {
                return Err(format!("cannot connect to {:?}: no answer within {CONNECT_TIMEOUT:?}", self.address));
            }
        };
        Ok(Arc::clone(self.connection.insert(Arc::new(connection))))
    }

    /// Where to connect without it, with the credentials that hold now.
    pub(super) async fn address(&self) -> Result<wirepost_amqp::Address, String> {
        let uri = self.uri().await?;
        let tls = self.ca_file.as_deref().map(|file| wirepost_amqp::client_tls(Some(file))).transpose();
        let tls = tls.map_err(|error| error.to_string())?;
        wirepost_amqp::Address::new(&uri, tls, NAME).map_err(|error| error.to_string())
    }

    async fn uri(&self) -> Result<AMQPUri, String> {
        let mut uri = self.address.0.clone();
        uri.query.heartbeat = Some(HEARTBEAT);
        if let Some(credentials) = &self.credentials {
            let (user, password) = credentials.read("connecting").await.map_err(|error| error.to_string())?;
            uri.authority.userinfo.username = user;
            uri.authority.userinfo.password = password;
        }
        Ok(uri)
    }

    /// It does not answer.
    pub(super) fn drop(&mut self) {
        self.connection = None;
    }
}
