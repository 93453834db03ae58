//! An AMQP 0-9-1 connection by lapin, with a time limit.
//!
//! lapin waits without limit in several places, among them an unanswered handshake and a socket that takes no bytes, each time with a
//! thread of its own. So the socket is known here as well, and shutting it down ends whatever waits on it.

use std::{
    fmt, io,
    net::{Shutdown, TcpStream},
    ops::Deref,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lapin::{AsyncTcpStream, ConnectionProperties, tcp::RustlsConnector, uri::AMQPUri};
use tokio::{net::lookup_host, time::timeout};

use crate::Endpoint;

/// Longest time for name look-up, TCP and TLS.
const DIAL_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest time for those and AMQP's handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An open connection; it derefs to lapin's. Channels made from it end with it.
pub struct Connection {
    connection: lapin::Connection,
    socket: Arc<Socket>,
}

/// No connection. A retry may help.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network, TLS or the broker refused it.
    #[error("cannot connect to {place}: {cause}")]
    Refused {
        /// `host:port`.
        place: String,
        /// What lapin reports.
        cause: Box<lapin::Error>,
    },
    /// Neither success nor failure in time.
    #[error("cannot connect to {place}: no answer within {CONNECT_TIMEOUT:?}")]
    Timeout {
        /// `host:port`.
        place: String,
    },
}

impl Connection {
    /// Connects within 5 s. After that, or when the future is dropped, the socket is shut down. A connection that brings nothing for two
    /// `heartbeat`s is lost; lapin and RabbitMQ agree on whole seconds.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(endpoint: &Endpoint, heartbeat: Duration) -> Result<Self, ConnectError> {
        let place = endpoint.address().host_and_port();
        let refused = |error: lapin::Error| ConnectError::Refused { place: place.clone(), cause: Box::new(error) };
        let mut uri = endpoint.address().uri();
        uri.query.heartbeat = Some(u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX));
        let socket = Arc::new(Socket::default());
        let mut guard = CloseUnlessKept(Some(Arc::clone(&socket)));
        let runtime = lapin::runtime::default_runtime().map_err(refused)?;
        let tls: Option<RustlsConnector> = endpoint.tls().map(|tls| Arc::clone(tls).into());
        let dial = {
            let (socket, runtime) = (Arc::clone(&socket), runtime.clone());
            // Runs on lapin's thread: a dropped attempt does not end it, its own timeout does.
            async move |uri: AMQPUri, _| {
                let dialing = async {
                    let address = (uri.authority.host.as_str(), uri.authority.port);
                    let addresses: Vec<_> = lookup_host(address).await?.collect();
                    let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        let second = TcpStream::from(plain.get_ref().as_fd().try_clone_to_owned()?);
                        if !socket.opened(second) {
                            return Err(io::ErrorKind::ConnectionAborted.into());
                        }
                    }
                    match &tls {
                        None => Ok(stream),
                        Some(connector) => stream.into_rustls(connector, &uri.authority.host).await,
                    }
                };
                let dialed = timeout(DIAL_TIMEOUT, dialing).await;
                dialed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(lapin::Error::from)
            }
        };
        let properties = ConnectionProperties::default().with_connection_name(endpoint.name().into());
        let connecting = lapin::Connection::connector(uri, runtime, dial, properties);
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => {
                guard.0 = None;
                Ok(Self { connection, socket })
            }
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(ConnectError::Timeout { place }),
        }
    }

    /// Whether it is open, as far as lapin has noticed.
    pub fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    /// Shuts the socket down without a close of the protocol: for a peer that answers nothing.
    pub fn cut(&self) {
        self.socket.cut();
    }
}

impl Deref for Connection {
    type Target = lapin::Connection;

    fn deref(&self) -> &lapin::Connection {
        &self.connection
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("open", &self.is_open()).finish_non_exhaustive()
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

    fn cut(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.cut = true;
        if let Some(socket) = state.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Cuts the socket of an attempt that was given up, also when its future is dropped.
struct CloseUnlessKept(Option<Arc<Socket>>);

impl Drop for CloseUnlessKept {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            socket.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    #[tokio::test]
    async fn an_attempt_that_is_given_up_leaves_no_open_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("amqp://u:p@{}/", listener.local_addr().unwrap());
        let endpoint = Endpoint::new(uri.parse().unwrap(), None, "test").unwrap();
        let attempt = tokio::spawn(async move { Connection::open(&endpoint, Duration::from_secs(4)).await.err() });
        // The protocol header arrives and is never answered.
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut header = [0; 8];
        socket.read_exact(&mut header).await.unwrap();
        attempt.abort();
        let read = timeout(Duration::from_secs(5), socket.read(&mut header)).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "the socket is still open: {read:?}");
    }
}
