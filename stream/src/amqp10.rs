//! AMQP 1.0 messages for a consumer: sections as slices, values decoded on demand.
//!
//! Nothing is copied and no container is built: finding the body costs about as much as reading the section sizes.
//! RabbitMQ converts an AMQP 0.9.1 publish like this: the body is one data section; `message_id`, `correlation_id`,
//! `reply_to`, `content_type`, `content_encoding` and `timestamp` are properties; headers are application properties,
//! except `x-*`, which are message annotations beside `x-exchange` and `x-routing-key`. Source: OASIS AMQP 1.0, part 1
//! (types) and part 3 (messaging).

use bytes::{Bytes, BytesMut};

use crate::codec::Malformed;

/// The kind of a message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyKind {
    /// The message has no body section.
    #[default]
    None,
    /// Data sections: opaque bytes, what AMQP 0.9.1 publishers send.
    Data,
    /// An amqp-value section. For a string, symbol or binary the body is its content, else the encoded value.
    Value,
    /// An amqp-sequence section: the body is the encoded list.
    Sequence,
}

/// The sections of one message. An absent section is empty.
#[derive(Debug, Clone, Default)]
pub struct Sections {
    annotations: Bytes,
    properties: Bytes,
    application_properties: Bytes,
    body: Bytes,
    kind: BodyKind,
}

const MESSAGE_ANNOTATIONS: u64 = 0x72;
const PROPERTIES: u64 = 0x73;
const APPLICATION_PROPERTIES: u64 = 0x74;
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;
const SECTIONS: std::ops::RangeInclusive<u64> = 0x70..=0x78;

impl Sections {
    /// Finds the sections. Fails on an empty message and on bytes that are not a sequence of sections.
    pub fn parse(message: &Bytes) -> Result<Self, Malformed> {
        let mut sections = Self::default();
        let mut at = 0;
        if message.is_empty() {
            return Err(Malformed("message: empty"));
        }
        while at < message.len() {
            let (code, start) = section_code(message, at).ok_or(Malformed("message: not a section"))?;
            let size = value_size(&message[start..]).ok_or(Malformed("message: section cut off"))?;
            let section = start..start + size;
            at = section.end;
            match code {
                MESSAGE_ANNOTATIONS => sections.annotations = message.slice(section),
                PROPERTIES => sections.properties = message.slice(section),
                APPLICATION_PROPERTIES => sections.application_properties = message.slice(section),
                DATA => {
                    let Some(Value::Binary(content)) = Value::decode(&message[section]) else {
                        return Err(Malformed("message: data section without binary"));
                    };
                    sections.add_data(message.slice_ref(content));
                }
                VALUE => {
                    sections.body = match Value::decode(&message[section.clone()]) {
                        Some(Value::Binary(content)) => message.slice_ref(content),
                        Some(Value::String(text) | Value::Symbol(text)) => message.slice_ref(text.as_bytes()),
                        _ => message.slice(section),
                    };
                    sections.kind = BodyKind::Value;
                }
                SEQUENCE => {
                    sections.body = message.slice(section);
                    sections.kind = BodyKind::Sequence;
                }
                // Header, delivery annotations, footer: irrelevant to a consumer of streams.
                code if SECTIONS.contains(&code) => {}
                _ => return Err(Malformed("message: unknown section")),
            }
        }
        Ok(sections)
    }

    /// Several data sections are one body (AMQP 1.0, 3.2.6); only then are bytes copied.
    fn add_data(&mut self, content: Bytes) {
        if self.kind == BodyKind::Data {
            let mut joined = BytesMut::with_capacity(self.body.len() + content.len());
            joined.extend_from_slice(&self.body);
            joined.extend_from_slice(&content);
            self.body = joined.freeze();
        } else {
            self.body = content;
            self.kind = BodyKind::Data;
        }
    }

    /// The body. It shares the memory of its chunk: copy it to keep it for long.
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// The kind of the body.
    pub const fn body_kind(&self) -> BodyKind {
        self.kind
    }

