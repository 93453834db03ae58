//! The body of a message that came by AMQP 1.0 or lies in a stream.

use bytes::Bytes;
use wirepost_stream::{BodyKind, Sections, Value};

use crate::{MessageDefect, Origin};

/// The annotation in which RabbitMQ notes where a message was published. It comes first, in place of one that the
/// publisher wrote.
const EXCHANGE: &str = "x-exchange";

/// Index of `content-encoding` among the properties (AMQP 1.0, 3.2.4).
const CONTENT_ENCODING: usize = 7;

/// The body, and what is wrong with it. Text (an amqp-value section with a string) is as good as bytes. Anything else has no body; its
/// offset in a stream counts all the same.
pub(super) fn of(sections: &Sections) -> (Bytes, Option<MessageDefect>) {
    let body = sections.body();
    match sections.body_kind() {
        BodyKind::Data => {
            let encoding = match sections.property(CONTENT_ENCODING) {
                Some(Value::Symbol(name) | Value::String(name)) => encoded(name.as_bytes()),
                _ => None,
            };
            (body.clone(), encoding)
        }
        // A string is its content. Any other value is encoded and begins with a constructor, which are none of these bytes.
        BodyKind::Value if matches!(body.first(), Some(b'{' | b' ' | b'\t' | b'\r' | b'\n' | 0xef)) => {
            (body.clone(), None)
        }
        BodyKind::Value => {
            (Bytes::new(), Some(MessageDefect::Form("an amqp-value section that is not a text with JSON")))
        }
        BodyKind::Sequence => (Bytes::new(), Some(MessageDefect::Form("an amqp-sequence section"))),
        BodyKind::None => (Bytes::new(), Some(MessageDefect::Form("no section at all"))),
    }
}

/// Where a message was published that `business` reads.
pub(super) fn origin(business: &str, sections: &Sections) -> Origin {
    let exchange = sections.annotation(EXCHANGE).and_then(Value::as_str).unwrap_or_default();
    let headers =
        || sections.application_properties().filter_map(|(name, value)| Some((name.as_str()?, value.as_str()?)));
    Origin::new(business, exchange, headers)
}

/// A content encoding, unless it is one that changes nothing.
pub(super) fn encoded(encoding: &[u8]) -> Option<MessageDefect> {
    let name = String::from_utf8_lossy(encoding);
    let plain = ["", "identity", "utf-8", "utf8"].iter().any(|plain| name.eq_ignore_ascii_case(plain));
    (!plain).then(|| MessageDefect::Encoding(name.into_owned()))
}
