//! What the broker sends: frames, methods and their contents.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    CHANNEL, Connection, Incoming, Message,
    codec::{self, Args, Frame, Method, method},
    properties::Properties,
};
use crate::Error;

/// A method whose content is incomplete.
pub(super) struct Partial {
    method: (u16, u16),
    args: Bytes,
    properties: Option<(Properties, usize)>,
    body: BytesMut,
}

pub(super) enum Event {
    Method(Method, Bytes),
    /// A method with its content.
    Content((u16, u16), Bytes, Properties, Bytes),
}

impl Connection {
    pub(super) fn keep(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Content(method::DELIVER, args, properties, body) => {
                self.early.push_back(Incoming::Delivery(message(args, properties, body, true)?));
            }
            Event::Method(method::CANCEL, _) => self.early.push_back(Incoming::Cancelled),
            Event::Method(method::QUEUE_BIND_OK, _) => self.binding = false,
            // A return or confirm of an abandoned publish, connection.blocked and the like.
            Event::Method(..) | Event::Content(..) => {}
        }
        Ok(())
    }

    /// The next method, with its content if it has one. Cancel safe.
    pub(super) async fn event(&mut self) -> Result<Event, Error> {
        loop {
            let frame = self.frame().await?;
            match frame {
                Frame::Method(method, mut args) => match method {
                    method::CLOSE => {
                        let (code, text) = (args.u16()?, args.shortstr()?);
                        return Err(Error::Closed { code, text: String::from_utf8_lossy(&text).into_owned() });
                    }
                    method::CHANNEL_CLOSE => {
                        let (code, text) = (args.u16()?, args.shortstr()?);
                        self.send(CHANNEL, method::CHANNEL_CLOSE_OK, &[]).await?;
                        return Err(Error::Channel { code, text: String::from_utf8_lossy(&text).into_owned() });
                    }
                    method::DELIVER | method::GET_OK | method::RETURN => {
                        self.partial = Some(Partial { method, args, properties: None, body: BytesMut::new() });
                    }
                    method => return Ok(Event::Method(method, args)),
                },
                Frame::Header(size, properties) => {
                    let partial = self.partial.as_mut().ok_or(Error::Malformed("content without a method"))?;
                    let size = usize::try_from(size).map_err(|_| Error::Malformed("a body beyond all bounds"))?;
                    partial.properties = Some((properties, size));
                }
                Frame::Body(part) => {
                    let partial = self.partial.as_mut().ok_or(Error::Malformed("content without a method"))?;
                    partial.body.put_slice(&part);
                }
                Frame::Heartbeat => {}
            }
            if let Some(partial) =
                self.partial.take_if(|p| p.properties.as_ref().is_some_and(|(_, size)| p.body.len() >= *size))
                && let Some((properties, _)) = partial.properties
            {
                return Ok(Event::Content(partial.method, partial.args, properties, partial.body.freeze()));
            }
        }
    }

    async fn frame(&mut self) -> Result<Frame, Error> {
        let size = loop {
            if let Some(size) = self.socket.peek(3) {
                break size as usize;
            }
            self.socket.fill().await?;
        };
        if size > self.frame_max {
            return Err(Error::Malformed("a frame larger than agreed; is this an AMQP port?"));
        }
        let mut frame = self.socket.take(7 + size + 1).await?;
        let (kind, _channel, _size) = (frame.get_u8(), frame.get_u16(), frame.get_u32());
        let payload = frame.split_to(size);
        if frame[..] != [0xce] {
            return Err(Error::Malformed("a frame without its end"));
        }
        codec::frame(kind, payload)
    }
}

pub(super) fn message(mut args: Bytes, properties: Properties, body: Bytes, consumer: bool) -> Result<Message, Error> {
    if consumer {
        args.shortstr()?;
    }
    let delivery_tag = args.u64()?;
    let redelivered = args.u8()? & 1 != 0;
    let (exchange, routing_key) = (args.shortstr()?, args.shortstr()?);
    Ok(Message { delivery_tag, redelivered, exchange, routing_key, properties, body })
}
