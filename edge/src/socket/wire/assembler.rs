//! From bytes to messages: parses frames, joins fragments, enforces the rules of RFC 6455. Knows nothing about sockets
//! and time.
//!
//! Memory grows with what has arrived, not with what a header announces.

use std::{io::Cursor, str};

use bytes::Bytes;
use tokio_tungstenite::tungstenite::{
    Utf8Bytes,
    protocol::frame::{
        FrameHeader,
        coding::{CloseCode as WireCode, Control, Data, OpCode},
    },
};
use wirepost_core::frames::CloseCode;

use crate::compression::{InflateError, inflate};

/// Bytes of an unfinished message that need no permit; beyond it [`Event::Large`] comes first.
pub const UNCHARGED: usize = 4 << 10;
/// Longest header from a client: two bytes, a length of eight, a mask of four.
const HEADER: usize = 14;
/// Longest payload of a control frame (RFC 6455, section 5.5).
const CONTROL: usize = 125;

/// Something complete.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A text message.
    Text(Utf8Bytes),
    /// A binary message.
    Binary(Bytes),
    /// A fragment that does not end its message.
    Fragment,
    /// A message begins that may take this many bytes. It continues with [`Assembler::admit`].
    Large(usize),
    /// A ping, to be answered with this.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// The peer sent a close frame with this code (1005: without one); the payload of the answer.
    Close(u16, Bytes),
}

/// A rule that the peer broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// An illegal frame.
    Protocol,
    /// Text that is not UTF-8.
    Utf8,
    /// A message above the limit.
    TooBig,
}

impl From<InflateError> for ProtocolError {
    fn from(error: InflateError) -> Self {
        match error {
            InflateError::TooBig => Self::TooBig,
            InflateError::Malformed => Self::Protocol,
        }
    }
}

impl ProtocolError {
    /// The close code of the connection.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Protocol => CloseCode::Protocol,
            Self::Utf8 => CloseCode::BadUtf8,
            Self::TooBig => CloseCode::TooBig,
        }
    }
}

/// The unfinished input of one connection.
#[derive(Debug)]
pub(super) struct Assembler {
    limit: usize,
    /// Whether the peer may compress.
    inflates: bool,
    /// Bytes of an incomplete header.
    head: [u8; HEADER],
    head_len: usize,
    frame: Option<Frame>,
    message: Option<Message>,
    control: Vec<u8>,
    mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Messages are assembled.
    Reading,
    /// A large message waits to be admitted.
    Waiting,
    /// Only the peer's close frame is of interest.
    Discarding,
    /// The peer's last frame has arrived, or further input has no meaning.
    Ended,
}

/// A frame whose payload is incomplete.
#[derive(Clone, Copy, Debug)]
struct Frame {
    code: OpCode,
    last: bool,
    mask: [u8; 4],
    left: usize,
}

#[derive(Debug)]
struct Message {
    text: bool,
    compressed: bool,
    payload: Vec<u8>,
    /// Bytes of it that are known to be UTF-8.
    valid: usize,
    admitted: bool,
}

impl Assembler {
    /// Missing bytes of the current frame.
    pub(super) fn frame_left(&self) -> usize {
        self.frame.map_or(0, |frame| frame.left)
    }

    /// Messages may have up to `limit` bytes, decompressed if `inflates` says that they may be compressed.
    pub(super) fn new(limit: usize, inflates: bool) -> Self {
        Self {
            limit,
            inflates,
            head: [0; HEADER],
            head_len: 0,
            frame: None,
            message: None,
            control: Vec::new(),
            mode: Mode::Reading,
        }
    }

    /// Whether a frame or message is unfinished.
    pub(super) fn is_unfinished(&self) -> bool {
        self.head_len > 0 || self.frame.is_some() || self.message.is_some()
    }

