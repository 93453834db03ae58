//! The properties of a message: a word of flags, then the properties that are present, in order. They are found, never decoded.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{put_longstr, put_short_bytes};

/// A property, in the order of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are AMQP's own names")]
pub enum Property {
    ContentType,
    ContentEncoding,
    Headers,
    DeliveryMode,
    Priority,
    CorrelationId,
    ReplyTo,
    Expiration,
    MessageId,
    Timestamp,
    Type,
    UserId,
    AppId,
    ClusterId,
}

impl Property {
    const ALL: [Self; 14] = [
        Self::ContentType,
        Self::ContentEncoding,
        Self::Headers,
        Self::DeliveryMode,
        Self::Priority,
        Self::CorrelationId,
        Self::ReplyTo,
        Self::Expiration,
        Self::MessageId,
        Self::Timestamp,
        Self::Type,
        Self::UserId,
        Self::AppId,
        Self::ClusterId,
    ];

    pub(super) const fn flag(self) -> u16 {
        1 << (15 - self as u16)
    }

    /// Its encoded size at the front of `rest`.
    fn size(self, rest: &[u8]) -> Option<usize> {
        let size = match self {
            Self::Headers => 4 + u32::from_be_bytes(*rest.first_chunk()?) as usize,
            Self::DeliveryMode | Self::Priority => 1,
            Self::Timestamp => 8,
            _ => 1 + usize::from(*rest.first()?),
        };
        (size <= rest.len()).then_some(size)
    }
}

/// Encoded as in a content header, flags first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties(Bytes);

impl Default for Properties {
    /// None at all.
    fn default() -> Self {
        Self(Bytes::from_static(&[0, 0]))
    }
}

impl Properties {
    /// Flags and properties, unchecked.
    pub const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// As [`Properties::from_bytes`] takes them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The range of each property; what can't be found is absent.
    fn parts(&self) -> [Option<Bytes>; 14] {
        let mut parts = [const { None }; 14];
        let Some(flags) = self.0.first_chunk().map(|flags| u16::from_be_bytes(*flags)) else { return parts };
        let mut at = 2;
        for (property, part) in Property::ALL.into_iter().zip(&mut parts) {
            if flags & property.flag() != 0 {
                let Some(size) = self.0.get(at..).and_then(|rest| property.size(rest)) else { break };
                *part = Some(self.0.slice(at..at + size));
                at += size;
            }
        }
        parts
    }

    fn join(parts: [Option<Bytes>; 14]) -> Self {
        let mut out = BytesMut::from(&[0, 0][..]);
        let mut flags = 0;
        for (property, part) in Property::ALL.into_iter().zip(parts) {
            if let Some(part) = part {
                flags |= property.flag();
                out.put_slice(&part);
            }
        }
        out[..2].copy_from_slice(&u16::to_be_bytes(flags));
        Self(out.freeze())
    }

    /// The bytes of a property that is a short string.
    pub fn text(&self, property: Property) -> Option<Bytes> {
        let part = self.parts()[property as usize].take()?;
        match property {
            Property::Headers | Property::DeliveryMode | Property::Priority | Property::Timestamp => None,
            _ => Some(part.slice(1..)),
        }
    }

    /// All other properties.
    #[must_use]
    pub fn without(&self, property: Property) -> Self {
        let mut parts = self.parts();
        parts[property as usize] = None;
        Self::join(parts)
    }

    /// With this property replaced by another text, truncated to 255 bytes.
    #[must_use]
    pub fn with_text(&self, property: Property, text: &[u8]) -> Self {
        let mut part = BytesMut::new();
        // 255 bytes always fit.
        let _ = put_short_bytes(&mut part, &text[..text.len().min(255)]);
        let mut parts = self.parts();
        parts[property as usize] = Some(part.freeze());
        Self::join(parts)
    }

    /// Marks the message persistent.
    #[must_use]
    pub fn persistent(&self) -> Self {
        let mut parts = self.parts();
        parts[Property::DeliveryMode as usize] = Some(Bytes::from_static(&[2]));
        Self::join(parts)
    }

