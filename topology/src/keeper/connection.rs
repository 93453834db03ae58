//! One AMQP connection, opened when it is needed and again when it is lost.
//!
//! AMQP may be unreachable while the management API answers (a network policy, a broker that takes no connections). Then work that needs
//! AMQP is postponed, and nothing else waits for it: attempts to connect become rare, and callers in between get the last failure.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use wirepost_rabbitmq::{Address, BrokerTls, Connection, Credentials, Endpoint, TlsFiles};

use super::{Event, actor::Context};
use crate::Error;

/// A connection that brings nothing for two of these is lost.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// After a failed attempt; doubled up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_secs(2);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// See the module.
pub struct LazyConnection {
    address: Address,
    credentials: Option<Credentials>,
    tls: BrokerTls,
    /// In the broker's list of connections.
    name: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Taken while connecting, so that several callers share one attempt.
    connecting: tokio::sync::Mutex<Option<Attempt>>,
    /// Whether the last attempt worked; `None` = there was none.
    works: Mutex<Option<bool>>,
}

/// The last attempt, which failed.
struct Attempt {
    cause: String,
    /// No further attempt before.
    again_at: Instant,
    /// Until then.
    pause: Duration,
}

impl LazyConnection {
    /// Does not connect yet. `credentials` take precedence over the login of the address.
    pub fn new(address: Address, credentials: Option<Credentials>, tls: TlsFiles, name: &'static str) -> Self {
        Self {
            address,
            credentials,
            tls: BrokerTls::new(tls),
            name,
            connection: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            works: Mutex::default(),
        }
    }

    /// A connection that works, as far as can be known. Takes at most 5 s, or twice that behind another caller.
    ///
    /// # Errors
    /// The broker can't be reached, or refuses.
    pub(crate) async fn get(&self) -> Result<Arc<Connection>, Error> {
        let mut failed = self.connecting.lock().await;
        if let Some(connection) = self.slot().as_ref().filter(|connection| connection.is_open()) {
            return Ok(Arc::clone(connection));
        }
        if let Some(attempt) = failed.as_ref().filter(|attempt| Instant::now() < attempt.again_at) {
            return Err(self.failed(attempt.cause.clone()));
        }
        let endpoint = self.endpoint()?;
        match Connection::open(&endpoint, HEARTBEAT).await {
            Ok(connection) => {
                *failed = None;
                Ok(Arc::clone(self.slot().insert(Arc::new(connection))))
            }
            Err(error) => {
                let pause = failed.as_ref().map_or(PAUSE, |attempt| (attempt.pause * 2).min(MAX_PAUSE));
                let cause = error.to_string();
                *failed = Some(Attempt { cause: cause.clone(), again_at: Instant::now() + pause, pause });
                Err(self.failed(cause))
            }
        }
    }

    /// Whether that is a change.
    fn found(&self, works: bool) -> bool {
        let before = self.works.lock().unwrap_or_else(PoisonError::into_inner).replace(works);
        before.unwrap_or(true) != works
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
        Endpoint::new(address, Some(&self.tls), self.name).map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&self, cause: String) -> Error {
        Error::Amqp { doing: format!("connecting to {}", self.address), cause }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Context {
    /// The AMQP connection. A failure is logged and reported, once.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, Error> {
        let connection = self.amqp.get().await;
        if let Err(error) = &connection {
            self.amqp_found(Err(error));
        }
        connection
    }

    /// Asks something by AMQP. A panic is an error of this question; it says nothing about the broker.
    pub(super) async fn by_amqp<T, F: Future<Output = Result<T, Error>>>(
        &self,
        ask: impl FnOnce(Arc<Connection>) -> F,
    ) -> Result<T, Error> {
        let asked = async {
            let answer = ask(self.connection().await?).await;
            self.amqp_found(answer.as_ref().map(|_| ()));
            answer
        };
        let answer = self.contained("a question by AMQP", asked).await;
        if answer.is_err() {
            self.amqp.discard();
        }
        answer
    }

    fn amqp_found(&self, result: Result<(), &Error>) {
        self.owner.report(Event::Amqp(result.is_ok()));
        if self.amqp.found(result.is_ok()) {
            match result {
                Ok(()) => tracing::info!("the broker answers by AMQP again"),
                Err(error) => tracing::warn!(
                    %error,
                    "the broker does not answer by AMQP: messages are neither counted nor moved back from unrouted, and queues that should be deleted stay"
                ),
            }
        }
    }
}
