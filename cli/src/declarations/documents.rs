//! Splits a file like kubectl: the encoding by its byte order mark, YAML documents by lines with `---`, consecutive
//! JSON objects, lists into their items.

use serde_json::{Map, Value};
use wirepost_core::{
    Problem,
    business::{API_VERSION, KIND},
};

use super::{
    is_ours,
    lines::{LineMap, Lines},
    yaml::{self, Syntax, scalar::from_float},
};

/// One object of a file.
#[derive(Debug)]
pub(super) struct Object {
    pub value: Value,
    pub lines: Lines,
}

/// The contents of a file, up to the first unreadable document.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub objects: Vec<Object>,
    /// Lists of our objects that kubectl does not accept, by their line (counted from 1).
    pub lists: Vec<(usize, Problem)>,
    /// Line and message of the first unreadable document.
    pub error: Option<(usize, String)>,
}

/// Text from a file: UTF-16 if it begins with its byte order mark (PowerShell's `>` writes it), else UTF-8, with or
/// without a mark. Invalid characters become U+FFFD, like in kubectl.
pub(super) fn text(bytes: &[u8]) -> String {
    let utf16 = |pairs: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = pairs.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
        let mut text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        if pairs.len() % 2 == 1 {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// The objects of a file in order, including those in lists.
pub(super) fn parts(text: &str) -> Parts {
    let mut found = Parts::default();
    let mut rest = text;
    let mut line = 1;
    if text.trim_start().starts_with('{') {
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let (mut count, mut read) = (0, 0);
        loop {
            match stream.next() {
                None => return found,
                Some(Ok(value)) => {
                    let document = &text[read..stream.byte_offset()];
                    let line = 1 + breaks(&text[..read + document.len() - document.trim_start().len()]);
                    read = stream.byte_offset();
                    count += 1;
                    let lines = yaml::read(document.trim_start(), Syntax::Json, line).ok().flatten();
                    let line_map =
                        lines.map_or_else(|| LineMap { start: line, ..LineMap::default() }, |(_, line_map)| line_map);
                    flatten(whole(value), Lines::new(line_map), &mut found);
                }
                // Two objects without --- between them: not YAML.
                Some(Err(error)) if count > 1 => {
                    found.error = Some((error.line(), format!("is not JSON: {error}")));
                    return found;
                }
                Some(Err(_)) => break,
            }
        }
        // The rest is YAML, from the next line on if an object was read before.
        rest = &text[read..];
        let blank = rest.len() - rest.trim_start().len();
        rest = match rest[..blank].find('\n') {
            Some(end) if read > 0 => &rest[end + 1..],
            _ => rest,
        };
        line += breaks(&text[..text.len() - rest.len()]);
    }
    yaml_documents(rest, line, &mut found);
    found
}

fn yaml_documents(text: &str, first: usize, found: &mut Parts) {
    let mut document = String::new();
    let mut start = first;
    for (i, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if let Some(rest) = line.strip_prefix("---") {
            let rest = rest.trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                found.error = Some((
                    first + i,
                    "is not YAML for kubectl: a line that begins with --- separates documents and may contain nothing else"
                        .to_owned(),
                ));
                return;
            }
            if !document.is_empty() {
                if !yaml_document(&document, start, found) {
                    return;
                }
                document.clear();
                start = first + i + 1;
                continue;
            }
        }
        if document.is_empty() {
            start = first + i;
        }
        document.push_str(line);
        document.push('\n');
    }
    yaml_document(&document, start, found);
}

/// Returns whether it is readable.
fn yaml_document(text: &str, first: usize, found: &mut Parts) -> bool {
    match yaml::read(text, Syntax::Yaml, first) {
        Ok(None) => true,
        Ok(Some((value, line_map))) => {
            if !value.is_null() {
                flatten(value, Lines::new(line_map), found);
            }
            true
        }
        Err(error) => {
            let line = error.line.map_or(first, |line| first + line);
            found.error = Some((line, format!("is not YAML: {}", error.message)));
            false
        }
    }
}

/// Adds an object, or the items of a list. An item without kind and apiVersion gets those of its list.
fn flatten(mut value: Value, lines: Lines, found: &mut Parts) {
    let Some(Value::Array(items)) = value.get_mut("items").filter(|items| items.is_array()).map(Value::take) else {
        found.objects.push(Object { value, lines });
        return;
    };
    let list = value;
    let kind = list["kind"].as_str().unwrap_or_default();
    let kind = kind.strip_suffix("List").unwrap_or(kind);
    let mut objects = Vec::new();
    for (i, mut value) in items.into_iter().enumerate() {
        if let Value::Object(item) = &mut value
            && !has_text(item, "kind")
            && !has_text(item, "apiVersion")
        {
            item.insert("kind".to_owned(), kind.into());
            item.insert("apiVersion".to_owned(), list["apiVersion"].clone());
        }
        objects.push(Object { value, lines: lines.within(&format!("items[{i}]")) });
    }
    if objects.iter().any(|object| is_ours(&object.value)) {
        found.lists.extend(list_problem(&list).map(|problem| (lines.of(&problem.field), problem)));
        let nested = objects.iter().find(|object| object.value.get("items").is_some());
        found.lists.extend(nested.map(|object| {
            let problem = Problem::at(
                "items",
                "kubectl does not accept a list within a list",
                "move its items into the outer one",
            );
            (object.lines.of(""), problem)
        }));
    }
    found.objects.append(&mut objects);
}

/// Why kubectl does not recognise a list of our objects.
fn list_problem(list: &Value) -> Option<Problem> {
    let text = |field: &str| list[field].as_str().unwrap_or_default();
    let known = match (text("apiVersion"), text("kind")) {
        ("v1", "List") => true,
        (API_VERSION, kind) => kind == "List" || kind.strip_suffix("List").unwrap_or(kind) == KIND,
        _ => false,
    };
    (!known).then(|| {
        let field = if text("kind").is_empty() { "kind" } else { "apiVersion" };
        Problem::at(field, "does not name a list that can contain this", "write apiVersion: v1 and kind: List")
    })
}

fn has_text(object: &Map<String, Value>, field: &str) -> bool {
    object.get(field).and_then(Value::as_str).is_some_and(|text| !text.is_empty())
}

/// Numbers as the API server represents them.
fn whole(value: Value) -> Value {
    match value {
        Value::Number(number) => {
            number.as_f64().filter(|_| number.is_f64()).and_then(from_float).unwrap_or(Value::Number(number))
        }
        Value::Array(list) => list.into_iter().map(whole).collect(),
        Value::Object(map) => map.into_iter().map(|(name, value)| (name, whole(value))).collect(),
        other => other,
    }
}

fn breaks(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        let found = parts(text);
        assert_eq!(found.error, None, "{text}");
        found.objects.into_iter().map(|object| object.value).collect()
    }

    #[test]
    fn the_byte_order_mark_decides_the_encoding() {
        let utf16 = |unit: fn(u16) -> [u8; 2]| "\u{feff}a: ü🚚\n".encode_utf16().flat_map(unit).collect::<Vec<u8>>();
        for bytes in ["a: ü🚚\n".into(), "\u{feff}a: ü🚚\n".into(), utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)]
        {
            assert_eq!(text(&bytes), "a: ü🚚\n");
        }
        assert_eq!(text(b"a: \xff"), "a: \u{fffd}");
        assert_eq!(text(&[0xff, 0xfe, b'a', 0, b'b']), "a\u{fffd}");
    }

    #[test]
    fn a_file_is_split_like_kubectl_splits_it() {
        for (text, expected) in [
            ("", vec![]),
            ("# a\n---\n# b\n", vec![]),
            ("---\na: 1\n--- # two\na: 2\n---\n---\na: 3", vec![json!({"a": 1}), json!({"a": 2}), json!({"a": 3})]),
            ("a: 1\r\n---\r\na: 2\r\n", vec![json!({"a": 1}), json!({"a": 2})]),
            ("a: |\n  x\n  ---\n", vec![json!({"a": "x\n---\n"})]),
            ("{\"a\": 65536.0}{\"a\": 2}\n", vec![json!({"a": 65536}), json!({"a": 2})]),
            ("{\"a\": 1}\n---\n{a: 2}\n---\na: 3\n", vec![json!({"a": 1}), json!({"a": 2}), json!({"a": 3})]),
            ("{a: 1}\n", vec![json!({"a": 1})]),
            (
                "kind: XList\napiVersion: v1\nitems: [{a: 1}, {kind: W, apiVersion: v2}]\n",
                vec![json!({"a": 1, "kind": "X", "apiVersion": "v1"}), json!({"kind": "W", "apiVersion": "v2"})],
            ),
            ("kind: List\napiVersion: v1\nitems: []\n", vec![]),
        ] {
            assert_eq!(values(text), expected, "{text}");
        }
    }

    #[test]
    fn documents_after_an_unreadable_one_are_not_read() {
        for (text, line, read) in [
            ("a: 1\n---\nb: [\n---\na: 2\n", 4, 1),
            // kubectl does not read the document before such a line either.
            ("a: 1\n--- a: 2\n", 2, 0),
            ("a: 1\n----\n", 2, 0),
            ("{\"a\": 1}{\"a\": 2}\n{\"a\" 3}\n", 2, 2),
        ] {
            let found = parts(text);
            assert_eq!(found.error.as_ref().map(|(line, _)| *line), Some(line), "{text}: {found:?}");
            assert_eq!(found.objects.len(), read, "{text}");
        }
    }

    #[test]
    fn objects_have_lines_of_their_file() {
        for (text, lines) in [
            ("# c\n---\na: 1\n---\n\na:\n  b: 2\n", vec![3, 6]),
            ("\n{\n  \"a\": 1\n}\n{\"a\": 2}\n", vec![3, 5]),
            ("{\"a\": 1}\n---\na: 2\n", vec![1, 3]),
            ("{\n\"b\": \"x\\/y\",\n\"a\": 1}\n", vec![3]),
            ("kind: XList\nitems:\n- a: 1\n- b: 2\n  a: 1\n", vec![3, 5]),
        ] {
            let found = parts(text);
            assert_eq!(found.objects.iter().map(|o| o.lines.of("a")).collect::<Vec<_>>(), lines, "{text}");
        }
    }
}
