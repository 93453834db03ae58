//! Accepts connections and serves HTTP/1.1 on them, with or without TLS. A proper request for a WebSocket is answered
//! without an HTTP library ([`Direct`]), everything else by hyper. Limits: open TCP connections, time for the handshake
//! and for each request's header, size of the header. Connections that became WebSockets belong to their own tasks and
//! still count until they end.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, http::Request, response::IntoResponse};
use bytes::Bytes;
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::service::TowerToHyperService;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use wirepost_runtime::{
    accept::{Accept, Acceptor},
    http1::{self, Ends},
    tasks::Supervisor,
};

use super::{
    head,
    refusals::{ExchangeState, RefusalStream},
    tls::{Certificate, TlsError},
};
use crate::{
    config::{reload, settings::Settings},
    http::{
        answer::Refusal,
        socket::direct::{Direct, Head},
    },
    metrics::Metrics,
    socket::{wire::Io, write_progress::WriteProgress},
};

/// Connections that wait to be accepted: one second's worth when the clients of another edge reconnect here.
const BACKLOG: u32 = 4096;
/// Bytes that the kernel buffers for a peer that does not read (it doubles the number, socket(7)). By default it would
/// grow to megabytes for each slow client, outside all our bounds; this size still allows 5 MB/s at 100 ms.
const SEND_BUFFER: u32 = 256 << 10;
/// Encrypted bytes that TLS buffers for a peer that does not read: one record. The library's own limit is four.
const TLS_BUFFER: usize = 16 << 10;
/// Largest header. It only has to fit a token of 16 KiB; an unfinished header is memory that anyone can claim.
const MAX_HEADER: usize = 32 << 10;
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
    limits: Limits,
    metrics: Arc<Metrics>,
    direct: Option<Direct>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    connections: usize,
    header_timeout: Duration,
}

impl Listener {
    /// Binds the public port.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let certificate = match &settings.tls {
            Some(files) => Some(Certificate::load(files).await?),
            None => None,
        };
        let limits = Limits { connections: settings.tcp_connections(), header_timeout: settings.header_timeout };
        Self::new(settings.listen, certificate, limits, metrics)
    }

    fn new(
        address: SocketAddr,
        certificate: Option<Arc<Certificate>>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let listen = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            // Sockets inherit both. Frames are small and complete: waiting for more would only delay them.
            socket.set_send_buffer_size(SEND_BUFFER)?;
            socket.set_nodelay(true)?;
            socket.bind(address)?;
            let socket = socket.listen(BACKLOG)?;
            Ok((socket.local_addr()?, socket))
        };
        let (address, socket) = listen().map_err(|source| StartError::Bind { address, source })?;
        Ok(Self { socket, address, certificate, limits, metrics, direct: None })
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
        let Self { socket, address, certificate, limits, metrics, direct } = self;
        let tls = certificate.as_ref().map(Certificate::acceptor).transpose()?;
        let tasks = supervisor.tasks();
        if let Some(certificate) = certificate {
            tasks.run("certificate", &closing, certificate.watch(interval, closing.clone()));
        }
        let server = Arc::new(Server {
            service: TowerToHyperService::new(router),
            direct,
            tls,
            header_timeout: limits.header_timeout,
            metrics: Arc::clone(&metrics),
            ends: Ends { closing: closing.clone(), cut: CancellationToken::new() },
        });
        accept(socket, limits.connections, &metrics, &closing, |stream, permit| {
            tasks.contained("public connection", Arc::clone(&server).connection(stream, permit));
        })
        .await;
        if tasks.finished_by(Instant::now() + limits.header_timeout).await.is_err() {
            tracing::warn!(%address, open = tasks.len(), "requests are still open at the end and are aborted");
            server.ends.cut.cancel();
            tasks.finished().await;
        }
        Ok(())
    }
}

