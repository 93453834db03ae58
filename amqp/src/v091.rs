//! AMQP 0-9-1 with one channel; properties stay bytes.
//!
//! **Flow.** One owner at a time: calls wait for their answers, and deliveries ([`Incoming`]) are queued for [`Connection::recv`].
//! Heartbeats are sent only while a call waits, so the owner of a connection waits in `recv` most of the time.
//! **Cancel safety.** [`Connection::recv`] may be dropped at any time. After any other call that was dropped, drop the connection too.
//! Source: the AMQP 0-9-1 specification and RabbitMQ's extensions (confirms, `basic.nack`, consumer cancel notifications).

mod codec;
mod incoming;
mod pipe;
mod properties;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::timeout;
use wirepost_rabbitmq::Endpoint;

use crate::{Error, socket::Socket};
use codec::{Args, frames_of_content, method, method_of, put_longstr, put_shortstr};
use incoming::{Event, Partial, message};
pub use pipe::{Answer, Content, HeaderValue, Pipe};
pub use properties::{Properties, Property};

/// Longest wait for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a confirm. A broker with an alarm sends none until the alarm ends.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// RabbitMQ's own default.
const MAX_FRAME: u32 = 128 << 10;
const HEARTBEAT: &[u8] = &[8, 0, 0, 0, 0, 0, 0, 0xce];
const CHANNEL: u16 = 1;

/// A message as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Delivery tag, for the acknowledgement.
    pub delivery_tag: u64,
    /// It may have been delivered before.
    pub redelivered: bool,
    /// The exchange that it was published to.
    pub exchange: Bytes,
    /// Any bytes.
    pub routing_key: Bytes,
    /// Uninterpreted.
    pub properties: Properties,
    /// The body.
    pub body: Bytes,
}

/// What arrives without a request.
#[derive(Debug)]
pub enum Incoming {
    /// A delivery to our consumer.
    Delivery(Message),
    /// The broker cancelled our consumer: its queue was deleted.
    Cancelled,
}

/// Outcome of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// A queue or stream has it.
    Taken,
    /// Returned: no queue takes it. In the broker's words.
    Returned(String),
    /// The broker refused it: a queue is full, for instance.
    Refused,
}

/// Counts of a queue at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Ready for delivery.
    pub messages: u32,
    /// Its consumers.
    pub consumers: u32,
}

/// See the module.
pub struct Connection {
    socket: Socket,
    frame_max: usize,
    /// Highest channel number.
    channel_max: u16,
    /// Deliveries that arrived while a call waited for its answer.
    early: VecDeque<Incoming>,
    partial: Option<Partial>,
    /// Whether the broker is sent a close when this is dropped.
    farewell: bool,
    /// A [`Connection::bind_again`] that is not answered yet.
    binding: bool,
}

impl Connection {
    /// Connects, with a channel. `heartbeat`: a broker is dead after two silent intervals.
    pub async fn open(endpoint: &Endpoint, heartbeat: Duration) -> Result<Self, Error> {
        Self::connect(endpoint, heartbeat, true).await
    }

    async fn connect(endpoint: &Endpoint, heartbeat: Duration, channel: bool) -> Result<Self, Error> {
        let socket = Socket::connect(endpoint).await?;
        let (frame_max, channel_max) = (MAX_FRAME as usize, u16::MAX);
        let early = VecDeque::new();
        let mut connection =
            Self { socket, frame_max, channel_max, early, partial: None, farewell: true, binding: false };
        let opening = async {
            connection.handshake(endpoint, heartbeat).await?;
            if channel { connection.open_channel().await } else { Ok(()) }
        };
        let opened = timeout(CALL_TIMEOUT, opening).await;
        opened.unwrap_or(Err(Error::Timeout { what: "the handshake", after: CALL_TIMEOUT })).map_err(|error| {
            let cause = match error {
                Error::Io(error) => format!("closed during the handshake ({error}); are user and vhost right?"),
                error => error.to_string(),
            };
            Error::Connect { address: endpoint.address().host_and_port(), cause }
        })?;
        Ok(connection)
    }

