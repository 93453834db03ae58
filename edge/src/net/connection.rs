//! One connection of the public port: whose it is, TLS, its first request, and what serves it.
//!
//! Until its caller is let in it is a [stranger](crate::strangers): it costs little before its first byte, and ends when
//! others need its place and it makes the edge wait.

use std::{
    io,
    net::IpAddr,
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
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::server::TlsStream;
use wirepost_runtime::http1::{self, Ends};

use super::{
    head,
    refusals::{ExchangeState, RefusalStream},
    tls::Certificate,
};
use crate::{
    address::{ClientAddress, limits::AddressLimits, proxy_protocol},
    http::{
        addresses::Peer,
        answer::Refusal,
        socket::direct::{Direct, Head},
    },
    metrics::{Metrics, label},
    socket::{wire::Io, write_progress::WriteProgress},
    strangers::Place,
};

/// Encrypted bytes that TLS buffers for a peer that does not read: one record. The library's own limit is four.
const TLS_BUFFER: usize = 16 << 10;
/// Largest header. It only has to fit a token of 16 KiB; an unfinished header is memory that anyone can claim.
const MAX_HEADER: usize = 32 << 10;
/// What TLS keeps of a connection, as measured in the middle of a handshake.
const TLS_BYTES: usize = 16 << 10;
/// What the HTTP library keeps of a connection: its state and its first buffers.
const HTTP_BYTES: usize = 16 << 10;

/// What every connection needs.
pub(super) struct Server {
    pub(super) service: TowerToHyperService<Router>,
    pub(super) direct: Option<Direct>,
    pub(super) tls: Option<Arc<Certificate>>,
    pub(super) header_timeout: Duration,
    pub(super) addresses: Arc<AddressLimits>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) ends: Ends,
}

/// A connection that has begun, and what is known of it.
struct Caller<IO> {
    io: IO,
    peer: IpAddr,
    place: Arc<Place>,
    written: WriteProgress,
}

impl Server {
    /// Serves a connection until it ends, becomes a WebSocket, or gives way to others.
    pub(super) async fn connection(self: Arc<Self>, stream: TcpStream, peer: IpAddr, place: Arc<Place>) {
        // On Linux it has inherited that, see `Listener::new`.
        if cfg!(not(target_os = "linux"))
            && let Err(error) = stream.set_nodelay(true)
        {
            return tracing::debug!(%error, "connection broke immediately");
        }
        let deadline = Instant::now() + self.header_timeout;
        place.waits(false);
        let mut first = [0];
        let begins = tokio::select! {
            biased;
            // Not `readable`, which is ready at once on a new connection.
            begins = timeout_at(deadline, stream.peek(&mut first)) => matches!(begins, Ok(Ok(1))),
            () = place.gives_way() => false,
            () = head::last_call(&self.ends.closing) => false,
            () = self.ends.cut.cancelled() => false,
        };
        place.goes_on();
        if !begins {
            return tracing::debug!(%peer, "a connection showed nothing and is closed");
        }
        // Boxed, so that a connection that shows nothing costs less than this.
        Box::pin(async {
            tokio::select! {
                biased;
                () = place.gives_way() => tracing::debug!(%peer, "a connection gives way to others"),
                () = self.begun(stream, peer, &place, deadline) => {}
                () = self.ends.cut.cancelled() => {}
            }
        })
        .await;
    }