    /// With these headers before the present ones. Names of more than 255 bytes are left out.
    #[must_use]
    pub fn with_more_headers<'a>(&self, headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut table = BytesMut::new();
        for (name, value) in headers {
            if put_short_bytes(&mut table, name.as_bytes()).is_ok() {
                table.put_u8(b'S');
                put_longstr(&mut table, value);
            }
        }
        if let Some(before) = &self.parts()[Property::Headers as usize] {
            table.put_slice(&before[4..]);
        }
        self.with_table(&table)
    }

    /// With one more header, a list of one text. A name of more than 255 bytes is left out.
    #[must_use]
    pub fn with_list(&self, name: &str, item: &[u8]) -> Self {
        let mut table = BytesMut::new();
        if let Some(before) = &self.parts()[Property::Headers as usize] {
            table.put_slice(&before[4..]);
        }
        let mut list = BytesMut::new();
        list.put_u8(b'S');
        put_longstr(&mut list, item);
        if put_short_bytes(&mut table, name.as_bytes()).is_ok() {
            table.put_u8(b'A');
            put_longstr(&mut table, &list);
        }
        self.with_table(&table)
    }

    /// The first header of this name that is a long string, at the top level and behind headers of the types in general use.
    pub fn header(&self, name: &str) -> Option<Bytes> {
        let part = self.parts()[Property::Headers as usize].take()?;
        let mut table = &part[4..];
        while let Some((length, rest)) = table.split_first() {
            let (key, rest) = rest.split_at_checked(usize::from(*length))?;
            if key == name.as_bytes() && rest.first() == Some(&b'S') {
                let size = u32::from_be_bytes(*rest.get(1..)?.first_chunk()?) as usize;
                return rest.get(5..)?.get(..size).map(Bytes::copy_from_slice);
            }
            table = after_plain_value(rest, 0)?;
        }
        None
    }

    /// The headers whose names begin with this and that are long strings of UTF-8, found like [`Self::header`].
    pub fn headers_from(&self, prefix: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let Some(part) = self.parts()[Property::Headers as usize].take() else { return found };
        let mut table = part.get(4..).unwrap_or_default();
        while let Some((length, rest)) = table.split_first() {
            let Some((key, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
            if key.starts_with(prefix.as_bytes()) && rest.first() == Some(&b'S') {
                let size =
                    rest.get(1..).and_then(|size| size.first_chunk()).map(|size| u32::from_be_bytes(*size) as usize);
                let value = size.and_then(|size| rest.get(5..)?.get(..size));
                let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).ok();
                found.extend(text(key).zip(value.and_then(text)));
            }
            let Some(next) = after_plain_value(rest, 0) else { break };
            table = next;
        }
        found
    }

    /// The first header of this name that is a 64-bit number, found like [`Self::header`].
    pub fn number(&self, name: &str) -> Option<i64> {
        let part = self.parts()[Property::Headers as usize].take()?;
        let mut table = &part[4..];
        while let Some((length, rest)) = table.split_first() {
            let (key, rest) = rest.split_at_checked(usize::from(*length))?;
            if key == name.as_bytes() && rest.first() == Some(&b'l') {
                return rest.get(1..)?.first_chunk().map(|bytes| i64::from_be_bytes(*bytes));
            }
            table = after_plain_value(rest, 0)?;
        }
        None
    }

    /// Without the header that [`Self::header`] finds.
    #[must_use]
    pub fn without_header(&self, name: &str) -> Self {
        let Some(part) = self.parts()[Property::Headers as usize].take() else { return self.clone() };
        let table = &part[4..];
        let mut rest = table;
        while let Some((length, after)) = rest.split_first() {
            let Some((key, value)) = after.split_at_checked(usize::from(*length)) else { break };
            let Some(next) = after_plain_value(value, 0) else { break };
            if key == name.as_bytes() && value.first() == Some(&b'S') {
                return self.with_table(&[&table[..table.len() - rest.len()], next].concat());
            }
            rest = next;
        }
        self.clone()
    }

    /// With a field table, encoded without its length, as the headers.
    #[must_use]
    pub fn with_table(&self, table: &[u8]) -> Self {
        let mut part = BytesMut::new();
        put_longstr(&mut part, table);
        let mut parts = self.parts();
        parts[Property::Headers as usize] = Some(part.freeze());
        Self::join(parts)
    }

    /// A form that every client can decode: texts that are not UTF-8 lossily, and no headers if a name or a value is not of a type in
    /// general use.
    #[must_use]
    pub fn readable(&self) -> Self {
        let mut parts = self.parts();
        for (property, part) in Property::ALL.into_iter().zip(&mut parts) {
            match (property, &part) {
                (Property::Headers, Some(table)) if !is_plain(&table[4..], 0) => *part = None,
                (Property::Headers | Property::DeliveryMode | Property::Priority | Property::Timestamp, _)
                | (_, None) => {}
                (_, Some(text)) => {
                    let readable = String::from_utf8_lossy(&text[1..]);
                    let mut end = readable.len().min(255);
                    while !readable.is_char_boundary(end) {
                        end -= 1;
                    }
                    let mut short = BytesMut::new();
                    // It was truncated to fit.
                    let _ = put_short_bytes(&mut short, &readable.as_bytes()[..end]);
                    *part = Some(short.freeze());
                }
            }
        }
        Self::join(parts)
    }
}

