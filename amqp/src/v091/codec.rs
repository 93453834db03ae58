//! Frames of AMQP 0-9-1.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Properties;
use crate::Error;

/// Class and method.
pub(super) type Method = (u16, u16);

/// Methods by class and number.
pub(super) mod method {
    use super::Method;

    pub(in super::super) const START: Method = (10, 10);
    pub(in super::super) const START_OK: Method = (10, 11);
    pub(in super::super) const TUNE: Method = (10, 30);
    pub(in super::super) const TUNE_OK: Method = (10, 31);
    pub(in super::super) const OPEN: Method = (10, 40);
    pub(in super::super) const OPEN_OK: Method = (10, 41);
    pub(in super::super) const CLOSE: Method = (10, 50);
    pub(in super::super) const BLOCKED: Method = (10, 60);
    pub(in super::super) const UNBLOCKED: Method = (10, 61);
    pub(in super::super) const CHANNEL_OPEN: Method = (20, 10);
    pub(in super::super) const CHANNEL_OPEN_OK: Method = (20, 11);
    pub(in super::super) const CHANNEL_CLOSE: Method = (20, 40);
    pub(in super::super) const CHANNEL_CLOSE_OK: Method = (20, 41);
    pub(in super::super) const QUEUE_DECLARE: Method = (50, 10);
    pub(in super::super) const QUEUE_DECLARE_OK: Method = (50, 11);
    pub(in super::super) const QUEUE_BIND: Method = (50, 20);
    pub(in super::super) const QUEUE_BIND_OK: Method = (50, 21);
    pub(in super::super) const QUEUE_PURGE: Method = (50, 30);
    pub(in super::super) const QUEUE_PURGE_OK: Method = (50, 31);
    pub(in super::super) const QUEUE_DELETE: Method = (50, 40);
    pub(in super::super) const QUEUE_DELETE_OK: Method = (50, 41);
    pub(in super::super) const QOS: Method = (60, 10);
    pub(in super::super) const QOS_OK: Method = (60, 11);
    pub(in super::super) const CONSUME: Method = (60, 20);
    pub(in super::super) const CONSUME_OK: Method = (60, 21);
    pub(in super::super) const CANCEL: Method = (60, 30);
    pub(in super::super) const CANCEL_OK: Method = (60, 31);
    pub(in super::super) const PUBLISH: Method = (60, 40);
    pub(in super::super) const RETURN: Method = (60, 50);
    pub(in super::super) const DELIVER: Method = (60, 60);
    pub(in super::super) const GET: Method = (60, 70);
    pub(in super::super) const GET_OK: Method = (60, 71);
    pub(in super::super) const GET_EMPTY: Method = (60, 72);
    pub(in super::super) const ACK: Method = (60, 80);
    pub(in super::super) const NACK: Method = (60, 120);
    pub(in super::super) const CONFIRM_SELECT: Method = (85, 10);
    pub(in super::super) const CONFIRM_SELECT_OK: Method = (85, 11);
}

const BASIC: u16 = 60;
pub(super) const END: u8 = 0xce;
/// Type, channel and size before a frame, and the end after it.
const AROUND: usize = 8;

pub(super) enum Frame {
    Method(Method, Bytes),
    /// Size of the body, properties.
    Header(u64, Properties),
    Body(Bytes),
    Heartbeat,
}

pub(super) fn frame(kind: u8, mut payload: Bytes) -> Result<Frame, Error> {
    Ok(match kind {
        1 => Frame::Method((payload.u16()?, payload.u16()?), payload),
        2 => {
            let (_class, _weight, size) = (payload.u16()?, payload.u16()?, payload.u64()?);
            Frame::Header(size, Properties::from_bytes(payload))
        }
        3 => Frame::Body(payload),
        8 => Frame::Heartbeat,
        _ => return Err(Error::Malformed("a frame of an unknown type")),
    })
}

fn put_frame(out: &mut BytesMut, kind: u8, channel: u16, payload: &[&[u8]]) {
    out.put_u8(kind);
    out.put_u16(channel);
    out.put_u32(payload.iter().map(|part| part.len()).sum::<usize>() as u32);
    for part in payload {
        out.put_slice(part);
    }
    out.put_u8(END);
}

pub(super) fn put_method(out: &mut BytesMut, channel: u16, (class, method): Method, args: &[u8]) {
    put_frame(out, 1, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), args]);
}

/// Header and body frames.
pub(super) fn frames_of_content(out: &mut BytesMut, channel: u16, properties: &[u8], body: &[u8], frame_max: usize) {
    let size = (body.len() as u64).to_be_bytes();
    put_frame(out, 2, channel, &[&BASIC.to_be_bytes(), &[0, 0], &size, properties]);
    for part in body.chunks(frame_max - AROUND) {
        put_frame(out, 3, channel, &[part]);
    }
}

/// The arguments of a close.
pub(super) fn method_of(code: u16, text: &str) -> BytesMut {
    let mut args = BytesMut::new();
    args.put_u16(code);
    args.put_u8(text.len() as u8);
    args.put_slice(text.as_bytes());
    args.put_u32(0);
    args
}

pub(super) fn put_shortstr(out: &mut BytesMut, text: &str) -> Result<(), Error> {
    put_short_bytes(out, text.as_bytes())
}

pub(super) fn put_short_bytes(out: &mut BytesMut, bytes: &[u8]) -> Result<(), Error> {
    let length = u8::try_from(bytes.len()).map_err(|_| Error::TooLong(String::from_utf8_lossy(bytes).into_owned()))?;
    out.put_u8(length);
    out.put_slice(bytes);
    Ok(())
}

pub(super) fn put_longstr(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

/// Reads arguments from the front, without panics.
pub(super) trait Args {
    fn bytes(&mut self, n: usize) -> Result<Bytes, Error>;

    fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.bytes(1)?.get_u8())
    }

    fn u16(&mut self) -> Result<u16, Error> {
        Ok(self.bytes(2)?.get_u16())
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(self.bytes(4)?.get_u32())
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(self.bytes(8)?.get_u64())
    }

    fn shortstr(&mut self) -> Result<Bytes, Error> {
        let length = self.u8()?;
        self.bytes(length.into())
    }
}

impl Args for Bytes {
    fn bytes(&mut self, n: usize) -> Result<Bytes, Error> {
        if self.len() < n {
            return Err(Error::Malformed("a method that is cut off"));
        }
        Ok(self.split_to(n))
    }
}
