//! Frames of the RabbitMQ stream protocol: splitting a byte stream into frames, reading and writing their fields.
//!
//! Every frame is `size: u32, key: u16, version: u16, ...` in network byte order, where `size` does not count
//! itself. A response has the key of its request with the top bit set. Source: `PROTOCOL.adoc` of RabbitMQ's
//! stream plugin.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Command keys that this crate sends or understands.
pub(crate) mod key {
    pub(crate) const SUBSCRIBE: u16 = 0x07;
    pub(crate) const DELIVER: u16 = 0x08;
    pub(crate) const CREDIT: u16 = 0x09;
    pub(crate) const UNSUBSCRIBE: u16 = 0x0c;
    pub(crate) const METADATA: u16 = 0x0f;
    pub(crate) const METADATA_UPDATE: u16 = 0x10;
    pub(crate) const PEER_PROPERTIES: u16 = 0x11;
    pub(crate) const SASL_HANDSHAKE: u16 = 0x12;
    pub(crate) const SASL_AUTHENTICATE: u16 = 0x13;
    pub(crate) const TUNE: u16 = 0x14;
    pub(crate) const OPEN: u16 = 0x15;
    pub(crate) const CLOSE: u16 = 0x16;
    pub(crate) const HEARTBEAT: u16 = 0x17;
    pub(crate) const EXCHANGE_COMMAND_VERSIONS: u16 = 0x1b;
    pub(crate) const STREAM_STATS: u16 = 0x1c;
    /// Set in the key of every response.
    pub(crate) const RESPONSE: u16 = 0x8000;
}

/// Bytes that violate the protocol. Names the part that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// The broker's answer to a request (`PROTOCOL.adoc`, response codes).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResponseCode(pub u16);

impl ResponseCode {
    /// Done.
    pub const OK: Self = Self(1);
    /// There is no stream of this name.
    pub const STREAM_DOES_NOT_EXIST: Self = Self(2);
    /// The node has no replica of the stream.
    pub const STREAM_NOT_AVAILABLE: Self = Self(6);
    /// User or password is wrong.
    pub const AUTHENTICATION_FAILURE: Self = Self(8);
    /// The user may connect from the broker's own host only.
    pub const AUTHENTICATION_FAILURE_LOOPBACK: Self = Self(11);
    /// The virtual host does not exist, or the user has no access to it.
    pub const VHOST_ACCESS_FAILURE: Self = Self(12);
    /// The user lacks a permission.
    pub const ACCESS_REFUSED: Self = Self(16);

    const fn name(self) -> &'static str {
        match self.0 {
            1 => "ok",
            2 => "stream does not exist",
            3 => "subscription id already exists",
            4 => "subscription id does not exist",
            5 => "stream already exists",
            6 => "stream not available on this node",
            7 => "sasl mechanism not supported",
            8 => "authentication failure: check user and password",
            9 => "sasl error",
            10 => "sasl challenge",
            11 => "authentication failure: this user may connect from the broker's own host only",
            12 => "no access to the virtual host",
            13 => "unknown frame",
            14 => "frame too large",
            15 => "internal error of the broker",
            16 => "access refused: the user lacks a permission",
            17 => "precondition failed",
            18 => "publisher does not exist",
            19 => "no offset",
            _ => "unknown code",
        }
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.name(), self.0)
    }
}

impl fmt::Debug for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One frame without its size, split into header and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) key: u16,
    pub(crate) version: u16,
    pub(crate) payload: Bytes,
}

/// What [`FrameCutter::next`] found at the front of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A whole frame.
    Frame(Frame),
    /// A frame above the size limit: its first [`HEAD_BYTES`] bytes. The rest is discarded as it arrives: a huge chunk
    /// causes a gap in its own stream instead of breaking the connection again and again.
    Oversized(Frame),
    /// At least this many bytes more are needed.
    Incomplete(usize),
}

/// How much of an oversized frame is kept: enough for the header of a delivered chunk.
pub(crate) const HEAD_BYTES: usize = 128;

/// Cuts frames out of a growing buffer.
///
/// The returned payloads share the memory of the buffer; nothing is copied.
#[derive(Debug)]
pub(crate) struct FrameCutter {
    max_bytes: usize,
    discard: usize,
}

impl FrameCutter {
    /// `max_bytes`: the largest frame that is returned whole.
    pub(crate) const fn new(max_bytes: usize) -> Self {
        let max_bytes = if max_bytes < HEAD_BYTES { HEAD_BYTES } else { max_bytes };
        Self { max_bytes, discard: 0 }
    }

    /// Takes the next frame off the front of `buffer`.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Cut, Malformed> {
        if self.discard > 0 {
            let gone = self.discard.min(buffer.len());
            buffer.advance(gone);
            self.discard -= gone;
            if self.discard > 0 {
                return Ok(Cut::Incomplete(1));
            }
        }
        let Some(size) = buffer.first_chunk::<4>() else {
            return Ok(Cut::Incomplete(4 - buffer.len()));
        };
        let size = u32::from_be_bytes(*size) as usize;
        if size < 4 {
            return Err(Malformed("frame: smaller than its header"));
        }
        let oversized = size > self.max_bytes;
        let wanted = 4 + if oversized { HEAD_BYTES } else { size };
        if buffer.len() < wanted {
            return Ok(Cut::Incomplete(wanted - buffer.len()));
        }
        let mut bytes = buffer.split_to(wanted).freeze();
        bytes.advance(4);
        let frame = Frame { key: bytes.get_u16(), version: bytes.get_u16(), payload: bytes };
        if oversized {
            self.discard = size - HEAD_BYTES;
            return Ok(Cut::Oversized(frame));
        }
        Ok(Cut::Frame(frame))
    }
}