    async fn handshake(&mut self, endpoint: &Endpoint, heartbeat: Duration) -> Result<(), Error> {
        let (address, login) = (endpoint.address(), endpoint.address().login());
        self.socket.write(b"AMQP\x00\x00\x09\x01").await?;
        self.expect(method::START).await?;
        let mut properties = BytesMut::new();
        put_shortstr(&mut properties, "connection_name")?;
        properties.put_u8(b'S');
        put_longstr(&mut properties, endpoint.name().as_bytes());
        put_shortstr(&mut properties, "capabilities")?;
        properties.put_u8(b'F');
        let mut capabilities = BytesMut::new();
        for name in [
            "authentication_failure_close",
            "basic.nack",
            "publisher_confirms",
            "consumer_cancel_notify",
            "connection.blocked",
        ] {
            put_shortstr(&mut capabilities, name)?;
            capabilities.put_slice(b"t\x01");
        }
        put_longstr(&mut properties, &capabilities);
        let mut args = BytesMut::new();
        put_longstr(&mut args, &properties);
        put_shortstr(&mut args, "PLAIN")?;
        put_longstr(&mut args, format!("\0{}\0{}", login.user, login.password.expose()).as_bytes());
        put_shortstr(&mut args, "en_US")?;
        self.send(0, method::START_OK, &args).await?;

        let mut tune = self.expect(method::TUNE).await?;
        let (channels, frame) = (tune.u16()?, tune.u32()?);
        let frame = if frame == 0 { MAX_FRAME } else { frame.min(MAX_FRAME) };
        self.frame_max = frame as usize;
        self.channel_max = if channels == 0 { u16::MAX } else { channels };
        let mut args = BytesMut::new();
        args.put_u16(channels);
        args.put_u32(frame);
        args.put_u16(heartbeat.as_secs() as u16);
        self.send(0, method::TUNE_OK, &args).await?;
        self.socket.beat(heartbeat, HEARTBEAT);
        let mut args = BytesMut::new();
        put_shortstr(&mut args, address.vhost())?;
        args.put_slice(&[0, 0]);
        self.send(0, method::OPEN, &args).await?;
        self.expect(method::OPEN_OK).await.map(drop)
    }

    /// Opens the channel again, after the broker closed it ([`Error::Channel`]). Its unacknowledged messages are requeued.
    pub async fn open_channel(&mut self) -> Result<(), Error> {
        self.early.clear();
        self.partial = None;
        self.binding = false;
        self.call(method::CHANNEL_OPEN, &[0], method::CHANNEL_OPEN_OK, "opening a channel").await.map(drop)
    }

    /// Counts of a queue that must exist.
    pub async fn counts(&mut self, queue: &str) -> Result<Counts, Error> {
        self.declare_queue(queue, 1, &[]).await
    }

    /// Declares a durable queue with these arguments, encoded as a field table without its length.
    pub async fn declare(&mut self, queue: &str, arguments: &[u8]) -> Result<Counts, Error> {
        self.declare_queue(queue, 2, arguments).await
    }

    async fn declare_queue(&mut self, queue: &str, bits: u8, arguments: &[u8]) -> Result<Counts, Error> {
        let mut args = BytesMut::new();
        args.put_u16(0);
        put_shortstr(&mut args, queue)?;
        args.put_u8(bits);
        put_longstr(&mut args, arguments);
        let mut ok = self.call(method::QUEUE_DECLARE, &args, method::QUEUE_DECLARE_OK, "declaring a queue").await?;
        ok.shortstr()?;
        Ok(Counts { messages: ok.u32()?, consumers: ok.u32()? })
    }

    /// Binds a queue.
    pub async fn bind(&mut self, queue: &str, exchange: &str, routing_key: &str) -> Result<(), Error> {
        let args = binding(queue, exchange, routing_key)?;
        self.call(method::QUEUE_BIND, &args, method::QUEUE_BIND_OK, "binding a queue").await.map(drop)
    }

