//! The position that a client carries: the last message that it saw.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

const VERSION: u8 = 1;
/// Version, partition, offset and fingerprint.
const FIXED: usize = 1 + 2 + 8 + 8;
/// Longest text that is parsed: a business type has at most 40 bytes.
const MAX_TEXT: usize = 128;

/// The last message that a client saw: business, stream partition, offset, and a fingerprint of that very message. RabbitMQ does not
/// distinguish a recreated stream from the old one, so the fingerprint, not the offset, proves continuity. Opaque to clients; a forged one only
/// gets a gap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The business.
    pub business: String,
    /// The partition of its stream; always 0, since a business has one.
    pub partition: u16,
    /// Offset of the message in the stream.
    pub offset: u64,
    /// Fingerprint of the message at that offset.
    pub fingerprint: u64,
}

/// Why a text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of wirepost")]
pub struct CursorError;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(FIXED + self.business.len());
        bytes.push(VERSION);
        bytes.extend(self.partition.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        bytes.extend(self.fingerprint.to_be_bytes());
        bytes.extend(self.business.as_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        if text.len() > MAX_TEXT {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let (fixed, business) = bytes.split_first_chunk::<FIXED>().ok_or(CursorError)?;
        let [VERSION, p0, p1, rest @ ..] = fixed else {
            return Err(CursorError);
        };
        let (offset, fingerprint) = rest.split_first_chunk::<8>().ok_or(CursorError)?;
        Ok(Self {
            business: String::from_utf8(business.to_vec()).map_err(|_| CursorError)?,
            partition: u16::from_be_bytes([*p0, *p1]),
            offset: u64::from_be_bytes(*offset),
            fingerprint: u64::from_be_bytes(fingerprint.try_into().map_err(|_| CursorError)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        let cursor = Cursor { business: "payments".into(), partition: 3, offset: u64::MAX, fingerprint: 7 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_cursor_or_an_error(text: String) {
            let _ = text.parse::<Cursor>();
        }
    }
}
