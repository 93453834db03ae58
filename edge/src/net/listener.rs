//! Accepts connections of the public port, with or without TLS, and passes each to a task of its own
//! ([`super::connection`]). Limits: connections that have not been let in, and those of one address.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use futures_util::FutureExt;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_runtime::{
    accept::{Accept, Acceptor},
    http1::Ends,
    tasks::Supervisor,
};

use super::{
    connection::Server,
    tls::{Certificate, TlsError},
};
use crate::{
    address::{ClientAddress, limits::AddressLimits},
    config::{reload, settings::Settings},
    http::socket::direct::Direct,
    metrics::{Metrics, label},
    strangers::{Place, Strangers},
};

/// Connections that wait to be accepted: one second's worth when the clients of another edge reconnect here.
const BACKLOG: u32 = 4096;
/// Bytes that the kernel buffers for a peer that does not read (it doubles the number, socket(7)). By default it would
/// grow to megabytes for each slow client, outside all our bounds; this size still allows 5 MB/s at 100 ms.
const SEND_BUFFER: u32 = 256 << 10;
/// Bytes that the kernel takes for a peer beyond what is on its way to it. Without it a peer that does not read costs
/// [`SEND_BUFFER`] twice, which a container's memory limit counts.
const UNSENT: u32 = 32 << 10;
/// How long connections that wait to be accepted are still accepted at the end: closing the port would reset them. The
/// first is the longest pause between two of them, in which the kernel's queue is found empty.
const LAST_ACCEPTS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest pause after a failed accept.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why an edge can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is in use, or not permitted.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No certificate at the start.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    certificate: Option<Arc<Certificate>>,
    header_timeout: Duration,
    doors: Doors,
    metrics: Arc<Metrics>,
    direct: Option<Direct>,
}

/// Who may come in at the same time.
#[derive(Clone, Debug)]
pub struct Doors {
    /// Places of those that have not been let in.
    pub strangers: Arc<Strangers>,
    /// Limits of each address.
    pub addresses: Arc<AddressLimits>,
}

impl Doors {
    /// As set.
    pub fn new(settings: &Settings, metrics: &Arc<Metrics>) -> Self {
        let strangers = Strangers::new(settings.strangers(), settings.handshake_bytes, Arc::clone(metrics));
        let addresses = AddressLimits::new(settings.proxies.clone(), settings.address_limits, Arc::clone(metrics));
        Self { strangers: Arc::new(strangers), addresses: Arc::new(addresses) }
    }
}

impl Listener {
    /// Binds the public port.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(settings: &Settings, doors: Doors, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let certificate = match &settings.tls {
            Some(files) => Some(Certificate::load(files).await?),
            None => None,
        };
        let address = settings.listen;
        let listen = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            // Sockets inherit all of them. Frames are small and complete: waiting for more would only delay them.
            socket.set_send_buffer_size(SEND_BUFFER)?;
            socket.set_nodelay(true)?;
            SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT)?;
            socket.bind(address)?;
            let socket = socket.listen(BACKLOG)?;
            Ok((socket.local_addr()?, socket))
        };
        let (address, socket) = listen().map_err(|source| StartError::Bind { address, source })?;
        let header_timeout = settings.header_timeout;
        Ok(Self { socket, address, certificate, header_timeout, doors, metrics, direct: None })
    }

    /// Answers requests for WebSockets without the router, where that can be done.
    #[must_use]
    pub fn opening(self, direct: Direct) -> Self {
        Self { direct: Some(direct), ..self }
    }

    /// The address it listens on; with the real port if port 0 was requested.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until cancelled; then accepts what waits and nothing more, gives requests in progress and on their way the
    /// header timeout to end, and returns. WebSockets continue.
    ///
    /// # Errors
    /// The certificate can't be used.
    pub async fn serve(
        self,
        router: Router,
        closing: CancellationToken,
        supervisor: Supervisor,
    ) -> Result<(), TlsError> {
        self.serve_reloading(router, closing, supervisor, reload::INTERVAL).await
    }

    async fn serve_reloading(
        self,
        router: Router,
        closing: CancellationToken,
        supervisor: Supervisor,
        interval: Duration,
    ) -> Result<(), TlsError> {
        let Self { socket, address, certificate, header_timeout, doors, metrics, direct } = self;
        let tasks = supervisor.tasks();
        if let Some(certificate) = &certificate {
            tasks.run("certificate", &closing, Arc::clone(certificate).watch(interval, closing.clone()));
        }
        let server = Arc::new(Server {
            service: TowerToHyperService::new(router),
            direct,
            tls: certificate,
            header_timeout,
            addresses: Arc::clone(&doors.addresses),
            metrics: Arc::clone(&metrics),
            ends: Ends { closing: closing.clone(), cut: CancellationToken::new() },
        });
        accept(socket, &doors, &metrics, &closing, |stream, peer, place| {
            tasks.contained("public connection", Arc::clone(&server).connection(stream, peer.ip(), place));
        })
        .await;
        if tasks.finished_by(Instant::now() + header_timeout).await.is_err() {
            tracing::warn!(%address, open = tasks.len(), "requests are still open at the end and are aborted");
            server.ends.cut.cancel();
            tasks.finished().await;
        }
        Ok(())
    }
}

/// Passes connections on, as many as have places, until cancelled; then those that wait.
async fn accept(
    from: impl Accept,
    doors: &Doors,
    metrics: &Metrics,
    closing: &CancellationToken,
    mut hand_on: impl FnMut(TcpStream, SocketAddr, Arc<Place>),
) {
    let mut acceptor = Acceptor::new(from, LONGEST_PAUSE);
    let failed = |error: &io::Error| {
        metrics.accept_errors.inc();
        tracing::error!(%error, "cannot accept connections; if out of file descriptors, raise the limit of open files");
    };
    let mut enter = |(stream, peer): (TcpStream, SocketAddr)| {
        let address = ClientAddress(peer.ip());
        match doors.strangers.handshake(&doors.addresses, address) {
            Ok(permit) => hand_on(stream, peer, doors.strangers.enter(address.site(), permit)),
            Err(many) => {
                metrics.refused.get_or_create(&label(many.label())).inc();
            }
        }
    };
    let connections = async {
        loop {
            doors.strangers.room().await;
            enter(acceptor.next(failed).await);
        }
    };
    tokio::select! {
        () = closing.cancelled() => {}
        () = connections => {}
    }
    let last = async {
        while doors.strangers.room().now_or_never().is_some()
            && let Ok(accepted) = timeout(LAST_ACCEPTS.0, acceptor.next(failed)).await
        {
            enter(accepted);
        }
    };
    // What is left after that is not the rest of a queue but a stream of new callers.
    let _ = timeout(LAST_ACCEPTS.1, last).await;
}

#[cfg(test)]
mod tests;
