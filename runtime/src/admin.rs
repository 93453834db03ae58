//! The admin port: probes and metrics of a process, and what else it shows to those who run it. Bound apart from public ports and never
//! exposed with them.
//!
//! An answer must come while the process is able to give one: idle connections are closed in favour of new ones, and file descriptors are
//! reserved for it.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::ConnectInfo,
    http::{Request, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use futures_util::FutureExt;
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::service::TowerToHyperService;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::{Accept, Acceptor},
    descriptors,
    http1::{self, Ends, Limits},
    readiness::Readiness,
    tasks::Supervisor,
};

/// Open connections at most; one more closes one that waits for a request.
pub const CONNECTIONS: usize = 64;
/// The header of a request is small and comes at once.
const LIMITS: Limits = Limits { header_timeout: Duration::from_secs(10), max_header: 16 << 10 };
/// Longest pause after a failed accept: probes time out after a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// What `prometheus_client` encodes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `/livez`, `/readyz` and `/metrics`; a program merges what else it shows. `metrics`: OpenMetrics text.
///
/// `/livez` shows the process alone: it answers, so it need not be restarted. Whatever else is wrong, a restart would only cut clients off.
pub fn routes(readiness: Readiness, metrics: impl Fn() -> String + Clone + Send + Sync + 'static) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || ready(&readiness)))
        .route("/metrics", get(async move || ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics())))
}

fn ready(readiness: &Readiness) -> impl IntoResponse + use<> {
    let pending = readiness.pending();
    if pending.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("pending: {}\n", pending.join(", ")))
    }
}

/// A bound admin port.
#[derive(Debug)]
pub struct AdminPort {
    socket: TcpListener,
    address: SocketAddr,
}

impl AdminPort {
    /// Binds it.
    ///
    /// # Errors
    /// It is taken or not ours to take.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self { address: socket.local_addr()?, socket })
    }

    /// Where it listens; with the real port if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until cancelled, lets requests in progress end for as long as a header may take, and returns.
    pub async fn serve(self, router: Router, closing: CancellationToken, supervisor: Supervisor) {
        let Self { socket, address } = self;
        let connections = supervisor.tasks();
        let service = TowerToHyperService::new(router);
        let mut open = OpenConnections::default();
        let mut acceptor = Acceptor::new(WithReserve(socket), LONGEST_PAUSE);
        let mut reported = false;
        loop {
            let failed = |error: &io::Error| {
                if !std::mem::replace(&mut reported, true) {
                    tracing::error!(%error, %address, "the admin port can't accept a connection");
                }
                // What the reserve was spent on.
                open.reduce_to(open.0.len().saturating_sub(1));
            };
            let Some((stream, peer)) = closing.run_until_cancelled(acceptor.next(failed)).await else { break };
            reported = false;
            open.reduce_to(CONNECTIONS - 1);
            let connection = open.add(&closing);
            connections.contained("admin connection", connection.serve(stream, peer, service.clone()));
        }
        drop(acceptor);
        if connections.finished_by(Instant::now() + LIMITS.header_timeout).await.is_err() {
            open.reduce_to(0);
            // They end at once.
            let _ = timeout(LIMITS.header_timeout, connections.finished()).await;
        }
    }
}

/// Accepts with the reserved file descriptors if no others are left.
struct WithReserve(TcpListener);

impl Accept for WithReserve {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let mut accepted = self.0.accept().await;
            if accepted.as_ref().is_err_and(descriptors::have_run_out) {
                let again = descriptors::with_reserved(|| self.0.accept().now_or_never());
                // `None`: the connection is gone.
                let Some(again) = again else { continue };
                accepted = again;
            }
            return accepted;
        }
    }
}

/// The open connections, the oldest first.
#[derive(Default)]
struct OpenConnections(VecDeque<Connection>);

#[derive(Clone)]
struct Connection {
    /// A request of it is being answered.
    busy: Arc<AtomicBool>,
    ends: Ends,
}

impl OpenConnections {
    fn add(&mut self, closing: &CancellationToken) -> Connection {
        let ends = Ends { closing: closing.clone(), cut: CancellationToken::new() };
        let connection = Connection { busy: Arc::default(), ends };
        self.0.push_back(connection.clone());
        connection
    }

    /// Cuts the oldest, idle ones first, until at most `most` are left.
    fn reduce_to(&mut self, most: usize) {
        self.0.retain(|connection| !connection.ends.cut.is_cancelled());
        while self.0.len() > most {
            let idle = self.0.iter().position(|connection| !connection.busy.load(Ordering::Relaxed));
            if let Some(connection) = self.0.remove(idle.unwrap_or(0)) {
                connection.ends.cut.cancel();
            }
        }
    }
}

impl Connection {
    async fn serve(self, stream: TcpStream, peer: SocketAddr, service: TowerToHyperService<Router>) {
        let Self { busy, ends } = self;
        // However it ends, it is no longer counted.
        let _ended = ends.cut.clone().drop_guard();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            busy.store(true, Ordering::Relaxed);
            let (busy, answer) = (Arc::clone(&busy), service.call(request));
            async move {
                let answer = answer.await;
                busy.store(false, Ordering::Relaxed);
                answer
            }
        });
        http1::serve(stream, service, LIMITS, &ends).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn ask(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn connections_that_ask_nothing_do_not_keep_a_probe_out() {
        let port = AdminPort::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = port.local_addr();
        let cancel = CancellationToken::new();
        let wait = CancellationToken::new();
        let waits = wait.clone();
        let router = routes(Readiness::default(), String::new).route(
            "/wait",
            get(async move || {
                waits.cancelled().await;
                "waited"
            }),
        );
        let server = tokio::spawn(port.serve(router, cancel.clone(), Supervisor::default()));
        let mut waiting = TcpStream::connect(address).await.unwrap();
        waiting.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        // Silent ones, and ones that never end their header.
        let mut idle = Vec::new();
        for n in 0..CONNECTIONS * 2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if n % 2 == 0 {
                // It may have been cut already.
                let _ = stream.write_all(b"GET /livez HT").await;
            }
            idle.push(stream);
            if n % 16 == 0 {
                let answer = timeout(PATIENCE, ask(address)).await.unwrap().unwrap();
                assert!(answer.ends_with("ok\n"), "{answer}");
            }
        }
        assert!(timeout(PATIENCE, ask(address)).await.unwrap().unwrap().ends_with("ok\n"));
        // One whose request is being answered was left alone.
        wait.cancel();
        let mut answer = String::new();
        timeout(PATIENCE, waiting.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("waited"), "{answer}");
        drop(idle);
        cancel.cancel();
        timeout(PATIENCE, server).await.unwrap().unwrap();
    }
}
