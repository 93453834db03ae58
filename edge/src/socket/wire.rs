//! The WebSocket protocol on one upgraded connection (RFC 6455; RFC 7692 where it was negotiated), as a server
//! speaks it.
//!
//! tungstenite defines the format (headers, op codes, close codes); the buffers are ours. *Reading*: an idle connection
//! has no buffer, since bytes are read onto the stack and only unfinished ones are kept. *Writing*: a frame is written
//! without copying its payload, which for a push is shared by all its receivers, however slowly a peer reads.

mod assembler;
mod outgoing;

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, OpCode};
use wirepost_core::frames::CloseCode;

use crate::compression::Compression;
use assembler::Assembler;
pub use assembler::{Event, ProtocolError, UNCHARGED};
pub use outgoing::{Frame, Outgoing};

/// How long a peer may take to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most that is read from a peer after the close frame.
const LINGER: usize = 1 << 20;
/// The most that one read takes. It is on the stack: an idle connection has no buffer.
const READ: usize = 16 << 10;
/// The most that one read takes while no larger frame is unfinished: what is read but not processed must be kept.
const READ_AHEAD: usize = 4 << 10;

/// What reading brought.
#[derive(Debug)]
pub enum Read {
    /// Something complete.
    Event(Event),
    /// Bytes of something that is not complete yet.
    Progress(usize),
    /// The peer broke a rule.
    ProtocolError(ProtocolError),
    /// The connection is lost.
    Gone,
}

/// A connection that can become a WebSocket.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An upgraded connection.
pub struct Wire {
    io: Box<dyn Io>,
    assembler: Assembler,
    /// Read but not processed: several messages arrived together. At most [`READ_AHEAD`]; no memory while empty.
    rest: BytesMut,
    outgoing: Outgoing,
    /// Written, and perhaps still buffered by TLS.
    unflushed: bool,
}

impl Wire {
    /// Takes messages of up to `limit` bytes, also compressed ones if that was negotiated.
    pub fn new(io: impl Io + 'static, limit: usize, compression: Compression) -> Self {
        Self {
            io: Box::new(io),
            assembler: Assembler::new(limit, compression.is_on()),
            rest: BytesMut::new(),
            outgoing: Outgoing::default(),
            unflushed: false,
        }
    }

    /// The upgrade is still to be answered, with `answer`: it goes into the first write. `read` came behind the
    /// request.
    #[must_use]
    pub fn answering(mut self, answer: Bytes, read: &[u8]) -> Self {
        self.outgoing.begin_with(answer);
        self.rest.extend_from_slice(read);
        self
    }

    /// What is to be written.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// Whether a message or frame is unfinished.
    pub fn is_unfinished(&self) -> bool {
        self.assembler.is_unfinished()
    }

    /// Bytes of the unfinished message that have arrived.
    pub fn gathered(&self) -> usize {
        self.assembler.gathered()
    }

    /// Continues with the message that [`Event::Large`] announced.
    pub fn admit(&mut self) {
        self.assembler.admit();
    }

    /// The next thing that the peer sent. The answer to a ping is queued in [`Self::outgoing`].
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Read> {
        if !self.rest.is_empty() {
            let mut input = &self.rest[..];
            let found = self.assembler.feed(&mut input);
            let used = self.rest.len() - input.len();
            self.rest.advance(used);
            if self.rest.is_empty() {
                self.rest = BytesMut::new();
            }
            if let Some(read) = self.found(found) {
                return Poll::Ready(read);
            }
        }
        let mut stack = [MaybeUninit::uninit(); READ];
        let most = self.assembler.frame_left().clamp(READ_AHEAD, READ);
        let mut buffer = ReadBuf::uninit(&mut stack[..most]);
        match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => {}
            Ok(()) | Err(_) => return Poll::Ready(Read::Gone),
        }
        let bytes = buffer.filled().len();
        let mut input = buffer.filled();
        let found = self.assembler.feed(&mut input);
        self.rest.extend_from_slice(input);
        Poll::Ready(self.found(found).unwrap_or(Read::Progress(bytes)))
    }

    fn found(&mut self, found: Result<Option<Event>, ProtocolError>) -> Option<Read> {
        match found {
            Ok(Some(Event::Ping(payload))) => {
                // Of several pings the newest is answered (RFC 6455, section 5.5.3): a peer that reads nothing
                // accumulates none.
                self.outgoing.set_pong(payload.clone());
                Some(Read::Event(Event::Ping(payload)))
            }
            Ok(event) => event.map(Read::Event),
            Err(error) => Some(Read::ProtocolError(error)),
        }
    }

    /// Writes what is in [`Self::outgoing`].
    ///
    /// # Errors
    /// The connection is lost.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let io = Pin::new(&mut self.io);
            let written = ready!(self.outgoing.with_slices(|slices| io.poll_write_vectored(cx, slices)))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Closes: a frame that has begun is written to its end, other frames are dropped. Then waits a little for the
    /// peer's answer: a socket that is closed with unread input resets, and the peer would see 1006 instead of the
    /// code.
    pub async fn close(mut self, code: CloseCode) {
        let mut payload = BytesMut::from(&code.code().to_be_bytes()[..]);
        payload.extend_from_slice(code.reason().as_bytes());
        self.outgoing.end_with(Frame::new(OpCode::Control(Control::Close), payload.freeze()));
        self.assembler.discard();
        // A peer that does not read loses its socket without a code.
        let _ = timeout(CLOSE_TIMEOUT, async {
            if poll_fn(|cx| self.poll_goodbye(cx)).await {
                self.linger().await;
            }
        })
        .await;
    }

    /// True: our close frame is written and the peer has answered, or can't because it broke a rule. False: the
    /// connection is lost.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let written = match self.poll_write(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            Poll::Pending => false,
        };
        while !self.assembler.has_ended() {
            if let Read::Gone = ready!(self.poll_read(cx)) {
                return Poll::Ready(false);
            }
        }
        if written { Poll::Ready(true) } else { Poll::Pending }
    }

    /// Answers the peer's close frame with `reply`.
    pub async fn finish(mut self, reply: Bytes) {
        self.outgoing.end_with(Frame::new(OpCode::Control(Control::Close), reply));
        let _ = timeout(CLOSE_TIMEOUT, async {
            if poll_fn(|cx| self.poll_write(cx)).await.is_ok() {
                let _ = poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await;
            }
        })
        .await;
    }

    /// Shuts down our direction and reads until the peer has shut down its own.
    async fn linger(&mut self) {
        if poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await.is_err() {
            return;
        }
        let mut left = LINGER;
        poll_fn(|cx| {
            while left > 0 {
                let mut stack = [MaybeUninit::uninit(); READ];
                let mut buffer = ReadBuf::uninit(&mut stack);
                match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
                    Ok(()) if !buffer.filled().is_empty() => left = left.saturating_sub(buffer.filled().len()),
                    Ok(()) | Err(_) => return Poll::Ready(()),
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}