/// Checked reads from the front of a payload. If the bytes end too soon, the error names what was being read.
#[derive(Debug, Clone)]
pub(crate) struct Fields(pub(crate) Bytes);

impl Fields {
    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.0.try_get_u8().map_err(|_| Malformed(what))
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.0.try_get_u16().map_err(|_| Malformed(what))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.0.try_get_u32().map_err(|_| Malformed(what))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.0.try_get_u64().map_err(|_| Malformed(what))
    }

    pub(crate) fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        self.0.try_get_i64().map_err(|_| Malformed(what))
    }

    pub(crate) fn bytes(&mut self, length: usize, what: &'static str) -> Result<Bytes, Malformed> {
        if self.0.len() < length {
            return Err(Malformed(what));
        }
        Ok(self.0.split_to(length))
    }

    /// A string; a null string (length -1) reads as empty, invalid UTF-8 is replaced.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<String, Malformed> {
        let length = self.u16(what)?;
        let length = if length > i16::MAX as u16 { 0 } else { usize::from(length) };
        Ok(String::from_utf8_lossy(&self.bytes(length, what)?).into_owned())
    }

    /// A map of strings, in the order of the wire.
    pub(crate) fn string_map(&mut self, what: &'static str) -> Result<Vec<(String, String)>, Malformed> {
        let count = self.u32(what)?;
        // An entry has at least four bytes: a false count cannot cause a large allocation.
        let mut map = Vec::with_capacity((count as usize).min(self.0.len() / 4));
        for _ in 0..count {
            map.push((self.string(what)?, self.string(what)?));
        }
        Ok(map)
    }
}

/// Appends one frame to `out`; `body` writes what follows the version.
pub(crate) fn put_frame(out: &mut BytesMut, key: u16, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_u16(key);
    out.put_u16(1);
    body(out);
    let size = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// Writes a string, truncated at the protocol's limit of 32,767 bytes.
pub(crate) fn put_string(out: &mut BytesMut, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(i16::MAX as usize)];
    out.put_u16(bytes.len() as u16);
    out.put_slice(bytes);
}

/// Writes a map of strings.
pub(crate) fn put_string_map(out: &mut BytesMut, map: &[(&str, &str)]) {
    out.put_u32(map.len() as u32);
    for (name, value) in map {
        put_string(out, name);
        put_string(out, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame_bytes(key: u16, payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        put_frame(&mut out, key, |b| b.put_slice(payload));
        out
    }

    #[test]
    fn a_frame_above_the_limit_keeps_its_head_and_the_next_frame_is_read() {
        let mut wire = frame_bytes(8, &[7; 1000]);
        wire.unsplit(frame_bytes(0x17, b""));
        let mut cutter = FrameCutter::new(500);
        let mut buffer = BytesMut::new();
        let mut cuts = Vec::new();
        for piece in wire.chunks(50) {
            buffer.extend_from_slice(piece);
            loop {
                match cutter.next(&mut buffer).unwrap() {
                    Cut::Incomplete(_) => break,
                    cut => cuts.push(cut),
                }
            }
        }
        assert!(
            matches!(&cuts[0], Cut::Oversized(f) if f.key == 8 && f.payload[..] == [7; HEAD_BYTES - 4]),
            "{cuts:?}"
        );
        assert!(matches!(&cuts[1], Cut::Frame(f) if f.key == 0x17), "{cuts:?}");
        assert_eq!(cuts.len(), 2);
    }

    #[test]
    fn a_null_string_is_empty() {
        assert_eq!(Fields(Bytes::from_static(&[0xff, 0xff, 1])).string("x"), Ok(String::new()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), max in 0usize..200) {
            let mut cutter = FrameCutter::new(max);
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Cut::Frame(f) | Cut::Oversized(f)) = cutter.next(&mut buffer) {
                let _ = Fields(f.payload.clone()).string("x");
                let _ = Fields(f.payload).string_map("x");
            }
        }

        #[test]
        fn frames_survive_any_fragmentation(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8),
            piece in 1usize..64,
        ) {
            let mut wire = BytesMut::new();
            for (i, payload) in payloads.iter().enumerate() {
                wire.unsplit(frame_bytes(i as u16, payload));
            }
            let (mut cutter, mut buffer, mut got) = (FrameCutter::new(1 << 20), BytesMut::new(), Vec::new());
            for part in wire.chunks(piece) {
                buffer.extend_from_slice(part);
                while let Ok(Cut::Frame(f)) = cutter.next(&mut buffer) {
                    prop_assert_eq!(f.key as usize, got.len());
                    got.push(f.payload.to_vec());
                }
            }
            prop_assert_eq!(got, payloads);
        }

        #[test]
        fn strings_round_trip(map in proptest::collection::vec((".{0,40}", ".{0,40}"), 0..6)) {
            let mut out = BytesMut::new();
            let pairs: Vec<_> = map.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            put_string_map(&mut out, &pairs);
            prop_assert_eq!(Fields(out.freeze()).string_map("x").unwrap(), map);
        }
    }
}
