//! AMQP 0-9-1 field tables, as RabbitMQ writes them. Entries can be passed on unchanged, and shown as far as they are
//! text.

use serde_json::{Map, Number, Value};
use wirepost_amqp::v091::Properties;

/// Nesting levels that are shown; a header may have any number of them.
const MAX_DEPTH: usize = 16;

/// An entry: its name, all of its bytes, and its value as far as it can be shown.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) bytes: &'a [u8],
    pub(super) value: Value,
}

/// The entries of a table without its length, up to the first one that can't be parsed.
pub(super) fn entries(table: &[u8]) -> Vec<Entry<'_>> {
    entries_at(table, 0)
}

/// The headers among the properties of a message: a table without its length.
pub(super) fn headers(properties: &Properties) -> Option<Vec<u8>> {
    let (flags, mut rest) = fixed::<2>(properties.as_bytes())?;
    let has = |bit: u16| u16::from_be_bytes(flags) & (1 << bit) != 0;
    // Content type and content encoding precede them.
    for bit in [15, 14] {
        if has(bit) {
            rest = take(rest.get(1..)?, usize::from(*rest.first()?))?.1;
        }
    }
    has(13).then(|| long(rest))?.map(|(table, _)| table.to_vec())
}

/// As JSON. Bytes that are not text are shown as `U+FFFD`.
pub(super) fn json(table: &[u8]) -> Value {
    json_at(table, 0)
}

fn json_at(table: &[u8], depth: usize) -> Value {
    let entries = entries_at(table, depth);
    Value::Object(entries.into_iter().map(|entry| (lossy(entry.name), entry.value)).collect::<Map<_, _>>())
}

fn entries_at(mut table: &[u8], depth: usize) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    while let Some((entry, rest)) = entry(table, depth) {
        entries.push(entry);
        table = rest;
    }
    entries
}

fn entry(table: &[u8], depth: usize) -> Option<(Entry<'_>, &[u8])> {
    let (name, rest) = take(table.get(1..)?, usize::from(*table.first()?))?;
    let (value, rest) = value(rest, depth)?;
    let bytes = &table[..table.len() - rest.len()];
    Some((Entry { name, bytes, value }, rest))
}

fn take(bytes: &[u8], size: usize) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(size)
}

fn fixed<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    Some((*first, rest))
}

fn long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = fixed::<4>(bytes)?;
    take(rest, u32::from_be_bytes(size) as usize)
}

fn value(bytes: &[u8], depth: usize) -> Option<(Value, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    macro_rules! number {
        ($type:ty) => {{
            let (bytes, rest) = fixed(rest)?;
            (Value::from(<$type>::from_be_bytes(bytes)), rest)
        }};
    }
    Some(match kind {
        b't' => (Value::from(*rest.first()? != 0), &rest[1..]),
        b'b' => number!(i8),
        b'B' => number!(u8),
        b's' => number!(i16),
        b'u' => number!(u16),
        b'I' => number!(i32),
        b'i' => number!(u32),
        b'l' => number!(i64),
        b'L' | b'T' => number!(u64),
        b'f' => number!(f32),
        b'd' => number!(f64),
        b'D' => {
            let (scale, rest) = fixed::<1>(rest)?;
            let (digits, rest) = fixed(rest)?;
            let number = f64::from(i32::from_be_bytes(digits)) / 10_f64.powi(scale[0].into());
            (Number::from_f64(number).map_or(Value::Null, Value::Number), rest)
        }
        b'S' | b'x' => {
            let (text, rest) = long(rest)?;
            (Value::String(lossy(text)), rest)
        }
        b'V' => (Value::Null, rest),
        b'F' => {
            let (table, rest) = long(rest)?;
            (if depth < MAX_DEPTH { json_at(table, depth + 1) } else { "…".into() }, rest)
        }
        b'A' => {
            let (mut list, rest) = long(rest)?;
            let mut values = Vec::new();
            while depth < MAX_DEPTH && !list.is_empty() {
                let (one, left) = value(list, depth + 1)?;
                values.push(one);
                list = left;
            }
            (Value::Array(values), rest)
        }
        _ => return None,
    })
}

pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json as js;

    use super::*;

    fn named(name: &[u8], value: &[u8]) -> Vec<u8> {
        [&[name.len() as u8], name, value].concat()
    }

    fn long_of(kind: u8, bytes: &[u8]) -> Vec<u8> {
        [&[kind], &(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    #[test]
    fn every_kind_is_shown_and_cut_out_whole() {
        let inner = named(b"queue", &long_of(b'S', b"q"));
        let list = long_of(b'A', &[long_of(b'F', &inner), vec![b'V']].concat());
        let parts = [
            named(b"x-death", &list),
            named(b"price", &[b'D', 2, 0, 0, 4, 0xe2]),
            named(b"text", &long_of(b'S', &[0xb6, 0xa9])),
            named(b"\xb6", b"t\x01"),
            named(b"time", &[b'T', 0, 0, 0, 0, 0, 0, 0, 9]),
            named(b"small", &[b'b', 0xff]),
        ];
        let table = parts.concat();
        let expected = js!({
            "x-death": [{"queue": "q"}, null], "price": 12.5, "text": "\u{fffd}\u{fffd}", "\u{fffd}": true, "time": 9, "small": -1,
        });
        assert_eq!(json(&table), expected);
        let cut: Vec<_> = entries(&table).iter().map(|entry| entry.bytes.to_vec()).collect();
        assert_eq!(cut, parts);
    }

    #[test]
    fn what_is_broken_or_endless_ends() {
        for bytes in [&b"\x05ab"[..], b"\x01a", b"\x01aS\xff\xff\xff\xff", b"\x01a?", b"\xff", b""] {
            assert!(entries(bytes).is_empty());
        }
        let deep =
            (0..10_000).fold(vec![b'V'], |inner, _| if inner.len() < 1 << 16 { long_of(b'A', &inner) } else { inner });
        assert_eq!(entries(&named(b"deep", &deep)).len(), 1);
    }
}