    /// Binds a queue that is bound already, unless somebody has removed the binding. Does not wait for the answer, and sends nothing while
    /// the one before is unanswered: a broker may be slow with its metadata and deliver as ever. If it fails, [`Connection::recv`] does.
    pub async fn bind_again(&mut self, queue: &str, exchange: &str, routing_key: &str) -> Result<(), Error> {
        if std::mem::replace(&mut self.binding, true) {
            return Ok(());
        }
        self.send(CHANNEL, method::QUEUE_BIND, &binding(queue, exchange, routing_key)?).await
    }

    /// Purges the ready messages of a queue.
    pub async fn purge(&mut self, queue: &str) -> Result<(), Error> {
        let mut args = BytesMut::new();
        args.put_u16(0);
        put_shortstr(&mut args, queue)?;
        args.put_u8(0);
        self.call(method::QUEUE_PURGE, &args, method::QUEUE_PURGE_OK, "emptying a queue").await.map(drop)
    }

    /// Deletes a queue with its messages. A missing queue is not an error.
    pub async fn delete(&mut self, queue: &str) -> Result<(), Error> {
        let mut args = BytesMut::new();
        args.put_u16(0);
        put_shortstr(&mut args, queue)?;
        args.put_u8(0);
        self.call(method::QUEUE_DELETE, &args, method::QUEUE_DELETE_OK, "deleting a queue").await.map(drop)
    }

    /// Bounds the unacknowledged messages of later consumers.
    pub async fn prefetch(&mut self, messages: u16) -> Result<(), Error> {
        let mut args = BytesMut::new();
        args.put_u32(0);
        args.put_u16(messages);
        args.put_u8(0);
        self.call(method::QOS, &args, method::QOS_OK, "prefetch").await.map(drop)
    }

    /// Consumes with acknowledgements, as the queue's only consumer.
    pub async fn consume_exclusively(&mut self, queue: &str, tag: &str) -> Result<(), Error> {
        let mut args = BytesMut::new();
        args.put_u16(0);
        put_shortstr(&mut args, queue)?;
        put_shortstr(&mut args, tag)?;
        args.put_u8(4);
        put_longstr(&mut args, &[]);
        self.call(method::CONSUME, &args, method::CONSUME_OK, "consuming").await.map(drop)
    }

    /// Cancels a consumer of ours. Its deliveries may still be settled.
    pub async fn cancel(&mut self, tag: &str) -> Result<(), Error> {
        let mut args = BytesMut::new();
        put_shortstr(&mut args, tag)?;
        args.put_u8(0);
        self.call(method::CANCEL, &args, method::CANCEL_OK, "ending a consumer").await.map(drop)
    }

    /// The next delivery or notification. An [`Error::Channel`] ends the consumer.
    pub async fn recv(&mut self) -> Result<Incoming, Error> {
        loop {
            if let Some(early) = self.early.pop_front() {
                return Ok(early);
            }
            let event = self.event().await?;
            self.keep(event)?;
        }
    }

    /// Acknowledges a message, or all up to it.
    pub async fn ack(&mut self, delivery_tag: u64, multiple: bool) -> Result<(), Error> {
        let mut args = BytesMut::new();
        args.put_u64(delivery_tag);
        args.put_u8(multiple.into());
        self.send(CHANNEL, method::ACK, &args).await
    }

    /// Requeues a message, or all up to it.
    pub async fn requeue(&mut self, delivery_tag: u64, multiple: bool) -> Result<(), Error> {
        let mut args = BytesMut::new();
        args.put_u64(delivery_tag);
        args.put_u8(u8::from(multiple) | 2);
        self.send(CHANNEL, method::NACK, &args).await
    }

    /// The oldest ready message of a queue, to be acknowledged.
    pub async fn get(&mut self, queue: &str) -> Result<Option<Message>, Error> {
        self.get_with(queue, 0).await
    }

    /// The same without acknowledgement: whatever the answer is, that message is gone.
    pub async fn take(&mut self, queue: &str) -> Result<Option<Message>, Error> {
        self.get_with(queue, 1).await
    }