/// Deepest nesting of headers that passes as plain.
const MAX_DEPTH: u32 = 8;

/// Whether a field table, without its length, has UTF-8 names and values of the types in general use.
fn is_plain(mut table: &[u8], depth: u32) -> bool {
    while let Some((length, rest)) = table.split_first() {
        let Some((name, rest)) = rest.split_at_checked(usize::from(*length)) else { return false };
        let Some(rest) = std::str::from_utf8(name).ok().and_then(|_| after_plain_value(rest, depth)) else {
            return false;
        };
        table = rest;
    }
    true
}

/// What follows a plain value; `None` if it is not plain.
fn after_plain_value(bytes: &[u8], depth: u32) -> Option<&[u8]> {
    let (tag, rest) = bytes.split_first()?;
    let size = match tag {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'l' | b'd' | b'T' => 8,
        b'S' | b'x' | b'A' | b'F' => {
            let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
            let (content, after) = rest.get(4..)?.split_at_checked(length)?;
            let plain = match tag {
                b'F' => depth < MAX_DEPTH && is_plain(content, depth + 1),
                b'A' => {
                    let mut items = Some(content);
                    while let Some(left) = items.filter(|left| !left.is_empty()) {
                        items = (depth < MAX_DEPTH).then(|| after_plain_value(left, depth + 1)).flatten();
                    }
                    items.is_some()
                }
                _ => true,
            };
            return plain.then_some(after);
        }
        _ => return None,
    };
    rest.get(size..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_property_goes_and_the_others_stay_as_they_are() {
        let gbk = [0xb6, 0xa9, 0xb5, 0xa5];
        let all = Properties::default()
            .with_text(Property::AppId, &gbk)
            .with_text(Property::UserId, b"guest")
            .with_text(Property::MessageId, b"m-1")
            .with_more_headers([("reason", &b"why"[..])])
            .persistent();
        let rest = all.without(Property::UserId);
        assert_eq!(rest.text(Property::UserId), None);
        assert_eq!(rest.text(Property::AppId).as_deref(), Some(&gbk[..]));
        assert_eq!(rest.with_text(Property::UserId, b"guest"), all);
        assert_eq!(rest.text(Property::Headers), None);
        assert_eq!(Properties::default().persistent().as_bytes(), [0x10, 0, 2]);
    }

    #[test]
    fn what_not_every_client_can_decode_is_left_out() {
        let plain = Properties::default().with_text(Property::AppId, b"shop").with_more_headers([("a", &b"\xff"[..])]);
        assert_eq!(plain.readable(), plain, "a long string holds any bytes");
        let strange = plain.with_text(Property::AppId, &[b'a', 0xb6, 0xa9]).readable();
        assert_eq!(strange.text(Property::AppId).as_deref(), Some("a\u{fffd}\u{fffd}".as_bytes()));
        for table in [&b"\x02\xb6\xa9V"[..], b"\x01aZ", b"\x01aA\0\0\0\x01Z", b"\x01aS\0\0\0\x09x"] {
            assert_eq!(Properties::default().with_table(table).readable(), Properties::default(), "{table:?}");
        }
        let table = b"\x01aD\x02\0\0\0\x07\x01bA\0\0\0\x05I\0\0\0\x01";
        let decimal = Properties::default().with_table(table);
        assert_eq!(decimal.readable(), decimal);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let properties = Properties::from_bytes(Bytes::from(bytes));
            for property in Property::ALL {
                let _ = (properties.text(property), properties.without(property), properties.readable());
                let _ = properties.number("n");
            }
        }
    }
}
