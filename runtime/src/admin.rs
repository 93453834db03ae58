//! Serves the admin port. Whoever watches a process asks here whether it lives, so an answer must come while the process is able to give
//! one: connections that ask nothing make room for one that may, and descriptors are kept for it.

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

use axum::{Router, http::Request};
use futures_util::FutureExt;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::descriptors;

/// Open connections at most; for one more, one goes that waits for a request.
pub const CONNECTIONS: usize = 64;
/// Longest time for a request's header, and between two requests of a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest header.
const MAX_HEADER: usize = 16 << 10;
/// After a failed accept; without it a process out of descriptors would spin.
const PAUSE: Duration = Duration::from_millis(10);

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

    /// Where it listens; with the real port where port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until cancelled, lets requests in progress end for as long as a header may take, and returns.
    pub async fn serve(self, router: Router, cancel: CancellationToken) {
        let tasks = TaskTracker::new();
        let service = TowerToHyperService::new(router);
        let mut guests = Guests::default();
        while let Some(stream) = cancel.run_until_cancelled(self.accept(&mut guests)).await {
            guests.make_room(CONNECTIONS - 1);
            let guest = guests.enter();
            tasks.spawn(guest.stay(stream, service.clone(), cancel.clone()));
        }
        drop(self.socket);
        tasks.close();
        if timeout(HEADER_TIMEOUT, tasks.wait()).await.is_err() {
            guests.leave();
            tasks.wait().await;
        }
    }

    async fn accept(&self, guests: &mut Guests) -> TcpStream {
        let mut told = false;
        loop {
            let mut accepted = self.socket.accept().await;
            if accepted.as_ref().is_err_and(descriptors::have_run_out) {
                let again = descriptors::with_reserved(|| self.socket.accept().now_or_never());
                accepted = match again {
                    Some(accepted) => accepted,
                    // The connection is gone.
                    None => continue,
                };
            }
            match accepted {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::error!(%error, address = %self.address, "the admin port can't accept a connection");
                    }
                    // What the reserve was spent on.
                    guests.make_room(guests.0.len().saturating_sub(1));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Connections, the oldest first.
#[derive(Default)]
struct Guests(VecDeque<Guest>);

/// A connection.
#[derive(Clone)]
struct Guest {
    /// A request of it is being answered.
    busy: Arc<AtomicBool>,
    /// Ends it.
    cut: CancellationToken,
}

impl Guests {
    fn enter(&mut self) -> Guest {
        let guest = Guest { busy: Arc::default(), cut: CancellationToken::new() };
        self.0.push_back(guest.clone());
        guest
    }

    /// Cuts the oldest, those first that ask nothing, until at most `most` are left.
    fn make_room(&mut self, most: usize) {
        self.0.retain(|guest| !guest.cut.is_cancelled());
        while self.0.len() > most {
            let idle = self.0.iter().position(|guest| !guest.busy.load(Ordering::Relaxed));
            if let Some(guest) = self.0.remove(idle.unwrap_or(0)) {
                guest.cut.cancel();
            }
        }
    }

    fn leave(&mut self) {
        self.make_room(0);
    }
}

impl Guest {
    async fn stay(self, stream: TcpStream, service: TowerToHyperService<Router>, cancel: CancellationToken) {
        // However it ends: who is cut is no longer counted.
        let _left = self.cut.clone().drop_guard();
        let busy = self.busy;
        let service = service_fn(move |request: Request<Incoming>| {
            busy.store(true, Ordering::Relaxed);
            let (busy, answer) = (Arc::clone(&busy), service.call(request));
            async move {
                let answer = answer.await;
                busy.store(false, Ordering::Relaxed);
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.cut.cancelled() => return,
            () = cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection => result,
                    () = self.cut.cancelled() => return,
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection to the admin port ended");
        }
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
        let router = Router::new().route("/livez", get(async || "ok")).route(
            "/wait",
            get(async move || {
                waits.cancelled().await;
                "waited"
            }),
        );
        let server = tokio::spawn(port.serve(router, cancel.clone()));
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
                assert!(answer.ends_with("ok"), "{answer}");
            }
        }
        assert!(timeout(PATIENCE, ask(address)).await.unwrap().unwrap().ends_with("ok"));
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
