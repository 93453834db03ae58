//! A connection for publishing many messages at a time: what is queued goes out in one write, what came is taken in one read.
//!
//! *Flow*: calls like [`Pipe::publish`] only queue bytes. [`Pipe::progress`] writes and reads, both at the same time, and [`Pipe::answer`]
//! takes the answers that are there. Channels are numbered by the caller; a channel may be used as soon as its opening is queued, since the
//! broker handles frames in order. *Bound*: the caller stops queueing while [`Pipe::queued`] is high; what is read is bounded by one read
//! and one frame, and the body of a returned message is not kept.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use wirepost_rabbitmq::Endpoint;

use super::{
    Connection, HEARTBEAT,
    codec::{
        self, Args, Frame, Method, frames_of_content, method, method_of, put_longstr, put_method, put_short_bytes,
        put_shortstr,
    },
    properties::{Properties, Property},
};
use crate::Error;

/// What the broker reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has this message, or all up to it.
    Ack {
        /// Where it was published.
        channel: u16,
        /// How many publishes of the channel there were up to it.
        tag: u64,
        /// Whether all before it are meant too.
        multiple: bool,
    },
    /// It does not take this message, or all up to it.
    Nack {
        /// See [`Answer::Ack`].
        channel: u16,
        /// See [`Answer::Ack`].
        tag: u64,
        /// See [`Answer::Ack`].
        multiple: bool,
    },
    /// No queue takes this message. Its confirm follows.
    Returned {
        /// Where it was published.
        channel: u16,
        /// AMQP's reply code.
        code: u16,
        /// In the broker's words.
        text: String,
        /// Its properties.
        properties: Properties,
    },
    /// The broker has closed the channel. Everything published on it and unanswered stays so; its number is free.
    ChannelClosed {
        /// Which one.
        channel: u16,
        /// AMQP's reply code.
        code: u16,
        /// In the broker's words.
        text: String,
    },
    /// A channel that we closed is closed: its number is free.
    ChannelCloseOk(u16),
    /// The broker takes no publishes on this connection, and why.
    Blocked(String),
    /// It takes them again.
    Unblocked,
}

/// The value of a header.
#[derive(Clone, Copy, Debug)]
pub enum HeaderValue<'a> {
    /// A long string.
    Text(&'a [u8]),
    /// A list of one long string.
    List(&'a [u8]),
    /// A 64-bit number.
    Number(i64),
}

/// A message to publish, beside its headers. Names of more than 255 bytes can't be sent.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// Empty is the default exchange.
    pub exchange: &'a str,
    /// At the exchange.
    pub routing_key: &'a str,
    /// Whether the broker returns it if no queue takes it.
    pub mandatory: bool,
    /// A property.
    pub content_type: &'a str,
    /// A property; left out if it has more than 255 bytes.
    pub message_id: &'a str,
    /// A property, in seconds.
    pub timestamp: u64,
    /// The body.
    pub body: &'a [u8],
}

/// A message that the broker returns, until all of it is there.
struct Returning {
    channel: u16,
    args: Bytes,
    properties: Option<Properties>,
    /// Bytes of the body still to come.
    left: u64,
}

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
    /// When the next heartbeat of ours is due, and whether something else was written since the last one.
    beat: Pin<Box<Sleep>>,
    wrote: bool,
    scratch: BytesMut,
}

