//! AMQP 1.0, as far as it is needed to receive a queue's messages and to forward one.
//!
//! Messages are bytes here too: they are forwarded as received, whatever their properties contain.
//!
//! **Cancel safety.** [`Connection::recv`] may be dropped at any time. After any other call that was dropped, drop the connection too.
//! Source: OASIS AMQP 1.0 parts 2 (transport), 3 (messaging) and 5 (security); RabbitMQ's addresses, version 2.

mod codec;

use std::{collections::VecDeque, fmt::Write, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::timeout;
use wirepost_rabbitmq::Endpoint;
use wirepost_stream::{Value, described, elements};

use crate::{Error, socket::Socket};
use codec::{List, performative};

/// Longest wait for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the outcome of a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest frame that we accept; a larger message arrives in several.
const MAX_FRAME: u32 = 1 << 20;
/// Transfers that the broker may send until we update our window.
const WINDOW: u32 = 1 << 16;
const HEARTBEAT: &[u8] = &[0, 0, 0, 8, 2, 0, 0, 0];
const AMQP: u8 = 0;
const SASL: u8 = 1;
const RECEIVER: u32 = 0;
const SENDER: u32 = 1;

/// A message as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Delivery id, to settle it.
    pub delivery_id: u32,
    /// Its sections.
    pub payload: Bytes,
}

/// Outcome of a received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Accepted: the queue removes it.
    Accept,
    /// Released: requeued.
    Release,
}

/// Outcome of a message that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A queue or stream has it.
    Taken,
    /// No queue takes it.
    Returned,
    /// The broker refused it.
    Refused,
}

/// See the module.
pub struct Connection {
    socket: Socket,
    max_frame: usize,
    /// Complete messages that were not received yet.
    received: VecDeque<Message>,
    partial: Option<(u32, BytesMut)>,
    /// The delivery count of the receiver's link.
    delivery_count: u32,
    /// Id of the next transfer, and the transfers since we last updated our window.
    next_incoming: u32,
    unannounced: u32,
    next_outgoing: u32,
    /// The delivery count of the sender's link.
    credit: u32,
    links: u32,
}

/// A performative: its descriptor, its list, and the rest of the frame.
struct Performative {
    code: u64,
    list: Bytes,
    payload: Bytes,
}

impl Connection {
    /// Connects, with a session. `heartbeat`: a broker is dead after two silent intervals.
    pub async fn open(endpoint: &Endpoint, heartbeat: Duration) -> Result<Self, Error> {
        let socket = Socket::connect(endpoint).await?;
        let mut connection = Self {
            socket,
            max_frame: MAX_FRAME as usize,
            received: VecDeque::new(),
            partial: None,
            delivery_count: 0,
            next_incoming: 0,
            unannounced: 0,
            next_outgoing: 0,
            credit: 0,
            links: 0,
        };
        let handshake = timeout(CALL_TIMEOUT, connection.handshake(endpoint, heartbeat)).await;
        handshake.unwrap_or(Err(Error::Timeout { what: "the handshake", after: CALL_TIMEOUT })).map_err(|error| {
            Error::Connect { address: endpoint.address().host_and_port(), cause: error.to_string() }
        })?;
        Ok(connection)
    }

    async fn handshake(&mut self, endpoint: &Endpoint, heartbeat: Duration) -> Result<(), Error> {
        let (address, login) = (endpoint.address(), endpoint.address().login());
        self.greet(*b"AMQP\x03\x01\x00\x00").await?;
        self.expect(performative::SASL_MECHANISMS).await?;
        let mut init = List::default();
        init.symbol("PLAIN").binary(format!("\0{}\0{}", login.user, login.password.expose()).as_bytes());
        self.send_frame(SASL, performative::SASL_INIT, &init, &[]).await?;
        let outcome = self.expect(performative::SASL_OUTCOME).await?;
        if elements(&outcome.list).next() != Some(Value::Unsigned(0)) {
            return Err(Error::Malformed("the broker refuses the user name or the password"));
        }
        self.greet(*b"AMQP\x00\x01\x00\x00").await?;
        let mut open = List::default();
        open.string(endpoint.name()).string(&format!("vhost:{}", address.vhost()));
        open.uint(MAX_FRAME).ushort(0).uint(heartbeat.as_millis() as u32 * 2);
        self.send_frame(AMQP, performative::OPEN, &open, &[]).await?;
        let open = self.expect(performative::OPEN).await?;
        if let Some(Value::Unsigned(theirs)) = elements(&open.list).nth(2) {
            self.max_frame = usize::try_from(theirs).unwrap_or(usize::MAX).clamp(512, MAX_FRAME as usize);
        }
        self.socket.beat(heartbeat, HEARTBEAT);
        let mut begin = List::default();
        begin.null().uint(self.next_outgoing).uint(WINDOW).uint(WINDOW);
        self.send_frame(AMQP, performative::BEGIN, &begin, &[]).await?;
        let begin = self.expect(performative::BEGIN).await?;
        self.next_incoming = number(&begin.list, 1).unwrap_or(0);
        Ok(())
    }