    async fn get_with(&mut self, queue: &str, bits: u8) -> Result<Option<Message>, Error> {
        let mut args = BytesMut::new();
        args.put_u16(0);
        put_shortstr(&mut args, queue)?;
        args.put_u8(bits);
        self.send(CHANNEL, method::GET, &args).await?;
        let answer = async {
            loop {
                match self.event().await? {
                    Event::Method(method::GET_EMPTY, _) => return Ok(None),
                    Event::Content(method::GET_OK, args, properties, body) => {
                        return message(args, properties, body, false).map(Some);
                    }
                    other => self.keep(other)?,
                }
            }
        };
        timeout(CALL_TIMEOUT, answer).await.unwrap_or(Err(Error::Timeout { what: "getting", after: CALL_TIMEOUT }))
    }

    /// Enables confirms, which [`Connection::publish`] needs.
    pub async fn confirm(&mut self) -> Result<(), Error> {
        self.call(method::CONFIRM_SELECT, &[0], method::CONFIRM_SELECT_OK, "switching confirms on").await.map(drop)
    }

    /// Publishes with `mandatory` and waits for the confirm. After an error it is unknown whether the message arrived, and the
    /// connection may be used again only after [`Error::Channel`].
    pub async fn publish(
        &mut self,
        exchange: &[u8],
        routing_key: &[u8],
        properties: &Properties,
        body: &[u8],
    ) -> Result<Published, Error> {
        let mut args = BytesMut::new();
        args.put_u16(0);
        codec::put_short_bytes(&mut args, exchange)?;
        codec::put_short_bytes(&mut args, routing_key)?;
        args.put_u8(1);
        let mut frames = BytesMut::new();
        codec::put_method(&mut frames, CHANNEL, method::PUBLISH, &args);
        frames_of_content(&mut frames, CHANNEL, properties.as_bytes(), body, self.frame_max);
        self.socket.write(&frames).await?;
        let answer = async {
            let mut returned = None;
            loop {
                match self.event().await? {
                    Event::Method(method::ACK, _) => {
                        return Ok(returned.map_or(Published::Taken, Published::Returned));
                    }
                    Event::Method(method::NACK, _) => {
                        return Ok(returned.map_or(Published::Refused, Published::Returned));
                    }
                    Event::Content(method::RETURN, mut args, ..) => {
                        args.u16()?;
                        returned = Some(String::from_utf8_lossy(&args.shortstr()?).into_owned());
                    }
                    other => self.keep(other)?,
                }
            }
        };
        let late = Error::Timeout { what: "the confirm", after: CONFIRM_TIMEOUT };
        timeout(CONFIRM_TIMEOUT, answer).await.unwrap_or(Err(late))
    }

    async fn call(
        &mut self,
        request: (u16, u16),
        args: &[u8],
        wanted: (u16, u16),
        what: &'static str,
    ) -> Result<Bytes, Error> {
        self.send(CHANNEL, request, args).await?;
        let answer = self.expect(wanted);
        timeout(CALL_TIMEOUT, answer).await.unwrap_or(Err(Error::Timeout { what, after: CALL_TIMEOUT }))
    }

    async fn expect(&mut self, wanted: (u16, u16)) -> Result<Bytes, Error> {
        loop {
            match self.event().await? {
                Event::Method(got, args) if got == wanted => return Ok(args),
                other => self.keep(other)?,
            }
        }
    }

    async fn send(&mut self, channel: u16, method: (u16, u16), args: &[u8]) -> Result<(), Error> {
        let mut frame = BytesMut::new();
        codec::put_method(&mut frame, channel, method, args);
        self.socket.write(&frame).await
    }
}

fn binding(queue: &str, exchange: &str, routing_key: &str) -> Result<BytesMut, Error> {
    let mut args = BytesMut::new();
    args.put_u16(0);
    for name in [queue, exchange, routing_key] {
        put_shortstr(&mut args, name)?;
    }
    args.put_u8(0);
    put_longstr(&mut args, &[]);
    Ok(args)
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.farewell {
            return;
        }
        let mut frame = BytesMut::new();
        let close = method_of(200, "done");
        codec::put_method(&mut frame, 0, method::CLOSE, &close);
        self.socket.last_words(&frame);
    }
}