    /// Bytes of the unfinished message that have arrived.
    pub(super) fn gathered(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.payload.len())
    }

    /// Lets a large message continue.
    pub(super) fn admit(&mut self) {
        if self.mode == Mode::Waiting {
            self.mode = Mode::Reading;
        }
    }

    /// Discards messages from now on, including the unfinished one.
    pub(super) fn discard(&mut self) {
        if self.mode != Mode::Ended {
            self.mode = Mode::Discarding;
        }
        self.message = None;
    }

    /// Whether no further input matters.
    pub(super) fn has_ended(&self) -> bool {
        self.mode == Mode::Ended
    }

    /// Takes bytes from the front of `input`, until something is complete or nothing is left.
    ///
    /// # Errors
    /// The peer broke a rule; further input has no meaning.
    pub(super) fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ProtocolError> {
        let fed = self.try_feed(input);
        if matches!(fed, Err(_) | Ok(Some(Event::Close(..)))) {
            self.mode = Mode::Ended;
            self.message = None;
        }
        fed
    }

    fn try_feed(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ProtocolError> {
        loop {
            match self.mode {
                Mode::Reading | Mode::Discarding => {}
                Mode::Waiting => return Ok(None),
                Mode::Ended => {
                    *input = &[];
                    return Ok(None);
                }
            }
            let frame = match self.frame {
                Some(frame) => frame,
                None => match self.header(input)? {
                    Some(frame) => {
                        self.frame = Some(frame);
                        if let Some(bytes) = self.wants(frame) {
                            self.mode = Mode::Waiting;
                            return Ok(Some(Event::Large(bytes)));
                        }
                        frame
                    }
                    None => return Ok(None),
                },
            };
            if !self.payload(frame, input)? {
                return Ok(None);
            }
            self.frame = None;
            if let Some(event) = self.complete(frame)? {
                return Ok(Some(event));
            }
        }
    }

    /// The next frame's header; `None` if it is incomplete.
    fn header(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, ProtocolError> {
        if input.is_empty() {
            return Ok(None);
        }
        let known = self.head_len;
        let more = input.len().min(HEADER - known);
        self.head[known..known + more].copy_from_slice(&input[..more]);
        let mut head = Cursor::new(&self.head[..known + more]);
        let Some((header, length)) = FrameHeader::parse(&mut head).map_err(|_| ProtocolError::Protocol)? else {
            self.head_len = known + more;
            *input = &input[more..];
            return Ok(None);
        };
        *input = &input[head.position() as usize - known..];
        self.head_len = 0;
        // RSV1 marks a compressed message, in its first frame only (RFC 7692, section 6).
        let begins = matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
        if header.rsv2 || header.rsv3 || header.rsv1 && !(self.inflates && begins) {
            return Err(ProtocolError::Protocol);
        }
        // A client masks every frame (section 5.1).
        let mask = header.mask.ok_or(ProtocolError::Protocol)?;
        let length = usize::try_from(length).map_err(|_| ProtocolError::TooBig)?;
        match header.opcode {
            OpCode::Control(_) if !header.is_final || length > CONTROL => return Err(ProtocolError::Protocol),
            OpCode::Control(_) => {}
            OpCode::Data(_) if self.mode == Mode::Discarding => {}
            OpCode::Data(data) => self.begin(data, header.rsv1, length)?,
        }
        Ok(Some(Frame { code: header.opcode, last: header.is_final, mask, left: length }))
    }

    /// A frame of a message begins.
    fn begin(&mut self, data: Data, compressed: bool, length: usize) -> Result<(), ProtocolError> {
        match (data, &self.message) {
            (Data::Continue, Some(message)) => {
                if length > self.limit.saturating_sub(message.payload.len()) {
                    return Err(ProtocolError::TooBig);
                }
            }
            (Data::Text | Data::Binary, None) => {
                if length > self.limit {
                    return Err(ProtocolError::TooBig);
                }
                let text = data == Data::Text;
                self.message = Some(Message { text, compressed, payload: Vec::new(), valid: 0, admitted: false });
            }
            _ => return Err(ProtocolError::Protocol),
        }
        Ok(())
    }

    /// The size for which the message needs a permit now. One permit for all of it: two messages with a part each would
    /// wait for each other forever.
    fn wants(&mut self, frame: Frame) -> Option<usize> {
        let message = self.message.as_mut().filter(|_| matches!(frame.code, OpCode::Data(_)))?;
        let alone = frame.last && frame.code != OpCode::Data(Data::Continue);
        if message.admitted || message.payload.len() + frame.left <= UNCHARGED {
            return None;
        }
        message.admitted = true;
        Some(if alone { frame.left } else { self.limit })
    }

    /// Takes the available part of a frame's payload. True: the payload is complete.
    fn payload(&mut self, frame: Frame, input: &mut &[u8]) -> Result<bool, ProtocolError> {
        let (part, rest) = input.split_at(input.len().min(frame.left));
        *input = rest;
        let left = frame.left - part.len();
        let mut mask = frame.mask;
        mask.rotate_left(part.len() % 4);
        self.frame = Some(Frame { mask, left, ..frame });
        match frame.code {
            OpCode::Control(_) => append(&mut self.control, part, left, frame.mask),
            OpCode::Data(_) => {
                if let Some(message) = &mut self.message {
                    append(&mut message.payload, part, left, frame.mask);
                    // A message that arrives in one piece is checked once, at its end, and so is a compressed one.
                    let at_once = message.compressed || left == 0 && frame.last && message.valid == 0;
                    if message.text && !at_once && !part.is_empty() {
                        message.check()?;
                    }
                }
            }
        }
        Ok(left == 0)
    }

    /// A frame is complete.
    fn complete(&mut self, frame: Frame) -> Result<Option<Event>, ProtocolError> {
        match frame.code {
            OpCode::Control(control) => {
                let payload = std::mem::take(&mut self.control);
                match control {
                    Control::Ping if self.mode == Mode::Reading => Ok(Some(Event::Ping(payload.into()))),
                    Control::Pong if self.mode == Mode::Reading => Ok(Some(Event::Pong)),
                    Control::Ping | Control::Pong => Ok(None),
                    Control::Close => close(payload).map(Some),
                    Control::Reserved(_) => Err(ProtocolError::Protocol),
                }
            }
            OpCode::Data(_) if self.mode == Mode::Discarding => Ok(None),
            OpCode::Data(_) if !frame.last => Ok(Some(Event::Fragment)),
            OpCode::Data(_) => {
                let Some(Message { text, compressed, payload, .. }) = self.message.take() else { return Ok(None) };
                let payload = if compressed { inflate(&payload, self.limit)? } else { payload };
                Ok(Some(if text {
                    Event::Text(String::from_utf8(payload).map_err(|_| ProtocolError::Utf8)?.into())
                } else {
                    Event::Binary(payload.into())
                }))
            }
        }
    }
}

impl Message {
    /// Checks what arrived since the last check; a character may continue in the next part.
    fn check(&mut self) -> Result<(), ProtocolError> {
        match str::from_utf8(&self.payload[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(ProtocolError::Utf8),
        }
        Ok(())
    }
}

/// Appends a part of a frame, unmasked; `left` bytes of the frame follow. The capacity doubles, up to the frame's end.
fn append(to: &mut Vec<u8>, part: &[u8], left: usize, mask: [u8; 4]) {
    let begin = to.len();
    if to.capacity() - begin < part.len() {
        let room = part.len().max(begin).min(part.len() + left);
        to.reserve_exact(room);
    }
    to.extend_from_slice(part);
    let (wide, rest) = to[begin..].as_chunks_mut::<8>();
    let both = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    for eight in wide {
        *eight = (u64::from_ne_bytes(*eight) ^ both).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Reads a close frame (section 7.4): its code, and what answers it.
fn close(payload: Vec<u8>) -> Result<Event, ProtocolError> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(Event::Close(1005, Bytes::new())) } else { Err(ProtocolError::Protocol) };
    };
    str::from_utf8(reason).map_err(|_| ProtocolError::Utf8)?;
    let code = u16::from_be_bytes(*code);
    if WireCode::from(code).is_allowed() {
        Ok(Event::Close(code, payload.into()))
    } else {
        Err(ProtocolError::Protocol)
    }
}

#[cfg(test)]
mod tests;
