//! A connection for publishing many messages at a time: one write sends everything that is queued, one read takes everything that has
//! arrived.
//!
//! *Flow*: calls like [`Pipe::publish`] only queue bytes. [`Pipe::progress`] writes and reads at the same time, and [`Pipe::answer`] takes the
//! answers that were read. The caller numbers the channels; it may use a channel as soon as its opening is queued, since the broker handles
//! frames in order. *Bound*: the caller stops queueing while [`Pipe::queued`] is high. The input buffer is bounded by one read and one frame,
//! and the body of a returned message is not kept.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use wirepost_rabbitmq::Endpoint;

use super::{
    Connection, HEARTBEAT,
    codec::{frames_of_content, method, method_of, put_method, put_shortstr},
};
use crate::Error;

mod answer;
mod content;

use answer::Returning;
use content::put_properties;

pub use answer::Answer;
pub use content::{Content, HeaderValue};

/// See the module.
pub struct Pipe {
    connection: Connection,
    out: BytesMut,
    /// Bytes that the operating system has taken, since the beginning.
    written: u64,
    flushing: bool,
    returning: Vec<Returning>,
    heartbeat: Duration,
    heard: Instant,
    /// When our next heartbeat is due, and whether anything was written since the last one.
    beat: Pin<Box<Sleep>>,
    wrote: bool,
    scratch: BytesMut,
}

impl Pipe {
    /// Connects. A broker that sends nothing for twice the time `heartbeat` counts as dead.
    pub async fn open(endpoint: &Endpoint, heartbeat: Duration) -> Result<Self, Error> {
        let mut connection = Connection::connect(endpoint, heartbeat, false).await?;
        // A frame may be half written: what is written next would be taken for its rest.
        connection.farewell = false;
        let now = Instant::now();
        Ok(Self {
            connection,
            out: BytesMut::with_capacity(64 << 10),
            written: 0,
            flushing: false,
            returning: Vec::new(),
            heartbeat,
            heard: now,
            beat: Box::pin(sleep_until(now + heartbeat / 2)),
            wrote: false,
            scratch: BytesMut::new(),
        })
    }

    /// The highest channel number that the broker allows; the lowest is 1.
    pub fn channel_max(&self) -> u16 {
        self.connection.channel_max
    }

    /// Bytes that wait to be written.
    pub fn queued(&self) -> usize {
        self.out.len()
    }

    /// Bytes queued since the beginning: the position of the next one, to compare with [`Pipe::written`].
    pub fn position(&self) -> u64 {
        self.written + self.out.len() as u64
    }

    /// Bytes that the operating system has taken since the beginning. What comes after them has not left this process.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Queues the opening of a channel, with or without confirms.
    pub fn open_channel(&mut self, channel: u16, confirms: bool) {
        put_method(&mut self.out, channel, method::CHANNEL_OPEN, &[0]);
        if confirms {
            put_method(&mut self.out, channel, method::CONFIRM_SELECT, &[0]);
        }
    }

    /// Queues the closing of a channel; answers to its messages may still come before [`Answer::ChannelCloseOk`].
    pub fn close_channel(&mut self, channel: u16) {
        put_method(&mut self.out, channel, method::CHANNEL_CLOSE, &method_of(200, "done"));
    }

    /// Queues a persistent message with these headers; header names of more than 255 bytes are left out.
    ///
    /// # Errors
    /// A name is too long; nothing was queued.
    pub fn publish<'a>(
        &mut self,
        channel: u16,
        content: &Content<'_>,
        headers: impl Iterator<Item = (&'a str, HeaderValue<'a>)>,
    ) -> Result<(), Error> {
        self.scratch.clear();
        self.scratch.put_u16(0);
        put_shortstr(&mut self.scratch, content.exchange)?;
        put_shortstr(&mut self.scratch, content.routing_key)?;
        self.scratch.put_u8(content.mandatory.into());
        put_method(&mut self.out, channel, method::PUBLISH, &self.scratch);
        self.scratch.clear();
        put_properties(&mut self.scratch, content, headers);
        let frame_max = self.connection.frame_max;
        frames_of_content(&mut self.out, channel, &self.scratch, content.body, frame_max);
        Ok(())
    }

    /// Writes what is queued and reads what arrives, until something was read or everything queued is written. Cancel safe. After an error
    /// the connection is lost.
    pub async fn progress(&mut self) -> Result<(), Error> {
        let mut waits = self.queued() > 0;
        poll_fn(|cx| self.poll(cx, &mut waits)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, waits: &mut bool) -> Poll<Result<(), Error>> {
        let socket = &mut self.connection.socket;
        loop {
            while !self.out.is_empty() {
                match socket.poll_write(cx, &self.out)? {
                    Poll::Ready(n) => {
                        self.out.advance(n);
                        self.written += n as u64;
                        (self.wrote, self.flushing) = (true, true);
                    }
                    Poll::Pending => break,
                }
            }
            if self.flushing && self.out.is_empty() {
                self.flushing = socket.poll_flush(cx)?.is_pending();
            }
            if socket.poll_fill(cx)?.is_ready() {
                self.heard = Instant::now();
                return Poll::Ready(Ok(()));
            }
            if *waits && self.out.is_empty() {
                *waits = false;
                return Poll::Ready(Ok(()));
            }
            if self.beat.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let silent = self.heartbeat * 2;
            if self.heard.elapsed() >= silent {
                return Poll::Ready(Err(Error::Timeout { what: "a heartbeat", after: silent }));
            }
            let next = Instant::now() + self.heartbeat / 2;
            self.beat.as_mut().reset(next);
            // A peer that reads nothing gets no further heartbeats.
            if !std::mem::take(&mut self.wrote) && self.out.is_empty() {
                self.out.put_slice(HEARTBEAT);
            }
        }
    }

    /// Closes the connection in order, waiting for the broker's answer up to `limit`.
    pub async fn close(mut self, limit: Duration) {
        put_method(&mut self.out, 0, method::CLOSE, &method_of(200, "closing"));
        let closing = async {
            // The broker ends the connection after its answer.
            while self.progress().await.is_ok() {
                while let Ok(Some(_)) = self.answer() {}
            }
        };
        let _ = timeout(limit, closing).await;
    }
}