    async fn greet(&mut self, header: [u8; 8]) -> Result<(), Error> {
        self.socket.write(&header).await?;
        if self.socket.take(8).await?[..] == header {
            return Ok(());
        }
        Err(Error::Malformed("the broker does not speak AMQP 1.0"))
    }

    /// Begins to receive a queue's messages: at most this many until [`Connection::more`].
    pub async fn receive(&mut self, queue: &str, credit: u32) -> Result<(), Error> {
        let mut source = List::default();
        source.string(&format!("/queues/{}", escaped(queue.as_bytes())));
        let mut attach = List::default();
        // Unsettled from the sender, settled by us first.
        attach.string("wirepost-receiver").uint(RECEIVER).bool(true).ubyte(0).ubyte(0);
        attach.described(performative::SOURCE, &source).described(performative::TARGET, &List::default());
        self.send_frame(AMQP, performative::ATTACH, &attach, &[]).await?;
        let attached = self.call(performative::ATTACH, "receiving").await?;
        self.delivery_count = number(&attached.list, 9).unwrap_or(0);
        self.more(credit).await
    }

    /// Lets the broker send this many more messages.
    pub async fn more(&mut self, credit: u32) -> Result<(), Error> {
        self.flow(Some(credit)).await
    }

    async fn flow(&mut self, credit: Option<u32>) -> Result<(), Error> {
        self.unannounced = 0;
        let mut flow = List::default();
        flow.uint(self.next_incoming).uint(WINDOW).uint(self.next_outgoing).uint(WINDOW);
        if let Some(credit) = credit {
            flow.uint(RECEIVER).uint(self.delivery_count).uint(credit);
        }
        self.send_frame(AMQP, performative::FLOW, &flow, &[]).await
    }

    /// The next message. Cancel safe.
    pub async fn recv(&mut self) -> Result<Message, Error> {
        loop {
            if let Some(message) = self.received.pop_front() {
                return Ok(message);
            }
            if self.unannounced > WINDOW / 2 {
                self.flow(None).await?;
            }
            self.event().await?;
        }
    }

    /// Settles the messages from the first to the last of these.
    pub async fn settle(&mut self, first: u32, last: u32, how: Settle) -> Result<(), Error> {
        let state = match how {
            Settle::Accept => performative::ACCEPTED,
            Settle::Release => performative::RELEASED,
        };
        let mut disposition = List::default();
        disposition.bool(true).uint(first).uint(last).bool(true).described(state, &List::default());
        self.send_frame(AMQP, performative::DISPOSITION, &disposition, &[]).await
    }

    /// Sends a message to an exchange and waits for its outcome. After an error it is unknown whether it arrived.
    pub async fn send(&mut self, exchange: &[u8], routing_key: &[u8], payload: &[u8]) -> Result<Sent, Error> {
        timeout(SEND_TIMEOUT, self.send_one(exchange, routing_key, payload))
            .await
            .unwrap_or(Err(Error::Timeout { what: "the confirm", after: SEND_TIMEOUT }))
    }

    async fn send_one(&mut self, exchange: &[u8], routing_key: &[u8], payload: &[u8]) -> Result<Sent, Error> {
        let mut target = List::default();
        target.string(&format!("/exchanges/{}/{}", escaped(exchange), escaped(routing_key)));
        let mut attach = List::default();
        self.links += 1;
        attach.string(&format!("wirepost-sender-{}", self.links)).uint(SENDER).bool(false).ubyte(0).ubyte(0);
        attach.described(performative::SOURCE, &List::default()).described(performative::TARGET, &target);
        attach.null().null().uint(0);
        self.credit = 0;
        self.send_frame(AMQP, performative::ATTACH, &attach, &[]).await?;
        self.expect(performative::ATTACH).await?;
        while self.credit == 0 {
            self.event().await?;
        }
        // Some room for the performative before the payload.
        let parts: Vec<&[u8]> = payload.chunks(self.max_frame - 256).collect();
        for (index, part) in parts.iter().enumerate() {
            let mut transfer = List::default();
            transfer.uint(SENDER).uint(self.links).binary(&self.links.to_be_bytes()).uint(0).bool(false);
            transfer.bool(index + 1 < parts.len());
            self.next_outgoing = self.next_outgoing.wrapping_add(1);
            self.send_frame(AMQP, performative::TRANSFER, &transfer, part).await?;
        }
        let sent = loop {
            let answer = self.expect(performative::DISPOSITION).await?;
            let mut fields = elements(&answer.list);
            // Role receiver: it is about what we sent.
            if fields.next() != Some(Value::Bool(true)) {
                continue;
            }
            let Some(Value::Other(state)) = fields.nth(3) else { continue };
            break match described(state).map(|(code, ..)| code) {
                Some(performative::ACCEPTED) => Sent::Taken,
                Some(performative::RELEASED) => Sent::Returned,
                _ => Sent::Refused,
            };
        };
        let mut detach = List::default();
        detach.uint(SENDER).bool(true);
        self.send_frame(AMQP, performative::DETACH, &detach, &[]).await?;
        self.expect(performative::DETACH).await?;
        Ok(sent)
    }

