//! One AMQP connection, opened when it is needed and again when it is lost.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use wirepost_rabbitmq::{Address, CaCertificates, Connection, Credentials, Endpoint};

use crate::Error;

/// A connection that brings nothing for two of these is lost.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// See the module.
pub struct LazyConnection {
    address: Address,
    credentials: Option<Credentials>,
    ca: CaCertificates,
    /// In the broker's list of connections.
    name: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Taken while connecting, so that several callers share one attempt.
    connecting: tokio::sync::Mutex<()>,
}

impl LazyConnection {
    /// Does not connect yet. `credentials` take precedence over the login of the address.
    pub fn new(
        address: Address,
        credentials: Option<Credentials>,
        ca_file: Option<PathBuf>,
        name: &'static str,
    ) -> Self {
        Self {
            address,
            credentials,
            ca: CaCertificates::new(ca_file),
            name,
            connection: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// A connection that works, as far as can be known. Takes at most 5 s, or twice that behind another caller.
    ///
    /// # Errors
    /// The broker can't be reached, or refuses.
    pub(crate) async fn get(&self) -> Result<Arc<Connection>, Error> {
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = self.slot().as_ref().filter(|connection| connection.is_open()) {
            return Ok(Arc::clone(connection));
        }
        let endpoint = self.endpoint()?;
        let connection =
            Connection::open(&endpoint, HEARTBEAT).await.map_err(|error| self.failed(error.to_string()))?;
        Ok(Arc::clone(self.slot().insert(Arc::new(connection))))
    }

    /// It does not answer: the next caller gets another one.
    pub(crate) fn discard(&self) {
        *self.slot() = None;
    }

    /// Where to connect without it, with the credentials and CA certificates that are valid now.
    ///
    /// # Errors
    /// The credentials or certificates can't be read.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, Error> {
        let mut address = self.address.clone();
        if let Some(credentials) = &self.credentials {
            address = address.with_login(credentials.read().map_err(|error| self.failed(error.to_string()))?);
        }
        Endpoint::new(address, Some(&self.ca), self.name).map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&self, cause: String) -> Error {
        Error::Amqp { doing: format!("connecting to {}", self.address), cause }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
