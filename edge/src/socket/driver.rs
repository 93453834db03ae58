//! Reading and writing one socket at the same time, without splitting it.
//!
//! Every poll first writes what is queued, then reads: a pending write never stops reading, so two peers that both wait
//! for the other to read can't block each other. Queued frames go into one write, without copies.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::frames::CloseCode;

use super::{
    inbound::BusinessShare,
    upload::IncomingMessage,
    wire::{Event, Read, Wire},
    write_progress::WriteProgress,
};
use crate::{
    metrics::Metrics,
    push::{
        backlog::{Backlog, Stalled},
        mailbox::{Mailbox, outbound::Next},
    },
};

/// What came from the socket.
#[derive(Debug)]
pub enum SocketEvent {
    /// A text message.
    Text(Utf8Bytes),
    /// A binary message.
    Binary(Bytes),
    /// A ping or a pong: a sign of life without content.
    Alive,
    /// A fragment that does not end its message, however small.
    Fragment,
    /// Bytes of something that is not complete: a sign of life.
    Progress(usize),
    /// The peer sent a close frame with this code (1005: without one).
    Closed(u16),
    /// The connection was lost.
    Gone,
    /// The peer broke a rule: close with this code.
    Broken(CloseCode),
    /// The queue is closing: close with this code.
    Goodbye(CloseCode),
    /// The peer has stopped reading: [`Driver::stalled_since`] is set now.
    Stalled,
    /// Its session ends earlier than it did.
    Shortened,
    /// The client is to connect elsewhere.
    LetGo,
}

/// One socket with its outbound queue.
pub struct Driver {
    wire: Wire,
    mailbox: Arc<Mailbox>,
    metrics: Arc<Metrics>,
    written: WriteProgress,
    stall: Option<Stall>,
    /// The answer to the peer's close frame.
    reply: Bytes,
    limits: Limits,
    /// Boxed: most connections have none.
    upload: Option<Box<IncomingMessage>>,
}

/// The bounds of a socket beside its own queue.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes on their way to all sockets.
    pub backlog: Arc<Backlog>,
    /// The business's budget for unfinished messages.
    pub share: Arc<BusinessShare>,
    /// Longest time without progress of an unfinished message.
    pub read_timeout: Duration,
}

/// Something is to be written, and the peer is not reading.
#[derive(Debug)]
struct Stall {
    since: Instant,
    /// Bytes that it had accepted by then.
    written: u64,
    _known: Stalled,
}

impl Driver {
    /// Drives `wire` with the queue of `mailbox`; `written` counts the bytes that the peer accepted.
    pub fn new(
        wire: Wire,
        mailbox: Arc<Mailbox>,
        metrics: Arc<Metrics>,
        written: WriteProgress,
        limits: Limits,
    ) -> Self {
        Self { wire, mailbox, metrics, written, stall: None, reply: Bytes::new(), limits, upload: None }
    }

    /// When an unfinished message is given up, and the close code of the connection then.
    pub fn upload_due(&self) -> Option<(Instant, CloseCode)> {
        self.upload.as_ref().map(|upload| upload.due(self.limits.read_timeout))
    }