    async fn begun(&self, stream: TcpStream, peer: IpAddr, place: &Arc<Place>, deadline: Instant) {
        let written = WriteProgress::default();
        let io = CountedConnection { io: stream, written: written.clone(), place: Some(Arc::clone(place)) };
        let mut caller = Caller { io, peer, place: Arc::clone(place), written };
        let proxies = self.addresses.proxies();
        if proxies.proxy_protocol && proxies.trust(peer) {
            match timeout_at(deadline, proxy_protocol::read(&mut caller.io)).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(source))) => {
                    let address = ClientAddress(source);
                    let Ok(permit) = caller.place.handshake(&self.addresses, address) else {
                        self.metrics.refused.get_or_create(&label("address_handshakes")).inc();
                        return;
                    };
                    caller.place.is_of(address.site(), permit);
                    caller.peer = source;
                }
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "connection refused"),
                Err(_) => return tracing::debug!(%peer, "no PROXY header came in time"),
            }
        }
        match &self.tls {
            None => self.first_request(caller, deadline).await,
            // Boxed: otherwise the task of every plain connection would have room for the TLS state too.
            Some(tls) => Box::pin(self.encrypted(tls, caller, deadline)).await,
        }
    }

    async fn encrypted(&self, tls: &Certificate, caller: Caller<CountedConnection<TcpStream>>, deadline: Instant) {
        let Caller { io, peer, place, written } = caller;
        place.holds(TLS_BYTES);
        match timeout_at(deadline, tls.acceptor().accept(io)).await {
            Ok(Ok(mut io)) => {
                let shown = io.get_ref().1.peer_certificates().is_some();
                self.count_handshake(if shown { "certificate" } else { "no_certificate" });
                io.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
                let caller = Caller { io, peer, place, written };
                return self.first_request(caller, Instant::now() + self.header_timeout).await;
            }
            Ok(Err(error)) => {
                self.count_handshake("failed");
                tracing::debug!(%peer, %error, "TLS handshake failed");
            }
            Err(_) => {
                self.count_handshake("timeout");
                tracing::debug!(%peer, "TLS handshake took too long");
            }
        }
        self.addresses.failed(ClientAddress(peer));
    }

    fn count_handshake(&self, kind: &'static str) {
        self.metrics.tls_handshakes.get_or_create(&label(kind)).inc();
    }

    async fn first_request(&self, mut caller: Caller<impl Stranger>, deadline: Instant) {
        let tls = if self.tls.is_some() { TLS_BYTES } else { 0 };
        let place = Arc::clone(&caller.place);
        let reading = head::read(&mut caller.io, MAX_HEADER, &self.ends.closing, |bytes| place.holds(tls + bytes));
        let (head, read) = match timeout_at(deadline, reading).await {
            Ok(Some(first)) => first,
            Ok(None) => return,
            Err(_) => {
                self.addresses.failed(ClientAddress(caller.peer));
                return tracing::debug!(peer = %caller.peer, "no request came in time");
            }
        };
        if let (Head::Socket(request), Some(direct)) = (head, &self.direct)
            && let Some(opening) = direct.open(&request, caller.peer, caller.written.clone())
        {
            caller.io.is_let_in();
            place.leave();
            return opening.begin(caller.io, &read);
        }
        let kept = tls + HTTP_BYTES;
        place.holds(kept + read.len());
        // Boxed: hardly any connection needs it.
        Box::pin(self.http(caller, read.freeze(), kept)).await;
    }

    async fn http(&self, caller: Caller<impl Stranger>, ahead: Bytes, kept: usize) {
        let Caller { io, peer, place, written } = caller;
        let exchange = ExchangeState::of(&place, kept);
        let stream = RefusalStream::new(io, ahead, exchange.clone(), Arc::clone(&self.metrics));
        let of_connection = exchange.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let extensions = request.extensions_mut();
            extensions.insert(written.clone());
            extensions.insert(Peer { address: peer, place: Some(Arc::clone(&place)) });
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
        if of_connection.was_refused() {
            self.addresses.failed(ClientAddress(peer));
        }
    }
}

/// Bytes of a request's header, approximately as received.
fn header_bytes<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    target + fields.sum::<usize>()
}

/// A connection whose caller has not been let in yet.
trait Stranger: Io + 'static {
    /// It has been: its place is not needed any more.
    fn is_let_in(&mut self);
}

/// A connection that counts what its peer accepts. A stranger's place is told when it is the peer's turn.
struct CountedConnection<IO> {
    io: IO,
    written: WriteProgress,
    place: Option<Arc<Place>>,
}

impl Stranger for CountedConnection<TcpStream> {
    fn is_let_in(&mut self) {
        self.place = None;
    }
}

impl Stranger for TlsStream<CountedConnection<TcpStream>> {
    fn is_let_in(&mut self) {
        self.get_mut().0.is_let_in();
    }
}

impl<IO> CountedConnection<IO> {
    fn noted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.written.add(*bytes);
        }
        self.turn(&written, true);
        written
    }

    fn turn<T>(&self, done: &Poll<T>, writing: bool) {
        match &self.place {
            Some(place) if done.is_pending() => place.waits(writing),
            Some(place) => place.goes_on(),
            None => {}
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for CountedConnection<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.turn(&read, false);
        read
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
