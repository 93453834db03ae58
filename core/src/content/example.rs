//! Content that matches a JSON Schema: built from the schema, then checked with it. What does not pass is not shown.

use std::cell::Cell;

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::{Map, Value, json};

use super::Schema;

/// Levels of a schema that are followed; recursion ends there.
const MAX_DEPTH: u8 = 12;
/// Longest example, in characters of a string or items of a list.
const MAX_LENGTH: u64 = 1000;

/// Keywords that only schemas of numbers have.
const NUMERIC: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
/// Largest example, in bytes of JSON, roughly; nested lists multiply.
const MAX_BYTES: usize = 1 << 20;

/// An example, or `None` if none was found.
pub fn of(schema: &Value) -> Option<Value> {
    let validator = Schema::try_new(schema).ok()?;
    let root = ExampleBuilder { root: schema, left: Cell::new(MAX_BYTES) };
    // A complex schema may still accept the simplest content.
    [root.value(schema, 0), json!({}), Value::Null]
        .into_iter()
        .find(|value| validator.check(&value.to_string()).is_ok())
}

struct ExampleBuilder<'a> {
    root: &'a Value,
    /// Bytes left for the example.
    left: Cell<usize>,
}

impl ExampleBuilder<'_> {
    fn value(&self, schema: &Value, depth: u8) -> Value {
        // The length of `null`, the value beyond the bounds.
        if depth > MAX_DEPTH || !self.spend(4) {
            return Value::Null;
        }
        if let Some(value) =
            schema.get("const").or_else(|| ["enum", "examples"].iter().find_map(|key| schema[*key].get(0)))
        {
            return self.copy(value);
        }
        if let Some(value) = schema.get("default") {
            return self.copy(value);
        }
        if let Some(target) = schema["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
            return self.root.pointer(target).map_or(Value::Null, |target| self.value(target, depth + 1));
        }
        let mut built = self.plain(schema, depth);
        for key in ["oneOf", "anyOf"] {
            if let Some(first) = schema[key].get(0) {
                built = both(built, self.value(first, depth + 1));
            }
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            built = both(built, self.value(part, depth + 1));
        }
        built
    }

    fn copy(&self, value: &Value) -> Value {
        if self.spend(value.to_string().len()) { value.clone() } else { Value::Null }
    }

    fn text(&self, schema: &Value) -> Value {
        let text = text(schema);
        if self.spend(text.len()) { text.into() } else { Value::Null }
    }

    /// Takes `bytes` from the budget; once it is exceeded, nothing more is allowed.
    fn spend(&self, bytes: usize) -> bool {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.unwrap_or_default());
        left.is_some()
    }

    fn plain(&self, schema: &Value, depth: u8) -> Value {
        let kind = schema["type"].as_str().or_else(|| schema["type"].get(0)?.as_str());
        match kind {
            Some("string") => self.text(schema),
            Some("number" | "integer") => number(schema),
            Some("boolean") => true.into(),
            Some("null") => Value::Null,
            Some("array") => {
                let least = schema["minItems"].as_u64().unwrap_or_default().min(MAX_LENGTH);
                let item = |i: usize| schema["prefixItems"].get(i).unwrap_or(&schema["items"]);
                (0..least as usize).map(|i| self.value(item(i), depth + 1)).collect()
            }
            Some("object") => self.object(schema, depth),
            // Without a type, decide by its keywords.
            _ if schema.get("pattern").is_some() || schema.get("format").is_some() => self.text(schema),
            _ if NUMERIC.iter().any(|key| schema.get(*key).is_some()) => number(schema),
            _ => self.object(schema, depth),
        }
    }

    /// Its required properties.
    fn object(&self, schema: &Value, depth: u8) -> Value {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let property = |name: &str| (name.to_owned(), self.value(&schema["properties"][name], depth + 1));
        required.map(property).collect::<Map<_, _>>().into()
    }
}

/// Combines two values: objects field by field, else the one with more content.
fn both(first: Value, second: Value) -> Value {
    match (first, second) {
        (Value::Object(mut first), Value::Object(second)) => {
            first.extend(second);
            first.into()
        }
        (Value::Object(first), second) if first.is_empty() => second,
        (first, _) => first,
    }
}