    /// Whether the socket is not read because a message waits for room: then silence means nothing.
    pub fn awaits_room(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.awaits_room())
    }

    /// Since when at the latest the peer has accepted nothing although something is to be written. Each accepted byte
    /// counts, so a large frame on a slow line is no stall. Progress is checked here, so a stall shows at the second
    /// call.
    pub fn stalled_since(&mut self) -> Option<Instant> {
        let written = self.written.bytes();
        let stall = self.stall.as_mut()?;
        if stall.written != written {
            stall.since = Instant::now();
            stall.written = written;
        }
        Some(stall.since)
    }

    /// Whether queued frames are still written before the connection closes.
    pub fn is_flushing(&self) -> bool {
        self.mailbox.outbound.closing().is_some_and(CloseCode::flushes)
    }

    /// Writes what is queued and waits for the next thing to happen. While `may_read` says no, the socket is not read;
    /// it is told whether a message is unfinished. Cancel safe.
    // An `async fn` would store its arguments twice.
    pub fn next(
        &mut self,
        mut may_read: impl FnMut(&mut Context<'_>, bool) -> bool + Send,
    ) -> impl Future<Output = SocketEvent> + Send {
        std::future::poll_fn(move |cx| self.poll(cx, &mut may_read))
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        may_read: impl FnOnce(&mut Context<'_>, bool) -> bool,
    ) -> Poll<SocketEvent> {
        if let Poll::Ready(io) = self.poll_write(cx) {
            return Poll::Ready(io);
        }
        if !may_read(cx, self.wire.is_unfinished()) {
            return Poll::Pending;
        }
        if let Some(upload) = self.upload.as_mut().filter(|upload| upload.awaits_room()) {
            ready!(upload.poll_room(cx));
            self.wire.admit();
        }
        let read = self.wire.poll_read(cx);
        // Even if nothing new was read: the rest of the last read may have started a message.
        let has_begun = self.wire.is_unfinished() && self.upload.is_none();
        if self.wire.is_unfinished() {
            self.upload.get_or_insert_default().note(self.wire.gathered());
        } else {
            self.upload = None;
        }
        let read = match read {
            Poll::Ready(read) => read,
            // Its deadline starts now.
            Poll::Pending if has_begun => return Poll::Ready(SocketEvent::Progress(0)),
            Poll::Pending => return Poll::Pending,
        };
        let event = match read {
            Read::Event(event) => event,
            Read::Progress(bytes) => return Poll::Ready(SocketEvent::Progress(bytes)),
            Read::ProtocolError(error) => return Poll::Ready(SocketEvent::Broken(error.close_code())),
            Read::Gone => return Poll::Ready(SocketEvent::Gone),
        };
        if let Event::Large(bytes) = event {
            let admission = Arc::clone(&self.limits.share).admit(Arc::clone(&self.mailbox), bytes);
            self.upload.get_or_insert_default().await_room(admission);
            return Poll::Ready(SocketEvent::Progress(0));
        }
        self.metrics.frames_in.inc();
        Poll::Ready(match event {
            Event::Text(text) => SocketEvent::Text(text),
            Event::Binary(bytes) => SocketEvent::Binary(bytes),
            Event::Ping(_) | Event::Pong => SocketEvent::Alive,
            Event::Fragment | Event::Large(_) => SocketEvent::Fragment,
            Event::Close(code, reply) => {
                self.reply = reply;
                SocketEvent::Closed(code)
            }
        })
    }

    /// Ready only when the connection is to end.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<SocketEvent> {
        loop {
            let mut drained = false;
            while self.wire.outgoing().has_room() && !drained {
                match self.mailbox.outbound.poll_next(cx) {
                    Poll::Ready(Next::Item(item)) => {
                        if let Some((before, after)) = item.compression() {
                            self.metrics.compressed_from.inc_by(before as u64);
                            self.metrics.compressed_to.inc_by(after as u64);
                        }
                        self.wire.outgoing().push(item);
                        self.metrics.frames_out.inc();
                    }
                    Poll::Ready(Next::Shortened) => return Poll::Ready(SocketEvent::Shortened),
                    Poll::Ready(Next::LetGo) => return Poll::Ready(SocketEvent::LetGo),
                    // Frames that were taken from the queue go first.
                    Poll::Ready(Next::Close(code)) if code.flushes() && !self.wire.outgoing().is_empty() => break,
                    Poll::Ready(Next::Close(code)) => return Poll::Ready(SocketEvent::Goodbye(code)),
                    Poll::Pending => drained = true,
                }
            }
            match self.wire.poll_write(cx) {
                Poll::Ready(Ok(())) => self.stall = None,
                Poll::Ready(Err(_)) => return Poll::Ready(SocketEvent::Gone),
                Poll::Pending => return self.poll_stalled(cx),
            }
            if drained {
                return Poll::Pending;
            }
        }
    }

    /// The peer is not reading. A queue that is closing without a flush does not wait for it. Ready at the beginning of
    /// a stall, so that its timeout is scheduled.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<SocketEvent> {
        match self.mailbox.outbound.poll_closing(cx) {
            Poll::Ready(code) if !code.flushes() => Poll::Ready(SocketEvent::Goodbye(code)),
            _ if self.stall.is_some() => Poll::Pending,
            _ => {
                let known = self.limits.backlog.stalls(self.mailbox.clone(), self.wire.outgoing().bytes());
                self.stall = Some(Stall { since: Instant::now(), written: self.written.bytes(), _known: known });
                Poll::Ready(SocketEvent::Stalled)
            }
        }
    }

    /// Sends a close frame and waits a little for the answer.
    pub async fn close(self, code: CloseCode) {
        self.into_wire().close(code).await;
    }

    /// Answers the peer's close frame.
    pub async fn finish(mut self) {
        let reply = std::mem::take(&mut self.reply);
        self.into_wire().finish(reply).await;
    }

    /// Everything else is freed immediately.
    fn into_wire(self) -> Wire {
        self.wire
    }
}
