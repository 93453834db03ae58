//! JSON Schemas of `content`: which schemas are accepted, and how content is validated. Declarations and edges use the same type, so an
//! accepted schema is one that every edge can run, at a bounded cost for each message.

mod cost;
pub mod example;
mod unique;

use jsonschema::{PatternOptions, Validator};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use cost::CostModel;
use unique::Unique;

/// Largest schema, as JSON text, in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// Deepest nesting of a schema, references followed.
pub const MAX_DEPTH: usize = 64;
/// Most JSON values in a schema when every reference is replaced by its target. Bounds the work for one value of a message: a chain of
/// schemas that each reference the next one twice would double it with every link.
pub const MAX_WEIGHT: usize = 20_000;
/// Most steps for one value of a message, apart from its text: a schema within [`MAX_WEIGHT`] may still visit a value many times.
pub const MAX_VALUE_STEPS: u64 = 100_000;
/// Compiled size of one `pattern`, in bytes.
const PATTERN_BYTES: usize = 1 << 20;
/// Of all patterns of a schema, each counted as large as the next of the sizes in [`cost`].
const ALL_PATTERN_BYTES: usize = 4 << 20;
/// Of all schemas of a declaration.
pub const DECLARED_PATTERN_BYTES: usize = 16 << 20;
/// What the automata of one pattern may take for each thread that matches: a part of what all of a schema may, but no less than this.
const LEAST_CACHE_BYTES: usize = 64 << 10;

/// Most steps (one keyword evaluated for one value) for one message; a fifth of a second, or three times that with a pattern that is made
/// for it.
pub const MAX_STEPS: u64 = 4_000_000;
/// Steps up to which a check is *light*: half a millisecond, or three times that with a pattern that is made for it; short enough to block
/// the caller.
pub const LIGHT_STEPS: u64 = 10_000;
/// Steps up to which a mismatch among branches (`anyOf`, `oneOf`) is explained: that takes time and memory for each of their errors.
const EXPLAINED_STEPS: u64 = 65_536;
/// Longest explanation of a mismatch, in characters; a message may repeat a large value.
const MAX_REASON: usize = 300;

/// A schema, ready to check content with.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    plan: CostModel,
}

/// Why content is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// It does not match the schema.
    #[error("{0}")]
    Mismatch(String),
    /// Validating it would take more than [`MAX_STEPS`].
    #[error(
        "content has too many values to be checked against the route's JSON Schema (more than {MAX_STEPS} steps); send it in several \
         messages, or make the schema simpler"
    )]
    TooComplex,
}