    async fn call(&mut self, wanted: u64, what: &'static str) -> Result<Performative, Error> {
        timeout(CALL_TIMEOUT, self.expect(wanted)).await.unwrap_or(Err(Error::Timeout { what, after: CALL_TIMEOUT }))
    }

    async fn expect(&mut self, wanted: u64) -> Result<Performative, Error> {
        loop {
            let performative = self.event().await?;
            if performative.code == wanted {
                return Ok(performative);
            }
        }
    }

    /// The next performative; messages are kept. Cancel safe.
    async fn event(&mut self) -> Result<Performative, Error> {
        let performative = self.frame().await?;
        match performative.code {
            performative::TRANSFER => self.keep(&performative)?,
            performative::FLOW if number(&performative.list, 4) == Some(SENDER) => {
                self.credit = number(&performative.list, 6).unwrap_or(0);
            }
            performative::DETACH | performative::END => {
                // A detach by the broker has a reason; the answer to ours has none.
                if let Some(error) = failure(&performative.list) {
                    return Err(Error::Channel { code: code_of(&error), text: error });
                }
            }
            performative::CLOSE => {
                let error = failure(&performative.list).unwrap_or_default();
                return Err(Error::Closed { code: code_of(&error), text: error });
            }
            _ => {}
        }
        Ok(performative)
    }

    fn keep(&mut self, transfer: &Performative) -> Result<(), Error> {
        self.next_incoming = self.next_incoming.wrapping_add(1);
        self.unannounced += 1;
        let more = elements(&transfer.list).nth(5) == Some(Value::Bool(true));
        let (id, mut payload) = if let Some(partial) = self.partial.take() {
            partial
        } else {
            let id = number(&transfer.list, 1).ok_or(Error::Malformed("a transfer without a delivery id"))?;
            (id, BytesMut::new())
        };
        payload.put_slice(&transfer.payload);
        if more {
            self.partial = Some((id, payload));
        } else {
            self.delivery_count = self.delivery_count.wrapping_add(1);
            self.received.push_back(Message { delivery_id: id, payload: payload.freeze() });
        }
        Ok(())
    }

    async fn send_frame(&mut self, kind: u8, code: u64, list: &List, payload: &[u8]) -> Result<(), Error> {
        let body = list.encoded(code);
        let mut frame = BytesMut::with_capacity(8 + body.len() + payload.len());
        frame.put_u32((8 + body.len() + payload.len()) as u32);
        frame.put_slice(&[2, kind, 0, 0]);
        frame.put_slice(&body);
        frame.put_slice(payload);
        self.socket.write(&frame).await
    }

    async fn frame(&mut self) -> Result<Performative, Error> {
        loop {
            let size = loop {
                if let Some(size) = self.socket.peek(0) {
                    break size as usize;
                }
                self.socket.fill().await?;
            };
            if !(8..=MAX_FRAME as usize).contains(&size) {
                return Err(Error::Malformed("a frame larger than agreed"));
            }
            let mut frame = self.socket.take(size).await?;
            let offset = usize::from(frame[4]) * 4;
            if !(8..=size).contains(&offset) {
                return Err(Error::Malformed("a frame that begins behind its end"));
            }
            frame.advance(offset);
            // Empty ones are heartbeats.
            if !frame.is_empty() {
                let (code, list, payload) =
                    described(&frame).ok_or(Error::Malformed("a frame without a performative"))?;
                return Ok(Performative { code, list: frame.slice_ref(list), payload: frame.slice_ref(payload) });
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let body = List::default().encoded(performative::CLOSE);
        let mut frame = BytesMut::new();
        frame.put_u32(8 + body.len() as u32);
        frame.put_slice(&[2, AMQP, 0, 0]);
        frame.put_slice(&body);
        self.socket.last_words(&frame);
    }
}

/// A number of a list; none of the protocol's exceeds 32 bits.
fn number(list: &[u8], index: usize) -> Option<u32> {
    match elements(list).nth(index)? {
        Value::Unsigned(number) => u32::try_from(number).ok(),
        _ => None,
    }
}

/// The error in a detach, an end or a close: condition and description.
fn failure(list: &[u8]) -> Option<String> {
    elements(list).find_map(|value| {
        let Value::Other(encoded) = value else { return None };
        let (_, error, _) = described(encoded).filter(|(code, ..)| *code == performative::ERROR)?;
        // The description of an internal error fills a page.
        let line = |text: &'_ str| text.lines().next().unwrap_or_default().to_owned();
        let words: Vec<_> = elements(error).take(2).filter_map(Value::as_str).map(line).collect();
        Some(words.join(": "))
    })
}

/// The reply code of 0-9-1 that means the same.
fn code_of(error: &str) -> u16 {
    match error.split(':').take(2).collect::<Vec<_>>()[..] {
        ["amqp", condition, ..] if condition.starts_with("internal-error") => 541,
        ["amqp", condition, ..] if condition.starts_with("not-found") => 404,
        _ => 0,
    }
}

/// Percent-encoded, as addresses contain names.
fn escaped(name: &[u8]) -> String {
    name.iter().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push(char::from(*byte));
        } else {
            // Writing into a string can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
