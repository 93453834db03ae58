//! Reading and writing one socket at the same time, without splitting it.
//!
//! Every poll first writes what is queued, then reads: a pending write never stops reading, so two peers that both wait for the other to
//! read can't block each other. Frames are fed to the WebSocket's buffer and flushed together: what is queued goes into one write.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite;
use wirepost_core::frames::CloseCode;

use super::{conn::Conn, outbound::Next};
use crate::{listener::Written, metrics::Metrics};

/// How long a peer may take to answer a close frame.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What came from the socket.
#[derive(Debug)]
pub enum Io {
    /// A text frame.
    Text(Utf8Bytes),
    /// A binary frame.
    Binary(Bytes),
    /// A sign of life without content.
    Alive,
    /// The peer said goodbye with this code (1005: without one).
    Closed(u16),
    /// The peer vanished.
    Gone,
    /// The peer broke a rule: end with this code.
    Broken(CloseCode),
    /// The queue is closing: end with this code.
    Goodbye(CloseCode),
    /// The peer takes nothing for the moment: [`Driver::stalled_since`] is set now.
    Stalled,
}

/// One socket with its outbound queue.
pub struct Driver {
    socket: WebSocket,
    conn: Arc<Conn>,
    metrics: Arc<Metrics>,
    written: Written,
    unflushed: bool,
    stall: Option<Stall>,
}

/// Something is to be written, and the peer takes nothing.
#[derive(Clone, Copy, Debug)]
struct Stall {
    since: Instant,
    /// What it had taken by then.
    written: u64,
}

impl Driver {
    /// Drives `socket` with the queue of `conn`; `written` counts what leaves by it.
    pub fn new(socket: WebSocket, conn: Arc<Conn>, metrics: Arc<Metrics>, written: Written) -> Self {
        Self { socket, conn, metrics, written, unflushed: false, stall: None }
    }

    /// Since when at the latest the peer takes nothing although something is to be written. Each byte that it takes counts, so a large frame
    /// on a slow line is no stall; they are looked at here, so a stall shows at the second look.
    pub fn stalled_since(&mut self) -> Option<Instant> {
        let written = self.written.bytes();
        if let Some(stall) = self.stall.as_mut().filter(|stall| stall.written != written) {
            *stall = Stall { since: Instant::now(), written };
        }
        self.stall.map(|stall| stall.since)
    }

    /// Writes what is queued and waits for the next thing to happen. While `may_read` says no, the socket is not read. Cancel safe.
    pub async fn next(&mut self, may_read: impl Fn() -> bool) -> Io {
        std::future::poll_fn(|cx| self.poll(cx, &may_read)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, may_read: impl Fn() -> bool) -> Poll<Io> {
        if let Poll::Ready(io) = self.poll_write(cx) {
            return Poll::Ready(io);
        }
        if !may_read() {
            return Poll::Pending;
        }
        let message = ready!(Pin::new(&mut self.socket).poll_next(cx));
        self.metrics.frames_in.inc();
        Poll::Ready(match message {
            None => Io::Gone,
            Some(Ok(Message::Text(text))) => Io::Text(text),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Io::Alive,
            Some(Ok(Message::Binary(bytes))) => Io::Binary(bytes),
            Some(Ok(Message::Close(frame))) => Io::Closed(frame.map_or(1005, |frame| frame.code)),
            Some(Err(error)) => fault(error),
        })
    }

    /// Ready only when the connection is to end.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Io> {
        loop {
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Pending => return self.poll_stalled(cx),
                Poll::Ready(Err(_)) => return Poll::Ready(Io::Gone),
                Poll::Ready(Ok(())) => {}
            }
            match self.conn.outbound.poll_next(cx) {
                Poll::Ready(Next::Item(item)) => {
                    let Some(message) = item.message() else { continue };
                    if Pin::new(&mut self.socket).start_send(message).is_err() {
                        return Poll::Ready(Io::Gone);
                    }
                    self.metrics.frames_out.inc();
                    self.unflushed = true;
                }
                Poll::Ready(Next::Close(code)) => return Poll::Ready(Io::Goodbye(code)),
                Poll::Pending => break,
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.socket).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    self.stall = None;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Io::Gone),
                Poll::Pending => return self.poll_stalled(cx),
            }
        }
        Poll::Pending
    }

    /// The peer takes nothing. A queue that is closing and not to be flushed does not wait for it. Ready at the beginning of a stall, so
    /// that its end is looked for in time.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Io> {
        match self.conn.outbound.poll_closing(cx) {
            Poll::Ready(code) if !code.flushes() => Poll::Ready(Io::Goodbye(code)),
            _ if self.stall.is_some() => Poll::Pending,
            _ => {
                self.stall = Some(Stall { since: Instant::now(), written: self.written.bytes() });
                Poll::Ready(Io::Stalled)
            }
        }
    }

    /// Sends a close frame and waits a little for the answer: a socket that is closed with unread input resets, and the peer would see
    /// 1006 instead of the code.
    pub async fn close(mut self, code: CloseCode) {
        let goodbye = async {
            let frame = CloseFrame { code: code.code(), reason: code.reason().into() };
            if self.socket.send(Message::Close(Some(frame))).await.is_err() {
                return;
            }
            while let Some(Ok(message)) = self.socket.recv().await {
                if matches!(message, Message::Close(_)) {
                    // Lets the WebSocket finish the handshake: the next read ends.
                }
            }
        };
        // A peer that takes nothing loses its socket without a code.
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }

    /// Answers the peer's close frame.
    pub async fn finish(mut self) {
        let _ = timeout(CLOSE_TIMEOUT, async { while let Some(Ok(_)) = self.socket.recv().await {} }).await;
    }
}

/// The close code of a fault in what the peer sent.
fn fault(error: axum::Error) -> Io {
    let Ok(error) = error.into_inner().downcast::<tungstenite::Error>() else { return Io::Gone };
    match *error {
        tungstenite::Error::Utf8(_) => Io::Broken(CloseCode::BadUtf8),
        tungstenite::Error::Capacity(_) => Io::Broken(CloseCode::TooBig),
        tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake
            | tungstenite::error::ProtocolError::ReceivedAfterClosing,
        ) => Io::Gone,
        tungstenite::Error::Protocol(_) => Io::Broken(CloseCode::Protocol),
        _ => Io::Gone,
    }
}