/// Passes connections on, at most `capacity` open at the same time, until cancelled.
async fn accept(
    from: impl Accept,
    capacity: usize,
    metrics: &Metrics,
    closing: &CancellationToken,
    mut hand_on: impl FnMut(TcpStream, OwnedSemaphorePermit),
) {
    let permits = Arc::new(Semaphore::new(capacity));
    let mut acceptor = Acceptor::new(from, LONGEST_PAUSE);
    let failed = |error: &io::Error| {
        metrics.accept_errors.inc();
        tracing::error!(%error, "cannot accept connections; if out of file descriptors, raise the limit of open files");
    };
    let connections = async {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let stream = acceptor.next(failed).await;
            hand_on(stream, permit);
        }
    };
    tokio::select! {
        () = closing.cancelled() => {}
        () = connections => return,
    }
    let last = async {
        while let Ok(permit) = Arc::clone(&permits).try_acquire_owned()
            && let Ok(stream) = timeout(LAST_ACCEPTS.0, acceptor.next(failed)).await
        {
            hand_on(stream, permit);
        }
    };
    // What is left after that is not the rest of a queue but a stream of new callers.
    let _ = timeout(LAST_ACCEPTS.1, last).await;
}

/// What every connection needs.
struct Server {
    service: TowerToHyperService<Router>,
    direct: Option<Direct>,
    tls: Option<TlsAcceptor>,
    header_timeout: Duration,
    metrics: Arc<Metrics>,
    ends: Ends,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, permit: OwnedSemaphorePermit) {
        // On Linux it has inherited that, see `Listener::new`.
        if cfg!(not(target_os = "linux"))
            && let Err(error) = stream.set_nodelay(true)
        {
            return tracing::debug!(%error, "connection broke immediately");
        }
        let written = WriteProgress::default();
        let stream = CountedConnection { io: stream, written: written.clone(), _permit: permit };
        let serving = async {
            match &self.tls {
                None => self.first_request(stream, written).await,
                // Boxed: otherwise the task of every plain connection would have room for the TLS state too.
                Some(tls) => Box::pin(self.encrypted(tls, stream, written)).await,
            }
        };
        tokio::select! {
            () = serving => {}
            () = self.ends.cut.cancelled() => {}
        }
    }

    async fn encrypted(&self, tls: &TlsAcceptor, stream: CountedConnection<TcpStream>, written: WriteProgress) {
        match timeout(self.header_timeout, tls.accept(stream)).await {
            Ok(Ok(mut stream)) => {
                stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
                self.first_request(stream, written).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        }
    }

    async fn first_request(&self, mut stream: impl Io + 'static, written: WriteProgress) {
        let reading = head::read(&mut stream, MAX_HEADER, &self.ends.closing);
        let (head, read) = match timeout(self.header_timeout, reading).await {
            Ok(Some(first)) => first,
            Ok(None) => return,
            Err(_) => return tracing::debug!("no request came in time"),
        };
        if let (Head::Socket(request), Some(direct)) = (head, &self.direct)
            && let Some(opening) = direct.open(&request, written.clone())
        {
            return opening.begin(stream, &read);
        }
        // Boxed: hardly any connection needs it.
        Box::pin(self.http(stream, read.freeze(), written)).await;
    }

    async fn http(&self, stream: impl Io + 'static, ahead: Bytes, written: WriteProgress) {
        let exchange = ExchangeState::default();
        let stream = RefusalStream::new(stream, ahead, exchange.clone(), Arc::clone(&self.metrics));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(written.clone());
            exchange.begin();
            let fits = header_bytes(&request) <= MAX_HEADER;
            let (answer, exchange) = (self.service.call(request), exchange.clone());
            async move {
                // hyper's own bound lets some pass, depending on how they arrive.
                if !fits {
                    return Ok(exchange.answer(Refusal::header_too_large().into_response()));
                }
                answer.await.map(|response| exchange.answer(response))
            }
        });
        let limits = http1::Limits { header_timeout: self.header_timeout, max_header: MAX_HEADER };
        http1::serve(stream, service, limits, &self.ends).await;
    }
}

/// Bytes of a request's header, approximately as received.
fn header_bytes<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    target + fields.sum::<usize>()
}

/// A connection that keeps its permit until it is closed, even after it became a WebSocket.
struct CountedConnection<IO> {
    io: IO,
    written: WriteProgress,
    _permit: OwnedSemaphorePermit,
}

impl<IO> CountedConnection<IO> {
    fn noted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.written.add(*bytes);
        }
        written
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for CountedConnection<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for CountedConnection<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.noted(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