fn number(schema: &Value) -> Value {
    let bound = |key: &str| schema[key].as_f64();
    let step = bound("multipleOf").unwrap_or(1.0);
    let whole = schema["type"] == "integer";
    let above = |bound: f64| if whole { bound.floor() + 1.0 } else { bound.next_up() };
    let below = |bound: f64| if whole { bound.ceil() - 1.0 } else { bound.next_down() };
    // With both bounds the narrower one applies.
    let least = bound("minimum").into_iter().chain(bound("exclusiveMinimum").map(above)).reduce(f64::max);
    let most = bound("maximum").into_iter().chain(bound("exclusiveMaximum").map(below)).reduce(f64::min);
    // 1 if allowed; else the first step within the bounds, or their midpoint if there is no step.
    let wanted = step.max(1.0);
    let value = match (least, most) {
        (Some(least), _) if wanted < least => (least / step).ceil() * step,
        (_, Some(most)) if wanted > most => (most / step).floor() * step,
        _ => (wanted / step).ceil() * step,
    };
    let value = match (least, most) {
        (Some(least), Some(most)) if !(least..=most).contains(&value) => f64::midpoint(least, most),
        _ => value,
    };
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

fn text(schema: &Value) -> String {
    if let Some(pattern) = schema["pattern"].as_str() {
        let mut built = String::new();
        if let Ok(parsed) = regex_syntax::parse(pattern) {
            shortest_match(&parsed, &mut built);
        }
        return built;
    }
    let known = match schema["format"].as_str() {
        Some("date-time") => "2026-01-31T12:00:00Z",
        Some("date") => "2026-01-31",
        Some("time") => "12:00:00Z",
        Some("email") => "alice@shop.example",
        Some("uuid") => "0190d6a8-5f00-7000-8000-000000000001",
        Some("uri" | "uri-reference" | "iri") => "https://shop.example/1",
        Some("hostname") => "shop.example",
        Some("ipv4") => "192.0.2.1",
        Some("ipv6") => "2001:db8::1",
        _ => "example-1",
    };
    let least = schema["minLength"].as_u64().unwrap_or_default().min(MAX_LENGTH) as usize;
    let most = schema["maxLength"].as_u64().unwrap_or(MAX_LENGTH) as usize;
    let padding = least.saturating_sub(known.len());
    known.chars().chain(std::iter::repeat_n('0', padding)).take(most).collect()
}

/// Appends the shortest text that matches a pattern, with characters that are easy to read.
fn shortest_match(pattern: &Hir, built: &mut String) {
    if built.len() as u64 > MAX_LENGTH {
        return;
    }
    match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => built.push_str(&String::from_utf8_lossy(&literal.0)),
        HirKind::Class(class) => built.extend(readable(class)),
        HirKind::Repetition(repetition) => {
            // At least one character where the pattern allows it.
            let times = if repetition.max == Some(0) { 0 } else { repetition.min.max(1) };
            for _ in 0..times.min(MAX_LENGTH as u32) {
                let before = built.len();
                shortest_match(&repetition.sub, built);
                // Nothing was added, or there is no room: more rounds would not help.
                if built.len() == before {
                    break;
                }
            }
        }
        HirKind::Capture(capture) => shortest_match(&capture.sub, built),
        HirKind::Concat(parts) => parts.iter().for_each(|part| shortest_match(part, built)),
        HirKind::Alternation(parts) => parts.iter().take(1).for_each(|part| shortest_match(part, built)),
    }
}

fn readable(class: &Class) -> Option<char> {
    let ranges: Vec<(char, char)> = match class {
        Class::Unicode(class) => class.iter().map(|range| (range.start(), range.end())).collect(),
        Class::Bytes(class) => class.iter().map(|range| (range.start().into(), range.end().into())).collect(),
    };
    let contains = |c: &char| ranges.iter().any(|(first, last)| (first..=last).contains(&c));
    ('a'..='z').chain('A'..='Z').chain('1'..='9').find(contains).or_else(|| ranges.first().map(|(first, _)| *first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_matches_its_schema() {
        for schema in [
            json!({}),
            json!({"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}),
            json!({"type": "string", "pattern": r"^\d{2,}(\.\d+)?$"}),
            json!({"type": "string", "pattern": "^(paid|open)$"}),
            json!({"type": "string", "pattern": "^[A-Za-z0-9-]{4,64}$"}),
            json!({"type": "string", "minLength": 30}),
            json!({"type": "string", "maxLength": 3}),
            json!({"type": "string", "format": "date-time"}),
            json!({"type": "integer", "minimum": 5}),
            json!({"type": "integer", "minimum": 7, "multipleOf": 5}),
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}),
            json!({"type": "number", "maximum": -3}),
            json!({"type": "integer", "exclusiveMinimum": 2}),
            json!({"type": "integer", "exclusiveMinimum": 1000, "multipleOf": 5}),
            json!({"type": "integer", "exclusiveMaximum": -1000}),
            json!({"type": "number", "exclusiveMinimum": 2, "maximum": 2.5}),
            json!({"type": "number", "exclusiveMinimum": 1e9, "exclusiveMaximum": 1e9 + 1.0}),
            json!({"minimum": 0, "exclusiveMinimum": 7}),
            json!({"exclusiveMaximum": -2}),
            json!({"type": ["null", "string"]}),
            json!({"type": "array", "minItems": 2, "items": {"type": "integer"}}),
            json!({"type": "array", "minItems": 1, "prefixItems": [{"const": "a"}]}),
            json!({"oneOf": [{"type": "object", "required": ["a"], "properties": {"a": {"type": "boolean"}}}]}),
            json!({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/id"}}, "$defs": {"id": {"type": "string", "pattern": "^x[0-9]$"}}}),
            json!({"allOf": [{"required": ["a"]}, {"required": ["b"], "properties": {"b": {"enum": ["p", "q"]}}}]}),
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "object", "required": ["b"], "properties": {"b": {"type": "number"}}}}}),
        ] {
            let example = of(&schema).unwrap_or_else(|| panic!("none for {schema}"));
            assert!(Schema::try_new(&schema).unwrap().check(&example.to_string()).is_ok(), "{schema}: {example}");
        }
        assert_eq!(of(&json!({"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"})), Some("AAA-1111".into()));
    }

    #[test]
    fn an_example_of_nested_lists_is_bounded() {
        let list = |items: Value| json!({"type": "array", "minItems": 1000, "items": items});
        assert_eq!(of(&list(list(list(json!({"type": "integer"}))))), None);
        let mut empty = r"\b".to_owned();
        for _ in 0..3 {
            empty = format!("(?:{empty}){{500}}");
        }
        text(&json!({"pattern": empty}));
        let list = of(&list(json!({"type": "integer"}))).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 1000);
    }

    #[test]
    fn without_a_match_there_is_no_example() {
        for schema in [
            json!({"not": {}}),
            json!({"type": "object", "minProperties": 2}),
            json!({"type": "string", "pattern": "^a$", "minLength": 2}),
            json!({"type": "array", "minItems": 2, "uniqueItems": true, "items": {"type": "boolean"}}),
        ] {
            assert_eq!(of(&schema), None, "{schema}");
        }
    }
}