impl Schema {
    /// Compiles a schema (draft 2020-12, or what its `$schema` names). Patterns run in linear time, without look-around or back-references;
    /// nothing is ever fetched.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the schema.
    pub fn try_new(schema: &Value) -> Result<Self, String> {
        let bytes = serde_json::to_string(schema).map_or(usize::MAX, |text| text.len());
        if bytes > MAX_BYTES {
            return Err(format!("is {bytes} bytes long, the limit is {MAX_BYTES}"));
        }
        let mut weight = 0;
        weigh(schema, schema, &mut Vec::new(), 0, &mut weight)?;
        // Before it is built: that is what takes memory and time.
        let plan = CostModel::new(schema);
        if plan.pattern_bytes > ALL_PATTERN_BYTES {
            return Err(format!(
                "has patterns that take more than {ALL_PATTERN_BYTES} bytes together once they are compiled; use fewer of them, smaller \
                 repetitions, or enum for a list of words"
            ));
        }
        let cache = (ALL_PATTERN_BYTES / plan.patterns.max(1)).clamp(LEAST_CACHE_BYTES, PATTERN_BYTES);
        let validator = jsonschema::options()
            .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(cache))
            .offline()
            .build(schema)
            .map_err(|error| {
                let place = error.instance_path().to_string();
                let place = if place.is_empty() { place } else { format!(", at {place}") };
                format!("is not valid: {error}{place}")
            })?;
        if plan.worst_of_one_value() > MAX_VALUE_STEPS {
            return Err(format!(
                "takes up to {} steps to check a single value, the limit is {MAX_VALUE_STEPS}",
                plan.worst_of_one_value()
            ));
        }
        Ok(Self { validator, plan })
    }

    /// Compiled bytes of its patterns, at most.
    pub fn pattern_bytes(&self) -> usize {
        self.plan.pattern_bytes
    }

    /// Whether validating this content is cheap enough for the caller's own task. Does not parse it.
    pub fn is_light(&self, content: &str) -> bool {
        self.plan.worst(content) <= LIGHT_STEPS
    }

    /// Validates `content` (JSON text), in bounded time.
    ///
    /// # Errors
    /// See [`ContentError`].
    pub fn check(&self, content: &str) -> Result<(), ContentError> {
        self.check_within(content, MAX_STEPS)
    }

    /// The same in at most so many steps.
    ///
    /// # Errors
    /// See [`ContentError`].
    pub fn check_within(&self, content: &str, budget: u64) -> Result<(), ContentError> {
        let Unique(value) = serde_json::from_str(content).map_err(|error| ContentError::Mismatch(error.to_string()))?;
        let mut steps = self.plan.worst(content);
        if steps > EXPLAINED_STEPS.min(budget) {
            steps = self.plan.count(&value, budget).ok_or(ContentError::TooComplex)?;
        }
        if self.plan.branches() && steps > EXPLAINED_STEPS {
            let fits = self.validator.is_valid(&value);
            return if fits {
                Ok(())
            } else {
                Err(ContentError::Mismatch("content does not match; it is too large to say where".into()))
            };
        }
        self.validator.validate(&value).map_err(|error| {
            let reason = format!("content{}: {error}", error.instance_path());
            ContentError::Mismatch(reason.chars().take(MAX_REASON).collect())
        })
    }
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
                    // Its check compares each group's name with all others. Newer drafts assert no formats.
                    ("format", Value::String(format)) if format == "regex" && asserts_formats(root) => {
                        return Err("asserts the format regex, which is not supported here; leave it out".to_owned());
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

/// Whether a schema is of a draft in which `format` is more than a note: 4, 6 or 7.
fn asserts_formats(root: &Value) -> bool {
    root.get("$schema").and_then(Value::as_str).is_some_and(|draft| draft.contains("draft-0"))
}

/// A pointer in a URI fragment may be percent-encoded.
fn unescape(pointer: &str) -> String {
    percent_decode_str(pointer).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compile(schema: &Value) -> Result<Schema, String> {
        Schema::try_new(schema)
    }

    #[test]
    fn a_schema_checks_content() {
        let schema = compile(&json!({
            "type": "object",
            "required": ["qrId"],
            "properties": {"qrId": {"$ref": "#/$defs/id"}},
            "$defs": {"id": {"type": "string", "pattern": "^[a-z]+$"}},
        }))
        .unwrap();
        assert_eq!(schema.check(r#"{"qrId": "a"}"#), Ok(()));
        for bad in [r#"{"qrId": "A"}"#, "{}", "null"] {
            assert!(matches!(schema.check(bad), Err(ContentError::Mismatch(_))), "{bad}");
        }
    }

    /// Each takes minutes, or gigabytes, when content of a megabyte is simply evaluated.
    #[test]
    fn content_that_takes_for_ever_to_check_is_refused_in_time() {
        let branches = |n: u32| (0..n).map(|i| json!({"const": i})).collect::<Vec<_>>();
        let refs = |n: u32| (0..n).map(|_| json!({"$ref": "#/$defs/one"})).collect::<Vec<_>>();
        let numbers = format!("[{}]", vec!["-1"; 300_000].join(","));
        let objects = format!("[{}]", vec![r#"{"a":{"b":1}}"#; 60_000].join(","));
        let names = format!("{{{}}}", (0..50_000).map(|i| format!(r#""{i}":1"#)).collect::<Vec<_>>().join(","));
        let text = format!("[{:?}]", "a".repeat(1 << 20));
        let empty = format!("[{}]", vec![r#""""#; 300_000].join(","));
        let nameless = format!("[{}]", vec![r#"{"":1}"#; 100_000].join(","));
        let two_letters = format!("[{:?}]", "abbababaab".repeat(100_000));
        // Whether it is there or not, each letter doubles the states of which the pattern has to think.
        let (either, any) = ("^(?:(a?|b?)){3000}$", "^[ab]*a[ab]{20}c");
        for (schema, content) in [
            (json!({"items": {"anyOf": refs(90)}, "$defs": {"one": {"anyOf": branches(90)}}}), &numbers),
            (json!({"items": {"oneOf": refs(90)}, "$defs": {"one": {"oneOf": branches(90)}}}), &numbers),
            (json!({"items": {"enum": (0..500).collect::<Vec<_>>()}}), &numbers),
            (json!({"contains": {"allOf": refs(20)}, "$defs": {"one": {"not": {"anyOf": branches(20)}}}}), &numbers),
            (json!({"items": {"properties": {"a": {"properties": {"b": {"anyOf": branches(500)}}}}}}), &objects),
            (
                json!({"patternProperties": (0..100).map(|i| (format!("^{i}.*x"), json!({}))).collect::<serde_json::Map<_, _>>()}),
                &names,
            ),
            (json!({"propertyNames": {"anyOf": branches(100)}}), &names),
            (json!({"unevaluatedProperties": {"anyOf": branches(100)}}), &names),
            (json!({"items": {"pattern": "^([a-z]b?){1,3000}!$"}}), &text),
            (json!({"items": {"pattern": either}}), &empty),
            (json!({"items": {"patternProperties": {either: {}}}}), &nameless),
            (json!({"items": {"allOf": [{"pattern": any}, {"pattern": any}, {"pattern": any}]}}), &two_letters),
        ] {
            let schema = compile(&schema).unwrap();
            assert!(!schema.is_light(content));
            assert_eq!(schema.check(content), Err(ContentError::TooComplex));
        }
    }

    #[test]
    fn large_content_of_an_everyday_schema_is_checked() {
        let line = json!({
            "type": "object", "required": ["sku", "count"], "additionalProperties": false,
            "properties": {
                "sku": {"type": "string", "pattern": "^[A-Z0-9-]{1,32}$"}, "count": {"type": "integer", "minimum": 1},
                "price": {"type": "string", "pattern": r"^\d+\.\d{2}$"}, "tags": {"type": "array", "uniqueItems": true, "items": {"type": "string"}},
            },
        });
        let schema = compile(&json!({"type": "object", "properties": {"lines": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/line"}]}}}, "$defs": {"line": line}})).unwrap();
        let order = |lines: usize, last: &str| {
            let one = r#"{"sku":"AB-1234567","count":3,"price":"12.50","tags":["red","new","sale"]}"#;
            format!(r#"{{"lines":[{}{last}]}}"#, format!("{one},").repeat(lines))
        };
        assert!(schema.is_light(&order(5, "null")), "what most messages are");
        assert_eq!(schema.check(&order(12_000, "null")), Ok(()), "a megabyte");
        for lines in [3, 12_000] {
            assert!(matches!(schema.check(&order(lines, "{}")), Err(ContentError::Mismatch(_))), "{lines}");
        }
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
        let mut again_and_again = json!({"anyOf": (0..200).map(|i| json!({"const": i})).collect::<Vec<_>>()});
        for _ in 0..6 {
            again_and_again = json!({"allOf": [again_and_again], "unevaluatedProperties": false});
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
            (again_and_again, "a single value"),
            (json!({"description": "x".repeat(MAX_BYTES)}), "bytes long"),
            (
                json!({"$schema": "http://json-schema.org/draft-07/schema#", "items": {"format": "regex"}}),
                "format regex",
            ),
            (
                json!({"allOf": (2000..2005).map(|n| json!({"pattern": format!("^(?:(a?|b?)){{{n}}}$")})).collect::<Vec<_>>()}),
                "together",
            ),
            (
                json!({"patternProperties": (0..1800).map(|n| (format!("^(?:(a?|b?)){{{n}}}$"), json!({}))).collect::<serde_json::Map<_, _>>()}),
                "together",
            ),
        ] {
            let error = compile(&schema).expect_err(&schema.to_string());
            assert!(error.contains(part), "{error} has no {part}");
        }
    }
}
