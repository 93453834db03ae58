//! Values: decoded from slices, on demand.

/// A decoded value. Containers, floats and decimals stay encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Null.
    Null,
    /// A boolean.
    Bool(bool),
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// Milliseconds since the epoch; publishers may write anything.
    Timestamp(i64),
    /// A UUID.
    Uuid([u8; 16]),
    /// Opaque bytes.
    Binary(&'a [u8]),
    /// A text.
    String(&'a str),
    /// A symbol: ASCII by the specification.
    Symbol(&'a str),
    /// The encoded value, constructor included; also a string that is not UTF-8.
    Other(&'a [u8]),
}

impl<'a> Value<'a> {
    /// Decodes the value at the front of `bytes`; `None` if it is cut off or has no known constructor.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        Some(Self::split(bytes)?.0)
    }

    /// The text of a string or symbol.
    pub const fn as_str(self) -> Option<&'a str> {
        match self {
            Self::String(text) | Self::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// The first value of `bytes` and the rest.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let size = value_size(bytes)?;
        let (whole, rest) = (bytes.get(..size)?, bytes.get(size..)?);
        let (constructor, content) = whole.split_first()?;
        let value = match constructor {
            0x40 => Self::Null,
            0x41 => Self::Bool(true),
            0x42 => Self::Bool(false),
            0x56 => Self::Bool(*content.first()? != 0),
            0x43 | 0x44 => Self::Unsigned(0),
            0x50 | 0x52 | 0x53 | 0x60 | 0x70 | 0x80 => Self::Unsigned(unsigned(content)),
            0x51 | 0x54 | 0x55 => Self::Signed(i64::from(i8::from_be_bytes([*content.first()?]))),
            0x61 => Self::Signed(i64::from(i16::from_be_bytes(*content.first_chunk()?))),
            0x71 => Self::Signed(i64::from(i32::from_be_bytes(*content.first_chunk()?))),
            0x81 => Self::Signed(i64::from_be_bytes(*content.first_chunk()?)),
            0x83 => Self::Timestamp(i64::from_be_bytes(*content.first_chunk()?)),
            0x98 => Self::Uuid(*content.first_chunk()?),
            0xa0 => Self::Binary(content.get(1..)?),
            0xb0 => Self::Binary(content.get(4..)?),
            0xa1 => text(content.get(1..)?, whole, Value::String),
            0xb1 => text(content.get(4..)?, whole, Value::String),
            0xa3 => text(content.get(1..)?, whole, Value::Symbol),
            0xb3 => text(content.get(4..)?, whole, Value::Symbol),
            _ => Self::Other(whole),
        };
        Some((value, rest))
    }
}

fn text<'a>(content: &'a [u8], whole: &'a [u8], make: fn(&'a str) -> Value<'a>) -> Value<'a> {
    std::str::from_utf8(content).map_or(Value::Other(whole), make)
}

fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |sum, b| sum << 8 | u64::from(*b))
}

/// Size of the value at the front of `bytes`, constructor included; `None` if it is truncated.
///
/// Descriptors may nest: a loop counts them, because with recursion a message of zeros would exhaust the stack.
pub(super) fn value_size(bytes: &[u8]) -> Option<usize> {
    let mut size = 0usize;
    let mut values = 1usize;
    while values > 0 {
        let rest = bytes.get(size..)?;
        let step = match rest.first()? {
            0x00 => {
                values += 2;
                1
            }
            constructor => match constructor >> 4 {
                0x4 => 1,
                0x5 => 2,
                0x6 => 3,
                0x7 => 5,
                0x8 => 9,
                0x9 => 17,
                0xa | 0xc | 0xe => 2 + usize::from(*rest.get(1)?),
                0xb | 0xd | 0xf => 5 + u32::from_be_bytes(*rest.get(1..)?.first_chunk()?) as usize,
                _ => return None,
            },
        };
        size = size.checked_add(step)?;
        values -= 1;
    }
    (size <= bytes.len()).then_some(size)
}

/// The elements of an encoded list or map; empty if it is neither.
pub fn elements(section: &[u8]) -> impl Iterator<Item = Value<'_>> {
    let (count, mut rest) = match section {
        [0xc0 | 0xc1, _, count, rest @ ..] => (u32::from(*count), rest),
        [0xd0 | 0xd1, _, _, _, _, a, b, c, d, rest @ ..] => (u32::from_be_bytes([*a, *b, *c, *d]), rest),
        _ => (0, &[][..]),
    };
    (0..count).map_while(move |_| {
        let (value, after) = Value::split(rest)?;
        rest = after;
        Some(value)
    })
}

pub(super) fn pairs(section: &[u8]) -> impl Iterator<Item = (Value<'_>, Value<'_>)> {
    let mut elements = elements(section);
    std::iter::from_fn(move || Some((elements.next()?, elements.next()?)))
}

pub(super) fn lookup<'a>(section: &'a [u8], name: &str) -> Option<Value<'a>> {
    pairs(section).find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}
