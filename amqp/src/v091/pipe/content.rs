//! A message to publish, and the encoding of its properties.

use bytes::{BufMut, BytesMut};

use crate::v091::{
    codec::{put_longstr, put_short_bytes, put_shortstr},
    properties::Property,
};

/// The value of a header.
#[derive(Clone, Copy, Debug)]
pub enum HeaderValue<'a> {
    /// A long string.
    Text(&'a [u8]),
    /// A list of one long string.
    List(&'a [u8]),
    /// A 64-bit number.
    Number(i64),
}

/// A message to publish, except for its headers. Names of more than 255 bytes can't be sent.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// Empty: the default exchange.
    pub exchange: &'a str,
    /// What the exchange routes by.
    pub routing_key: &'a str,
    /// Whether the broker returns it if no queue takes it.
    pub mandatory: bool,
    /// A property.
    pub content_type: &'a str,
    /// A property; left out if it has more than 255 bytes.
    pub message_id: &'a str,
    /// A property, in seconds.
    pub timestamp: u64,
    /// The body.
    pub body: &'a [u8],
}

/// Writes flags and properties, in the order of the protocol.
pub(super) fn put_properties<'a>(
    out: &mut BytesMut,
    content: &Content<'_>,
    headers: impl Iterator<Item = (&'a str, HeaderValue<'a>)>,
) {
    let message_id = content.message_id.as_bytes();
    let has_id = u8::try_from(message_id.len()).is_ok();
    let mut flags = [Property::ContentType, Property::Headers, Property::DeliveryMode, Property::Timestamp]
        .into_iter()
        .fold(0, |flags, property| flags | property.flag());
    if has_id {
        flags |= Property::MessageId.flag();
    }
    out.put_u16(flags);
    // A constant of the caller.
    let _ = put_shortstr(out, content.content_type);
    let table = out.len();
    out.put_u32(0);
    for (name, value) in headers {
        if put_shortstr(out, name).is_err() {
            continue;
        }
        match value {
            HeaderValue::Text(text) => {
                out.put_u8(b'S');
                put_longstr(out, text);
            }
            HeaderValue::List(item) => {
                out.put_u8(b'A');
                out.put_u32(item.len() as u32 + 5);
                out.put_u8(b'S');
                put_longstr(out, item);
            }
            HeaderValue::Number(number) => {
                out.put_u8(b'l');
                out.put_i64(number);
            }
        }
    }
    let size = (out.len() - table - 4) as u32;
    out[table..table + 4].copy_from_slice(&size.to_be_bytes());
    out.put_u8(2);
    if has_id {
        // Its length was checked.
        let _ = put_short_bytes(out, message_id);
    }
    out.put_u64(content.timestamp);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v091::properties::Properties;

    #[test]
    fn properties_are_written_as_they_are_read() {
        let content = Content {
            exchange: "",
            routing_key: "",
            mandatory: true,
            content_type: "application/json",
            message_id: "m-1",
            timestamp: 1_700_000_000,
            body: b"",
        };
        let headers = [
            ("BCC", HeaderValue::List(b"queue a")),
            ("publish-number", HeaderValue::Number(258)),
            ("from", HeaderValue::Text(b"alice")),
        ];
        let mut out = BytesMut::new();
        put_properties(&mut out, &content, headers.into_iter());
        let properties = Properties::from_bytes(out.freeze());
        assert_eq!(properties.text(Property::ContentType).as_deref(), Some(&b"application/json"[..]));
        assert_eq!(properties.text(Property::MessageId).as_deref(), Some(&b"m-1"[..]));
        assert_eq!(properties.number("publish-number"), Some(258));
        assert_eq!(properties.number("from"), None);
        assert_eq!(properties.header("from").as_deref(), Some(&b"alice"[..]));
        assert_eq!(properties.persistent(), properties);
        assert_eq!(properties.readable(), properties);
        let too_long = "x".repeat(256);
        let mut out = BytesMut::new();
        put_properties(&mut out, &Content { message_id: &too_long, ..content }, std::iter::empty());
        assert_eq!(Properties::from_bytes(out.freeze()).text(Property::MessageId), None);
    }
}
