//! Reading an envelope: one pass over the top level, everything borrowed.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{AtMost, Envelope, EnvelopeError, MAX_DEPTH, MAX_ID, MAX_IDENTITY, MAX_LIST, MAX_MESSAGE_TYPE};
use crate::SendType;

/// Our names in the order of their bits in the set of seen ones.
const NAMES: [&str; 16] = [
    "id",
    "sendType",
    "messageType",
    "businessType",
    "fromUniqueId",
    "fromClientType",
    "toUniqueId",
    "toClientType",
    "timestamp",
    "content",
    "tags",
    "businesses",
    "correlationId",
    "expiresAt",
    "cursor",
    "op",
];

/// Fields whose values are the edge's word. Under another case they are dropped: parsers that ignore case (Go's `encoding/json`, Jackson and
/// .NET when told so) would take what a client wrote there instead.
const STAMPED: [&str; 6] = ["sendType", "businessType", "fromUniqueId", "fromClientType", "timestamp", "cursor"];

/// Windows editors and shells put it in front of UTF-8. It has no meaning.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// How well-known encodings other than UTF-8 text begin. No envelope begins like that.
const FORMS: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "is compressed by gzip; send it uncompressed"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; send it uncompressed"),
    (b"\xff\xfe", "is UTF-16; send UTF-8"),
    (b"\xfe\xff", "is UTF-16; send UTF-8"),
    (b"{\0", "is UTF-16; send UTF-8"),
];

pub(super) fn parse(bytes: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    let bytes = unmarked(bytes);
    if let Some((_, what)) = FORMS.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Err(EnvelopeError::Form(what));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| EnvelopeError::Utf8)?;
    check_depth(bytes)?;
    let Raw(fields) = serde_json::from_str(text).map_err(|error| EnvelopeError::Json(error.to_string()))?;
    let mut envelope = Envelope::default();
    let mut seen = 0_u32;
    for (key, raw) in fields {
        let Some(index) = NAMES.iter().position(|name| *name == key) else {
            if !STAMPED.iter().any(|name| same_but_for_case(&key, name)) {
                envelope.unknown.push((quoted(&key), raw.get()));
            }
            continue;
        };
        if seen & (1 << index) != 0 {
            return Err(EnvelopeError::Duplicate(NAMES[index]));
        }
        seen |= 1 << index;
        set(&mut envelope, NAMES[index], raw.get())?;
    }
    Ok(envelope)
}

/// Without a byte order mark in front.
pub fn unmarked(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// The `id` of an object, whatever else is wrong with the object.
pub(super) fn readable_id(bytes: &[u8]) -> Option<Cow<'_, str>> {
    let Raw(fields) = serde_json::from_str(std::str::from_utf8(unmarked(bytes)).ok()?).ok()?;
    let mut ids = fields.iter().filter(|(key, _)| *key == "id");
    match (ids.next(), ids.next()) {
        (Some((_, raw)), None) => text("id", raw.get(), MAX_ID).ok().flatten(),
        // Twice: which one is meant can't be known.
        _ => None,
    }
}

/// Case as parsers fold it: also the characters whose other case is ASCII: the long s, the Kelvin sign, the dotless i and the dotted I (Java
/// compares the upper case of each character, then the lower case of that).
fn same_but_for_case(key: &str, name: &str) -> bool {
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        '\u{130}' | '\u{131}' => 'i',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(folded).eq(name.chars().map(folded))
}

