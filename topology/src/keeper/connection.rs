//! One AMQP connection, opened when it is needed and again when it is lost.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::{
    Connection, ConnectionProperties,
    tcp::OwnedTLSConfig,
    uri::{AMQPScheme, AMQPUri},
};
use tokio::time::timeout;

use crate::{Credentials, Error};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds; a connection that brings nothing for two of them is dead.
const HEARTBEAT: u16 = 10;

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
pub struct LazyConnection {
    address: Address,
    credentials: Option<Credentials>,
    ca_file: Option<PathBuf>,
    /// In the broker's list of connections.
    name: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Taken while connecting, so that several callers share one attempt.
    connecting: tokio::sync::Mutex<()>,
}

impl LazyConnection {
    /// Connects nowhere yet.
    pub fn new(
        address: Address,
        credentials: Option<Credentials>,
        ca_file: Option<PathBuf>,
        name: &'static str,
    ) -> Self {
        Self {
            address,
            credentials,
            ca_file,
            name,
            connection: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// A connection that works, as far as can be known. Within [`CONNECT_TIMEOUT`], or twice that behind another caller.
    ///
    /// # Errors
    /// The broker can't be reached, or refuses.
    pub(crate) async fn get(&self) -> Result<Arc<Connection>, Error> {
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = self.slot().as_ref().filter(|connection| connection.status().connected()) {
            return Ok(Arc::clone(connection));
        }
        let uri = self.uri().await?;
        let cert_chain = match &self.ca_file {
            Some(file) => Some(
                tokio::fs::read_to_string(file)
                    .await
                    .map_err(|error| self.failed(format!("reading {}: {error}", file.display())))?,
            ),
            None => None,
        };
        let tls = OwnedTLSConfig { identity: None, cert_chain };
        let properties = ConnectionProperties::default().with_connection_name(self.name.into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| self.failed(error.to_string()))?;
        let connecting = Connection::connect_uri_with_config(uri, properties, tls, runtime);
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| self.failed(error.to_string()))?,
            Err(_) => return Err(self.failed(format!("no answer within {CONNECT_TIMEOUT:?}"))),
        };
        Ok(Arc::clone(self.slot().insert(Arc::new(connection))))
    }

    /// It does not answer: the next caller gets another one.
    pub(crate) fn discard(&self) {
        *self.slot() = None;
    }

    /// Where to connect without it, with the credentials that are valid now.
    ///
    /// # Errors
    /// The credentials or certificates can't be read.
    pub(crate) async fn address(&self) -> Result<wirepost_amqp::Address, Error> {
        let uri = self.uri().await?;
        let tls = self.ca_file.as_deref().map(|file| wirepost_amqp::client_tls(Some(file))).transpose();
        let tls = tls.map_err(|error| self.failed(error.to_string()))?;
        wirepost_amqp::Address::new(&uri, tls, self.name).map_err(|error| self.failed(error.to_string()))
    }

    async fn uri(&self) -> Result<AMQPUri, Error> {
        let mut uri = self.address.0.clone();
        uri.query.heartbeat = Some(HEARTBEAT);
        if let Some(credentials) = &self.credentials {
            let (user, password) = credentials.read("connecting").await?;
            uri.authority.userinfo.username = user;
            uri.authority.userinfo.password = password;
        }
        Ok(uri)
    }

    fn failed(&self, cause: String) -> Error {
        Error::Amqp { doing: format!("cannot connect to {:?}", self.address), cause }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
