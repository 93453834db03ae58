//! AMQP 1.0 messages for a consumer: sections as slices, values decoded on demand.
//!
//! Nothing is copied and no container is built: finding the body costs about as much as reading the section sizes.
//! RabbitMQ converts an AMQP 0.9.1 publish like this: the body is one data section; `message_id`, `correlation_id`,
//! `reply_to`, `content_type`, `content_encoding` and `timestamp` are properties; headers are application properties,
//! except `x-*`, which are message annotations beside `x-exchange` and `x-routing-key`. Source: OASIS AMQP 1.0, part 1
//! (types) and part 3 (messaging).

use bytes::{Bytes, BytesMut};

use self::value::{lookup, pairs, value_size};
use crate::codec::Malformed;

mod value;

pub use value::{Value, elements};

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
        let mut joined = BytesMut::new();
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
                // The first of each. RabbitMQ writes its own annotations in front and keeps what a publisher writes from
                // the body on as it is: a later section with the same annotations must not count.
                MESSAGE_ANNOTATIONS => first(&mut sections.annotations, message.slice(section)),
                PROPERTIES => first(&mut sections.properties, message.slice(section)),
                APPLICATION_PROPERTIES => first(&mut sections.application_properties, message.slice(section)),
                DATA => {
                    let Some(Value::Binary(content)) = Value::decode(&message[section]) else {
                        return Err(Malformed("message: data section without binary"));
                    };
                    sections.add_data(&mut joined, message.slice_ref(content));
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
        if sections.kind == BodyKind::Data && !joined.is_empty() {
            sections.body = joined.freeze();
        }
        Ok(sections)
    }

    /// Several data sections are one body (AMQP 1.0, 3.2.6); only then are bytes copied, into `joined`: each once, since
    /// a message may have millions of sections.
    fn add_data(&mut self, joined: &mut BytesMut, content: Bytes) {
        if self.kind == BodyKind::Data {
            if joined.is_empty() {
                joined.extend_from_slice(&self.body);
            }
            joined.extend_from_slice(&content);
        } else {
            joined.clear();
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

fn first(section: &mut Bytes, found: Bytes) {
    if section.is_empty() {
        *section = found;
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
    fn the_first_annotations_count_wherever_a_publisher_repeats_them() {
        let annotations = |exchange: &str| {
            let text = |constructor: u8, text: &str| [&[constructor, text.len() as u8], text.as_bytes()].concat();
            let content = [text(0xa3, "x-exchange"), text(0xa1, exchange)].concat();
            section(0x72, &[&[0xc1, content.len() as u8 + 1, 2][..], &content].concat())
        };
        let body = section(0x75, &[0xa0, 1, b'x']);
        let message = [annotations("mine"), annotations("other"), body, annotations("other")].concat();
        let sections = Sections::parse(&Bytes::from(message)).unwrap();
        assert_eq!(sections.annotation("x-exchange"), Some(Value::String("mine")));
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
