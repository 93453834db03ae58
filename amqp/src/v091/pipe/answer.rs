//! The broker's answers, parsed from what was read.

use bytes::{Buf, Bytes};

use super::Pipe;
use crate::{
    Error,
    v091::{
        codec::{self, Args, Frame, Method, method, put_method},
        properties::Properties,
    },
};

/// What the broker reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has taken this message, or all up to it.
    Ack {
        /// Where it was published.
        channel: u16,
        /// The number of the publish on its channel, from 1.
        tag: u64,
        /// Whether all before it are answered too.
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
    /// The broker has closed the channel. Unanswered messages on it are never answered; its number is free.
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
    /// The broker accepts no messages on this connection, and why.
    Blocked(String),
    /// It accepts messages again.
    Unblocked,
}

/// A message that the broker returns, until all of it was read.
pub(super) struct Returning {
    channel: u16,
    args: Bytes,
    properties: Option<Properties>,
    /// Bytes of the body still to come.
    left: u64,
}

impl Pipe {
    /// The next answer that was read already. After an error the connection is lost.
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

    /// The returned message of a channel, if all of it was read.
    fn returned(&mut self, channel: u16) -> Result<Option<Answer>, Error> {
        let is_complete = |one: &Returning| one.channel == channel && one.properties.is_some() && one.left == 0;
        let Some(at) = self.returning.iter().position(is_complete) else { return Ok(None) };
        let Returning { mut args, properties, .. } = self.returning.swap_remove(at);
        let (code, text) = (args.u16()?, text(&args.shortstr()?));
        Ok(properties.map(|properties| Answer::Returned { channel, code, text, properties }))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