impl Pipe {
    /// Connects. `heartbeat`: a broker that sends nothing for two of them is dead.
    pub async fn open(endpoint: &Endpoint, heartbeat: Duration) -> Result<Self, Error> {
        let mut connection = Connection::connect(endpoint, heartbeat, false).await?;
        // A frame may be half written: bytes behind it would be taken for the rest of a message.
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

    /// Bytes that were ever queued: where the next one stands, to be compared with [`Pipe::written`].
    pub fn position(&self) -> u64 {
        self.written + self.out.len() as u64
    }

    /// Bytes that the operating system has taken. What stands behind them has not left this process.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Queues the opening of a channel, with confirms or without.
    pub fn open_channel(&mut self, channel: u16, confirms: bool) {
        put_method(&mut self.out, channel, method::CHANNEL_OPEN, &[0]);
        if confirms {
            put_method(&mut self.out, channel, method::CONFIRM_SELECT, &[0]);
        }
    }

    /// Queues the closing of a channel; answers to it may still come before [`Answer::ChannelCloseOk`].
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

    /// Writes what is queued and reads what comes, until something was read, or everything queued was written. Cancel safe. After an
    /// error the connection is lost.
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
            // A peer that reads nothing gets no more of them.
            if !std::mem::take(&mut self.wrote) && self.out.is_empty() {
                self.out.put_slice(HEARTBEAT);
            }
        }
    }

    /// The next answer that is already here. After an error the connection is lost.
    pub fn answer(&mut self) -> Result<Option<Answer>, Error> {
        loop {
            let buffer = &mut self.connection.socket.buffer;
            let Some(head) = buffer.get(..7) else { return Ok(None) };
            let (kind, mut rest) = (head[0], &head[1..]);
            let (channel, size) = (rest.get_u16(), rest.get_u32() as usize);
            if size > self.connection.frame_max {
                return Err(Error::Malformed("a frame larger than agreed; is this an AMQP port?"));
            }
            if buffer.len() < 7 + size + 1 {
                return Ok(None);
            }
            let mut frame = buffer.split_to(7 + size + 1).freeze();
            frame.advance(7);
            let payload = frame.split_to(size);
            if frame[..] != [codec::END] {
                return Err(Error::Malformed("a frame without its end"));
            }
            let answer = match codec::frame(kind, payload)? {
                Frame::Method(method, args) => self.method(channel, method, args)?,
                Frame::Header(size, properties) => {
                    let returning = self.returning(channel)?;
                    (returning.properties, returning.left) = (Some(properties), size);
                    self.returned(channel)?
                }
                Frame::Body(part) => {
                    let returning = self.returning(channel)?;
                    returning.left = returning.left.saturating_sub(part.len() as u64);
                    self.returned(channel)?
                }
                Frame::Heartbeat => None,
            };
            if answer.is_some() {
                return Ok(answer);
            }
        }
    }

    fn method(&mut self, channel: u16, method: Method, mut args: Bytes) -> Result<Option<Answer>, Error> {
        Ok(Some(match method {
            method::ACK => Answer::Ack { channel, tag: args.u64()?, multiple: args.u8()? & 1 != 0 },
            method::NACK => Answer::Nack { channel, tag: args.u64()?, multiple: args.u8()? & 1 != 0 },
            method::RETURN => {
                self.returning.push(Returning { channel, args, properties: None, left: 0 });
                return Ok(None);
            }
            method::CHANNEL_CLOSE => {
                let (code, text) = (args.u16()?, text(&args.shortstr()?));
                put_method(&mut self.out, channel, method::CHANNEL_CLOSE_OK, &[]);
                self.returning.retain(|returning| returning.channel != channel);
                Answer::ChannelClosed { channel, code, text }
            }
            method::CHANNEL_CLOSE_OK => {
                self.returning.retain(|returning| returning.channel != channel);
                Answer::ChannelCloseOk(channel)
            }
            method::BLOCKED => Answer::Blocked(text(&args.shortstr()?)),
            method::UNBLOCKED => Answer::Unblocked,
            method::CLOSE => {
                let (code, text) = (args.u16()?, text(&args.shortstr()?));
                return Err(Error::Closed { code, text });
            }
            // Openings that succeeded.
            _ => return Ok(None),
        }))
    }

    fn returning(&mut self, channel: u16) -> Result<&mut Returning, Error> {
        let found = self.returning.iter_mut().find(|returning| returning.channel == channel);
        found.ok_or(Error::Malformed("content without a method"))
    }

    /// The returned message of a channel, if all of it is there.
    fn returned(&mut self, channel: u16) -> Result<Option<Answer>, Error> {
        let is_complete = |one: &Returning| one.channel == channel && one.properties.is_some() && one.left == 0;
        let Some(at) = self.returning.iter().position(is_complete) else { return Ok(None) };
        let Returning { mut args, properties, .. } = self.returning.swap_remove(at);
        let (code, text) = (args.u16()?, text(&args.shortstr()?));
        Ok(properties.map(|properties| Answer::Returned { channel, code, text, properties }))
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Flags and properties, in the order of the wire.
fn put_properties<'a>(
    out: &mut BytesMut,
    content: &Content<'_>,
    headers: impl Iterator<Item = (&'a str, HeaderValue<'a>)>,
) {
    let message_id = content.message_id.as_bytes();
    let has_id = u8::try_from(message_id.len()).is_ok();
    let mut flags = [Property::ContentType, Property::Headers, Property::DeliveryMode, Property::Timestamp]
        .into_iter()
        .fold(0, |flags, property| flags | property.flag());
    if has_id {
        flags |= Property::MessageId.flag();
    }
    out.put_u16(flags);
    // A constant of the caller.
    let _ = put_shortstr(out, content.content_type);
    let table = out.len();
    out.put_u32(0);
    for (name, value) in headers {
        if put_shortstr(out, name).is_err() {
            continue;
        }
        match value {
            HeaderValue::Text(text) => {
                out.put_u8(b'S');
                put_longstr(out, text);
            }
            HeaderValue::List(item) => {
                out.put_u8(b'A');
                out.put_u32(item.len() as u32 + 5);
                out.put_u8(b'S');
                put_longstr(out, item);
            }
            HeaderValue::Number(number) => {
                out.put_u8(b'l');
                out.put_i64(number);
            }
        }
    }
    let size = (out.len() - table - 4) as u32;
    out[table..table + 4].copy_from_slice(&size.to_be_bytes());
    out.put_u8(2);
    if has_id {
        // Its length was checked.
        let _ = put_short_bytes(out, message_id);
    }
    out.put_u64(content.timestamp);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_written_as_they_are_read() {
        let content = Content {
            exchange: "",
            routing_key: "",
            mandatory: true,
            content_type: "application/json",
            message_id: "m-1",
            timestamp: 1_700_000_000,
            body: b"",
        };
        let headers = [
            ("BCC", HeaderValue::List(b"queue a")),
            ("publish-number", HeaderValue::Number(258)),
            ("from", HeaderValue::Text(b"alice")),
        ];
        let mut out = BytesMut::new();
        put_properties(&mut out, &content, headers.into_iter());
        let properties = Properties::from_bytes(out.freeze());
        assert_eq!(properties.text(Property::ContentType).as_deref(), Some(&b"application/json"[..]));
        assert_eq!(properties.text(Property::MessageId).as_deref(), Some(&b"m-1"[..]));
        assert_eq!(properties.number("publish-number"), Some(258));
        assert_eq!(properties.number("from"), None);
        assert_eq!(properties.header("from").as_deref(), Some(&b"alice"[..]));
        assert_eq!(properties.persistent(), properties);
        assert_eq!(properties.readable(), properties);
        let too_long = "x".repeat(256);
        let mut out = BytesMut::new();
        put_properties(&mut out, &Content { message_id: &too_long, ..content }, std::iter::empty());
        assert_eq!(Properties::from_bytes(out.freeze()).text(Property::MessageId), None);
    }
}