fn set<'a>(envelope: &mut Envelope<'a>, name: &'static str, raw: &'a str) -> Result<(), EnvelopeError> {
    match name {
        "id" => envelope.id = text(name, raw, MAX_ID)?,
        "sendType" => envelope.send_type = send_type(name, raw)?,
        "messageType" => {
            envelope.message_type = text(name, raw, MAX_MESSAGE_TYPE)?;
            if let Some(word) = &envelope.message_type
                && word.contains(|c: char| c == '*' || c == '#' || c.is_whitespace() || c.is_control())
            {
                return Err(bad(name, "must be dotted words without space, * or #"));
            }
        }
        "businessType" => envelope.business_type = text(name, raw, MAX_IDENTITY)?,
        "fromUniqueId" => envelope.from_unique_id = text(name, raw, MAX_IDENTITY)?,
        "fromClientType" => envelope.from_client_type = text(name, raw, MAX_IDENTITY)?,
        "toUniqueId" => envelope.to_unique_id = text(name, raw, MAX_IDENTITY)?,
        "toClientType" => envelope.to_client_type = text(name, raw, MAX_IDENTITY)?,
        "timestamp" => envelope.timestamp = millis(name, raw)?,
        "content" => envelope.content = Some(raw),
        "tags" => envelope.tags = list(name, raw)?,
        "businesses" => envelope.businesses = list(name, raw)?,
        "correlationId" => envelope.correlation_id = text(name, raw, MAX_ID)?,
        "expiresAt" => envelope.expires_at = millis(name, raw)?,
        "cursor" => envelope.cursor = text(name, raw, MAX_IDENTITY)?,
        _ => envelope.op = text(name, raw, MAX_ID)?,
    }
    Ok(())
}

fn bad(field: &'static str, problem: impl Into<String>) -> EnvelopeError {
    EnvelopeError::Field { field, problem: problem.into() }
}

/// A string; null and empty are `None`.
fn text<'a>(field: &'static str, raw: &'a str, max: usize) -> Result<Option<Cow<'a, str>>, EnvelopeError> {
    if raw == "null" {
        return Ok(None);
    }
    let Text(value) = serde_json::from_str(raw).map_err(|_| bad(field, "must be a string"))?;
    if value.len() > max {
        return Err(bad(field, format!("is longer than {max} bytes")));
    }
    Ok((!value.is_empty()).then_some(value))
}

fn send_type(field: &'static str, raw: &str) -> Result<Option<SendType>, EnvelopeError> {
    let Some(word) = text(field, raw, MAX_ID)? else {
        return Ok(None);
    };
    SendType::parse(&word)
        .map(Some)
        .ok_or_else(|| bad(field, "must be ClientToServer, ServerToClient or ClientToClient"))
}

/// Milliseconds since the epoch; null and 0 are `None`.
fn millis(field: &'static str, raw: &str) -> Result<Option<i64>, EnvelopeError> {
    if raw == "null" {
        return Ok(None);
    }
    let value: i64 =
        serde_json::from_str(raw).map_err(|_| bad(field, "must be a whole number of milliseconds since the epoch"))?;
    if value < 0 {
        return Err(bad(field, "must not be negative"));
    }
    Ok((value != 0).then_some(value))
}

/// A list of strings; null is empty, and empty strings in it are dropped: they address no client.
fn list<'a>(field: &'static str, raw: &'a str) -> Result<Vec<Cow<'a, str>>, EnvelopeError> {
    if raw == "null" {
        return Ok(Vec::new());
    }
    let AtMost { items, more } =
        AtMost::<Text<'a>, MAX_LIST>::of(raw.as_bytes()).map_err(|_| bad(field, "must be a list of strings"))?;
    if more > 0 {
        return Err(bad(field, format!("has more than {MAX_LIST} items")));
    }
    if items.iter().any(|Text(item)| item.len() > MAX_IDENTITY) {
        return Err(bad(field, format!("has an item longer than {MAX_IDENTITY} bytes")));
    }
    Ok(items.into_iter().map(|Text(item)| item).filter(|item| !item.is_empty()).collect())
}

fn quoted(key: &str) -> String {
    serde_json::Value::from(key).to_string()
}

/// Counts brackets outside strings. Cheaper than a parse, and independent of any parser's own recursion.
fn check_depth(bytes: &[u8]) -> Result<(), EnvelopeError> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(EnvelopeError::Depth);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// A string that borrows where it has no escapes. (`Cow` on its own always copies: serde-rs/serde 1852.)
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(v))
            }
            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(v.to_owned()))
            }
        }
        deserializer.deserialize_str(TextVisitor).map(Text)
    }
}

/// Most fields; no legitimate envelope has more.
const MAX_FIELDS: usize = 256;

/// The top level in order, unescaped keys, raw values.
struct Raw<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an envelope (a JSON object)")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(12);
                while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
                    if fields.len() == MAX_FIELDS {
                        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        return Err(A::Error::custom(format!("more than {MAX_FIELDS} fields")));
                    }
                    fields.push((key, map.next_value()?));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(RawVisitor).map(Raw)
    }
}