    /// The property `message-id`: [`Value::String`] from AMQP 0.9.1 publishers.
    pub fn message_id(&self) -> Option<Value<'_>> {
        self.property(0)
    }

    /// The property `correlation-id`.
    pub fn correlation_id(&self) -> Option<Value<'_>> {
        self.property(5)
    }

    /// The property `content-type`.
    pub fn content_type(&self) -> Option<&str> {
        self.property(6)?.as_str()
    }

    /// The property `creation-time`, ms since the epoch as set by the publisher (any number).
    pub fn creation_time(&self) -> Option<i64> {
        match self.property(9)? {
            Value::Timestamp(ms) => Some(ms),
            _ => None,
        }
    }

    /// A field of the properties section by its index in the specification (3.2.4); `None` if absent or null.
    pub fn property(&self, index: usize) -> Option<Value<'_>> {
        elements(&self.properties).nth(index).filter(|v| *v != Value::Null)
    }

    /// A message annotation, such as `x-routing-key`, or a header that began with `x-`.
    pub fn annotation(&self, name: &str) -> Option<Value<'_>> {
        lookup(&self.annotations, name)
    }

    /// An application property: a header of an AMQP 0.9.1 publisher.
    pub fn application_property(&self, name: &str) -> Option<Value<'_>> {
        lookup(&self.application_properties, name)
    }

    /// Message annotations in wire order, up to the first that cannot be read.
    pub fn annotations(&self) -> impl Iterator<Item = (Value<'_>, Value<'_>)> {
        pairs(&self.annotations)
    }

    /// Application properties in wire order, up to the first that cannot be read.
    pub fn application_properties(&self) -> impl Iterator<Item = (Value<'_>, Value<'_>)> {
        pairs(&self.application_properties)
    }
}

/// The section's descriptor code and the start of its value.
fn section_code(message: &[u8], at: usize) -> Option<(u64, usize)> {
    match message.get(at..)? {
        [0x00, 0x53, code, ..] => Some((u64::from(*code), at + 3)),
        [0x00, 0x80, rest @ ..] => Some((u64::from_be_bytes(*rest.first_chunk()?), at + 10)),
        _ => None,
    }
}

