//! A socket that knows how long its peer has been silent.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;

use wirepost_rabbitmq::Endpoint;
use wirepost_runtime::network::Stream;

use crate::Error;

/// Longest time for name look-up, TCP, TLS and the protocol's handshake, each.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest wait for the broker to take what is written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for one read.
const READ: usize = 16 << 10;

pub(crate) struct Socket {
    stream: Box<dyn Stream>,
    pub(crate) buffer: BytesMut,
    /// Half the time after which a silent peer is dead: the interval of our heartbeats.
    heartbeat: Duration,
    /// The heartbeat.
    beat: &'static [u8],
    heard: Instant,
    next_beat: Instant,
}

impl Socket {
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Self, Error> {
        let address = endpoint.address();
        let failed = |cause: String| Error::Connect { address: address.host_and_port(), cause };
        let dialing = async {
            let socket = endpoint.network().connect(address.host(), address.port()).await?;
            let Some(tls) = endpoint.tls() else { return Ok(socket) };
            let name = ServerName::try_from(address.host().to_owned()).map_err(io::Error::other)?;
            Ok(Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, socket).await?) as Box<dyn Stream>)
        };
        let stream = timeout(CONNECT_TIMEOUT, dialing)
            .await
            .map_err(|_| failed(format!("no answer within {CONNECT_TIMEOUT:?}")))?
            .map_err(|error: io::Error| failed(error.to_string()))?;
        let now = Instant::now();
        Ok(Self {
            stream,
            buffer: BytesMut::with_capacity(16 << 10),
            heartbeat: CONNECT_TIMEOUT,
            beat: &[],
            heard: now,
            next_beat: now + CONNECT_TIMEOUT,
        })
    }

    /// From now on we send something in every half of `time`, and the peer must send something in every `time`.
    pub(crate) fn beat(&mut self, time: Duration, beat: &'static [u8]) {
        self.heartbeat = time / 2;
        self.beat = beat;
        self.next_beat = Instant::now() + self.heartbeat;
    }

    /// Reads more into the buffer. Cancel safe, except that a heartbeat that is cut off ends the connection with the next one.
    pub(crate) async fn fill(&mut self) -> Result<(), Error> {
        loop {
            tokio::select! {
                read = self.stream.read_buf(&mut self.buffer) => {
                    if read? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    self.heard = Instant::now();
                    return Ok(());
                }
                () = sleep_until(self.next_beat) => {
                    if self.heard.elapsed() >= self.heartbeat * 4 {
                        return Err(Error::Timeout { what: "a heartbeat", after: self.heartbeat * 4 });
                    }
                    self.next_beat = Instant::now() + self.heartbeat;
                    let beat = self.beat;
                    // A few bytes: they fit into the kernel's buffer, or the peer is dead.
                    if !beat.is_empty() && self.stream.write_all(beat).now_or_never().is_none() {
                        return Err(Error::Timeout { what: "sending a heartbeat", after: self.heartbeat });
                    }
                    let _ = self.stream.flush().now_or_never();
                }
            }
        }
    }

    /// Waits for this many bytes and takes them.
    pub(crate) async fn take(&mut self, bytes: usize) -> Result<Bytes, Error> {
        while self.buffer.len() < bytes {
            self.fill().await?;
        }
        Ok(self.buffer.split_to(bytes).freeze())
    }

    /// The size of the frame at the front of the buffer, once its first `head` bytes are there.
    pub(crate) fn peek(&self, at: usize) -> Option<u32> {
        let mut head = self.buffer.get(at..at + 4)?;
        Some(head.get_u32())
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let writing = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match timeout(WRITE_TIMEOUT, writing).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(Error::Timeout { what: "writing", after: WRITE_TIMEOUT }),
        }
    }

    /// Reads more into the buffer, without a heartbeat meanwhile.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.buffer.reserve(READ);
        // Nothing of it is kept between two polls.
        let read = ready!(pin!(self.stream.read_buf(&mut self.buffer)).poll(cx))?;
        Poll::Ready(if read == 0 { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) } else { Ok(()) })
    }

    /// Writes some of `bytes`; how many.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Error>> {
        Pin::new(&mut *self.stream).poll_write(cx, bytes).map_err(Error::from)
    }

    /// Sends what TLS still keeps.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut *self.stream).poll_flush(cx).map_err(Error::from)
    }

    /// Sends a last frame if that takes no time.
    pub(crate) fn last_words(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).now_or_never();
        let _ = self.stream.flush().now_or_never();
    }
}
