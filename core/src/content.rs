//! JSON Schemas of `content`: what is accepted as one, and how it is compiled. The check of a declaration and the edge use the same
//! function, so that an accepted schema is one that every edge can run, at a bounded cost for each message.

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// Largest schema, as JSON text, in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// Deepest nesting of a schema, references followed.
pub const MAX_DEPTH: usize = 64;
/// Most JSON values in a schema when every reference is replaced by its target. Bounds the work for one value of a message: a chain of
/// schemas that each refer twice to the next would double it with every link.
pub const MAX_WEIGHT: usize = 20_000;
/// Compiled size of one `pattern`, in bytes.
const PATTERN_BYTES: usize = 1 << 20;

/// Compiles a schema (draft 2020-12, or what its `$schema` names). Patterns run in linear time, without look-around or back-references;
/// nothing is ever fetched.
///
/// # Errors
/// A sentence that says what is wrong with the schema.
pub fn compile(schema: &Value) -> Result<Validator, String> {
    let bytes = serde_json::to_string(schema).map_or(usize::MAX, |text| text.len());
    if bytes > MAX_BYTES {
        return Err(format!("is {bytes} bytes long, the limit is {MAX_BYTES}"));
    }
    let mut weight = 0;
    weigh(schema, schema, &mut Vec::new(), 0, &mut weight)?;
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES))
        .offline()
        .build(schema)
        .map_err(|error| {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() { place } else { format!(", at {place}") };
            format!("is not valid: {error}{place}")
        })
}

/// Adds up the values of `node` with references followed. Every key is walked, whether or not it is a keyword: more than the evaluator
/// visits, never less.
fn weigh<'a>(
    root: &'a Value,
    node: &'a Value,
    open: &mut Vec<&'a str>,
    depth: usize,
    weight: &mut usize,
) -> Result<(), String> {
    *weight += 1;
    if *weight > MAX_WEIGHT {
        return Err(format!("is too large with its references followed, the limit is {MAX_WEIGHT} values"));
    }
    if depth > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH} levels, references followed"));
    }
    match node {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("$ref", Value::String(target)) => {
                        let pointer = target.strip_prefix('#').ok_or_else(|| {
                            format!("refers to {target}, only references within it, such as #/$defs/name, are followed")
                        })?;
                        if open.contains(&pointer) {
                            return Err(format!("refers to itself through {target}"));
                        }
                        let next = root
                            .pointer(&unescape(pointer))
                            .ok_or_else(|| format!("refers to {target}, which does not exist"))?;
                        open.push(pointer);
                        weigh(root, next, open, depth + 1, weight)?;
                        open.pop();
                    }
                    ("$dynamicRef" | "$recursiveRef" | "$id" | "id", Value::String(_)) => {
                        return Err(format!("uses {key}, which is not supported here"));
                    }
                    _ => weigh(root, value, open, depth + 1, weight)?,
                }
            }
            Ok(())
        }
        Value::Array(list) => list.iter().try_for_each(|value| weigh(root, value, open, depth + 1, weight)),
        _ => Ok(()),
    }
}

/// A pointer in a URI fragment may be percent-encoded.
fn unescape(pointer: &str) -> String {
    let bytes = pointer.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = (bytes[i] == b'%')
            .then(|| pointer.get(i + 1..i + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = escaped {
            out.push(byte);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_checks_content() {
        let schema = json!({
            "type": "object",
            "required": ["qrId"],
            "properties": {"qrId": {"$ref": "#/$defs/id"}},
            "$defs": {"id": {"type": "string", "pattern": "^[a-z]+$"}},
        });
        let validator = compile(&schema).unwrap();
        assert!(validator.is_valid(&json!({"qrId": "a"})));
        assert!(!validator.is_valid(&json!({"qrId": "A"})));
        assert!(!validator.is_valid(&json!({})));
    }

    #[test]
    fn what_could_run_for_ever_or_leave_the_machine_is_refused() {
        let mut doubling = json!({"$defs": {"s16": {"type": "string"}}, "$ref": "#/$defs/s0"});
        for i in 0..16 {
            let next = json!({"$ref": format!("#/$defs/s{}", i + 1)});
            doubling["$defs"][format!("s{i}")] = json!({"allOf": [next, next]});
        }
        let mut deep = json!({});
        for _ in 0..100 {
            deep = json!({"not": deep});
        }
        for (schema, part) in [
            (json!({"$ref": "#"}), "refers to itself"),
            (json!({"allOf": [{"$ref": "#"}]}), "refers to itself"),
            (json!({"properties": {"child": {"$ref": "#"}}}), "refers to itself"),
            (json!({"$ref": "https://example.com/s.json"}), "only references within it"),
            (json!({"$ref": "#/$defs/none"}), "does not exist"),
            (json!({"$dynamicRef": "#x"}), "not supported"),
            (doubling, "too large"),
            (deep, "nested deeper"),
            (json!({"type": "strin"}), "strin"),
            (json!({"pattern": "(a)\\1"}), "regex"),
            (json!({"pattern": "(((a{100}){100}){100}){100}"}), "regex"),
            (json!({"description": "x".repeat(MAX_BYTES)}), "bytes long"),
        ] {
            let error = compile(&schema).expect_err(&schema.to_string());
            assert!(error.contains(part), "{error} has no {part}");
        }
    }
}