/// A described value at the front of `bytes` whose descriptor is a number: the descriptor, the encoded value, and the
/// rest.
pub fn described(bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (code, start) = section_code(bytes, 0)?;
    let value = bytes.get(start..)?;
    let (value, rest) = value.split_at_checked(value_size(value)?)?;
    Some((code, value, rest))
}

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
fn value_size(bytes: &[u8]) -> Option<usize> {
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

fn pairs(section: &[u8]) -> impl Iterator<Item = (Value<'_>, Value<'_>)> {
    let mut elements = elements(section);
    std::iter::from_fn(move || Some((elements.next()?, elements.next()?)))
}

fn lookup<'a>(section: &'a [u8], name: &str) -> Option<Value<'a>> {
    pairs(section).find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string8(text: &str) -> Vec<u8> {
        [&[0xa1, text.len() as u8], text.as_bytes()].concat()
    }

    fn binary(content: &[u8]) -> Vec<u8> {
        [&[0xb0][..], &(content.len() as u32).to_be_bytes(), content].concat()
    }

    fn section(code: u8, value: &[u8]) -> Vec<u8> {
        [&[0x00, 0x53, code], value].concat()
    }

    fn compound(constructor: u8, values: &[Vec<u8>]) -> Vec<u8> {
        let content = values.concat();
        let size = (content.len() + 4) as u32;
        [&[constructor][..], &size.to_be_bytes(), &(values.len() as u32).to_be_bytes(), &content].concat()
    }

    /// A message with one data section.
    pub(crate) fn data_message(body: &[u8]) -> Vec<u8> {
        section(0x75, &binary(body))
    }

    #[test]
    fn a_message_as_rabbitmq_stores_an_amqp_091_publish() {
        let annotations = compound(0xd1, &[string8("x-routing-key"), string8("a.b")]);
        let properties = compound(0xd0, &[string8("id-1"), vec![0x40], string8("to")]);
        let headers = compound(0xd1, &[string8("n"), vec![0x55, 0xfb], string8("t"), string8("v")]);
        let bytes = [
            section(0x70, &compound(0xd0, &[vec![0x41]])),
            section(0x72, &annotations),
            section(0x73, &properties),
            section(0x74, &headers),
            section(0x75, &binary(b"body")),
        ]
        .concat();
        let sections = Sections::parse(&Bytes::from(bytes)).unwrap();
        assert_eq!(sections.body().as_ref(), b"body");
        assert_eq!(sections.body_kind(), BodyKind::Data);
        assert_eq!(sections.annotation("x-routing-key"), Some(Value::String("a.b")));
        assert_eq!(sections.message_id(), Some(Value::String("id-1")));
        assert_eq!(sections.property(1), None);
        assert_eq!(sections.correlation_id(), None);
        assert_eq!(sections.application_property("n"), Some(Value::Signed(-5)));
        assert_eq!(sections.application_property("t").and_then(Value::as_str), Some("v"));
        assert_eq!(sections.application_property("absent"), None);
    }

    #[test]
    fn data_sections_are_joined_and_a_string_value_is_its_text() {
        let message = [data_message(b"ab"), data_message(b"cd")].concat();
        assert_eq!(Sections::parse(&Bytes::from(message)).unwrap().body().as_ref(), b"abcd");
        let message = section(0x77, &string8("text"));
        let sections = Sections::parse(&Bytes::from(message)).unwrap();
        assert_eq!((sections.body().as_ref(), sections.body_kind()), (&b"text"[..], BodyKind::Value));
    }

    #[test]
    fn a_message_of_zeros_is_refused_without_recursion() {
        assert!(Sections::parse(&Bytes::from(vec![0; 1 << 20])).is_err());
        let nested = [vec![0, 0x53, 0x75], vec![0; 1 << 20]].concat();
        assert!(Sections::parse(&Bytes::from(nested)).is_err());
    }

    #[test]
    fn an_empty_or_foreign_message_is_malformed() {
        assert!(Sections::parse(&Bytes::new()).is_err());
        assert!(Sections::parse(&Bytes::from_static(b"{\"json\":1}")).is_err());
        assert!(Sections::parse(&Bytes::from(section(0x10, &[0x40]))).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Bytes::from(bytes);
            let _ = Sections::parse(&message);
            let _ = Value::decode(&message);
            for code in [0x72, 0x73, 0x74, 0x75, 0x76, 0x77] {
                if let Ok(s) = Sections::parse(&Bytes::from(section(code, &message))) {
                    let _ = (s.message_id(), s.annotations().count(), s.application_properties().count());
                }
            }
        }

        #[test]
        fn arbitrary_maps_never_panic(content in proptest::collection::vec(any::<u8>(), 0..100), count in any::<u32>()) {
            let size = (content.len() + 4) as u32;
            let map = [&[0xd1][..], &size.to_be_bytes(), &count.to_be_bytes(), &content].concat();
            let sections = Sections::parse(&Bytes::from(section(0x74, &map))).unwrap();
            let _ = sections.application_properties().count();
            let _ = sections.application_property("x");
        }

        #[test]
        fn properties_and_body_round_trip(
            body in proptest::collection::vec(any::<u8>(), 0..600),
            pairs in proptest::collection::vec(("[a-z]{1,20}", "\\PC{0,40}"), 0..8),
        ) {
            let values: Vec<_> = pairs.iter().flat_map(|(k, v)| [string8(k), string8(v)]).collect();
            let message = [section(0x74, &compound(0xd1, &values)), data_message(&body)].concat();
            let sections = Sections::parse(&Bytes::from(message)).unwrap();
            prop_assert_eq!(sections.body().as_ref(), &body[..]);
            let got: Vec<_> = sections
                .application_properties()
                .map(|(k, v)| (k.as_str().unwrap().to_owned(), v.as_str().unwrap().to_owned()))
                .collect();
            prop_assert_eq!(got, pairs);
        }
    }
}
