//! What hyper refuses on its own (a header that is too large or malformed) is answered in the form of every other
//! answer.
//!
//! hyper writes such an answer without a body, and has no option to change that. So this stream wraps the connection
//! below hyper: bytes that hyper writes while no answer of ours is due are its own refusal, and ours is written
//! instead. Then the connection ends, and further input is read for a while: a connection that is closed with unread
//! input resets, and the caller might not see the answer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use hyper::{
    StatusCode,
    body::{Body as HttpBody, Frame, SizeHint},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::{
    http::answer::{self, Code},
    metrics::{Metrics, label},
    strangers::Place,
};

/// How long input is still read from a refused caller.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it is read.
const LINGER_BYTES: usize = 256 << 10;

/// No answer of ours is due: what is written is hyper's refusal.
const IDLE: u8 = 0;
/// A request is being handled, or its answer is on its way to hyper.
const OURS: u8 = 1;
/// hyper has our whole answer and has not sent it yet.
const ENDING: u8 = 2;
/// The connection no longer speaks HTTP.
const UPGRADED: u8 = 3;
/// hyper has refused a request.
const REFUSED: u8 = 4;

/// The state of a connection's exchange, set by its service.
#[derive(Clone, Debug)]
pub(super) struct ExchangeState(Arc<Exchange>);

#[derive(Debug)]
struct Exchange {
    phase: AtomicU8,
    place: Arc<Place>,
    /// Bytes that the connection holds between two requests.
    kept: usize,
}

impl ExchangeState {
    /// No request has arrived on the connection with this place. `kept`: bytes that it holds between two requests.
    pub(super) fn of(place: &Arc<Place>, kept: usize) -> Self {
        Self(Arc::new(Exchange { phase: AtomicU8::new(IDLE), place: Arc::clone(place), kept }))
    }

    fn set(&self, phase: u8) {
        self.0.phase.store(phase, Ordering::Relaxed);
        self.0.place.is_served(phase == OURS);
    }

    fn is(&self, phase: u8) -> bool {
        self.0.phase.load(Ordering::Relaxed) == phase
    }

    /// Whether hyper has refused a request, after which the connection ends.
    pub(super) fn was_refused(&self) -> bool {
        self.is(REFUSED)
    }

    /// A request has arrived.
    pub(super) fn begin(&self) {
        self.set(OURS);
    }

    /// Its answer, which is held until the caller has taken it.
    pub(super) fn answer(&self, response: Response) -> Response<Answer> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.set(UPGRADED);
        } else {
            let bytes = HttpBody::size_hint(response.body()).lower();
            self.0.place.holds(self.0.kept.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX)));
        }
        response.map(|body| Answer { body, exchange: self.clone() })
    }
}

/// An answer's body; notes when hyper has finished with it.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    exchange: ExchangeState,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.exchange.is(OURS) {
            self.exchange.set(ENDING);
        }
    }
}

/// A connection below hyper.
#[derive(Debug)]
pub(super) struct RefusalStream<IO> {
    io: IO,
    /// Read before hyper, which reads it first.
    ahead: Bytes,
    exchange: ExchangeState,
    metrics: Arc<Metrics>,
    // Boxed: hardly any connection has one.
    refusal: Option<Box<Refusal>>,
    /// Bytes of a header that is not complete, which hyper keeps.
    header: usize,
}

/// Our answer instead of hyper's.
#[derive(Debug)]
struct Refusal {
    unwritten: Bytes,
    linger: Option<Pin<Box<Sleep>>>,
    read: usize,
}

impl<IO> RefusalStream<IO> {
    /// `ahead` has been read from `io`, and is read again.
    pub(super) fn new(io: IO, ahead: Bytes, exchange: ExchangeState, metrics: Arc<Metrics>) -> Self {
        Self { io, ahead, exchange, metrics, refusal: None, header: 0 }
    }

    /// Whether what hyper writes must not be sent; its first bytes are the status line.
    fn refuses(&mut self, written: &[u8]) -> bool {
        if self.refusal.is_none() && self.exchange.is(IDLE) {
            let code = match written.get(9..12) {
                Some(b"431") => Code::HeaderTooLarge,
                _ => Code::BadRequest,
            };
            self.metrics.refused.get_or_create(&label(code.label())).inc();
            self.exchange.set(REFUSED);
            self.refusal = Some(Box::new(Refusal { unwritten: refusal(code), linger: None, read: 0 }));
        }
        self.refusal.is_some()
    }
}

fn refusal(code: Code) -> Bytes {
    let refusal = match code {
        Code::HeaderTooLarge => answer::Refusal::header_too_large(),
        code => answer::Refusal::new(code, "this is no request of HTTP/1.1 that can be read"),
    };
    let body = answer::Body::<()> { result: code.number(), description: &refusal.description, data: None };
    let body = serde_json::to_string(&body).unwrap_or_default();
    let status = code.status();
    let reason = status.canonical_reason().unwrap_or_default();
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncache-control: no-store\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        status.as_u16(),
        body.len(),
    )
    .into()
}

impl<IO: AsyncRead + AsyncWrite + Unpin> RefusalStream<IO> {
    /// Writes our answer instead of hyper's.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(refusal) = &mut self.refusal {
            while !refusal.unwritten.is_empty() {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, &refusal.unwritten))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                drop(refusal.unwritten.split_to(written));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until the caller has shut down its direction, or its time is up.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(refusal) = &mut self.refusal else { return Poll::Ready(()) };
        let linger = refusal.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        loop {
            if refusal.read >= LINGER_BYTES || linger.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut space = [0; 4096];
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => refusal.read += buffer.filled().len(),
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for RefusalStream<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let bytes = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(bytes));
            if self.ahead.is_empty() {
                // Its memory is not kept as long as the connection.
                self.ahead = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if self.exchange.is(IDLE) {
            self.header += buf.filled().len() - before;
            self.exchange.0.place.holds(self.exchange.0.kept + self.header);
        } else {
            self.header = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for RefusalStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.refuses(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if self.exchange.is(ENDING) {
            self.exchange.set(IDLE);
            self.exchange.0.place.holds(self.exchange.0.kept);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(cx))?;
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        ready!(self.poll_linger(cx));
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.refuses(bufs.iter().find(|buf| !buf.is_empty()).map_or(&[], |buf| buf)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
