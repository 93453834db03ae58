//! The structural schema as the API server applies it: types, required and unknown fields, bounds, enums; defaults and nulls.

use serde_json::{Map, Value};

use super::metadata;
use crate::problem::{FoundBy, Problem};

/// Most problems that are reported for one resource; a file with more is something else altogether.
const MAX_PROBLEMS: usize = 50;
/// Fields of the resource that its schema does not list.
const ENVELOPE: [&str; 2] = ["apiVersion", "kind"];

/// Adds every way in which the resource breaks the schema.
pub(super) fn check(schema: &Value, value: &Value, problems: &mut Vec<Problem>) {
    if !value.is_object() {
        problems.push(Problem::at("", "is not an object", "write a mapping of fields"));
        return;
    }
    walk(schema, value, "", problems);
    problems.truncate(MAX_PROBLEMS);
}

fn walk(schema: &Value, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    if problems.len() >= MAX_PROBLEMS {
        return;
    }
    let expected = schema["type"].as_str().unwrap_or("object");
    if !has_type(value, expected) {
        problems.push(Problem::at(
            path,
            format!("is {}, not {}", type_of(value), article(expected)),
            format!("write {}", article(expected)),
        ));
        return;
    }
    match value {
        Value::Object(map) => object(schema, map, path, problems),
        Value::Array(list) => array(schema, list, path, problems),
        Value::String(text) => string(schema, text, path, problems),
        Value::Number(_) => number(schema, value, path, problems),
        _ => {}
    }
}

fn object(schema: &Value, map: &Map<String, Value>, path: &str, problems: &mut Vec<Problem>) {
    let no_properties = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&no_properties);
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        if map.get(name).is_none_or(Value::is_null) {
            problems.push(Problem::at(join(path, name), "is missing", format!("add {name}")));
        }
    }
    let open = schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(true);
    for (name, value) in map {
        match properties.get(name) {
            // The API server drops a null that the schema does not allow, also of unknown fields.
            _ if value.is_null() => {}
            Some(_) if path.is_empty() && name == "metadata" => walk(&metadata::SCHEMA, value, name, problems),
            // The API server drops a status that comes with a declaration; before that it checks the names of its fields only.
            Some(schema) if path.is_empty() && name == "status" => {
                let mut found = Vec::new();
                walk(schema, value, name, &mut found);
                problems.extend(found.into_iter().filter(|problem| problem.found_by == FoundBy::UnknownField));
            }
            Some(schema) => walk(schema, value, &join(path, name), problems),
            None if open || (path.is_empty() && ENVELOPE.contains(&name.as_str())) => {}
            None => match schema.get("additionalProperties") {
                Some(schema) => walk(schema, value, &join(path, name), problems),
                None => problems.push(unknown(path, name, properties)),
            },
        }
    }
}

fn unknown(path: &str, name: &str, properties: &Map<String, Value>) -> Problem {
    let known = || properties.keys().map(String::as_str);
    let remedy = match known().find(|known| alike(known, name)) {
        Some(known) => format!("did you mean {known}?"),
        None if path.is_empty() => "remove it".to_owned(),
        None => format!("remove it; known here: {}", known().collect::<Vec<_>>().join(", ")),
    };
    Problem::at(join(path, name), format!("unknown field {name}"), remedy).found_by(FoundBy::UnknownField)
}

fn array(schema: &Value, list: &[Value], path: &str, problems: &mut Vec<Problem>) {
    let bound = |key: &str| schema[key].as_u64().map(|n| n as usize);
    if let Some(min) = bound("minItems")
        && list.len() < min
    {
        problems.push(Problem::at(
            path,
            "is empty",
            format!("list {min} or more, or leave the field out where it is optional"),
        ));
    }
    if let Some(max) = bound("maxItems")
        && list.len() > max
    {
        problems.push(Problem::at(path, format!("has {} items", list.len()), format!("list at most {max}")));
        return;
    }
    for (i, item) in list.iter().enumerate() {
        walk(&schema["items"], item, &format!("{path}[{i}]"), problems);
    }
}

fn string(schema: &Value, text: &str, path: &str, problems: &mut Vec<Problem>) {
    let length = text.chars().count() as u64;
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.iter().any(|a| a == text)
    {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        problems.push(Problem::at(
            path,
            format!("{text} is not an allowed value"),
            format!("write one of {}", allowed.join(", ")),
        ));
    }
    if let Some(min) = schema["minLength"].as_u64()
        && length < min
    {
        problems.push(Problem::at(path, "is empty", "write a value"));
    }
    if let Some(max) = schema["maxLength"].as_u64()
        && length > max
    {
        problems.push(Problem::at(path, format!("has {length} characters"), format!("use at most {max}")));
    }
}

fn number(schema: &Value, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let number = value.as_f64().unwrap_or(f64::NAN);
    let min = schema["minimum"].as_f64();
    let max = schema["maximum"].as_f64();
    if min.is_some_and(|min| number < min) || max.is_some_and(|max| number > max) {
        problems.push(Problem::at(
            path,
            format!("{value} is out of range"),
            match (&schema["minimum"], &schema["maximum"]) {
                (min, Value::Null) => format!("use at least {min}"),
                (Value::Null, max) => format!("use at most {max}"),
                (min, max) => format!("use {min} to {max}"),
            },
        ));
    }
}

/// Adds every item that occurs twice in a list which the API server merges item by item: a set, or a map by some fields of its items.
pub(super) fn repeated(schema: &Value, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                repeated(&schema["properties"][name], value, &join(path, name), problems);
            }
        }
        Value::Array(list) => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array();
            let keys: Option<Vec<&str>> = keys.map(|keys| keys.iter().filter_map(Value::as_str).collect());
            let same = |a: &Value, b: &Value| match &keys {
                Some(keys) => keys.iter().all(|key| a[key] == b[key]),
                None => a == b,
            };
            let once = matches!(schema["x-kubernetes-list-type"].as_str(), Some("set" | "map"));
            for (i, item) in list.iter().enumerate() {
                if once && let Some(first) = list[..i].iter().position(|earlier| same(earlier, item)) {
                    problems.push(twice(path, first, i, item, keys.as_deref()));
                }
                repeated(&schema["items"], item, &format!("{path}[{i}]"), problems);
            }
        }
        _ => {}
    }
}

/// Drops what had another form and no effect when it was stored: names alone in `spec.acceptFrom`.
pub(super) fn drop_former(value: &mut Value) {
    if let Some(accepted) = value.pointer_mut("/spec/acceptFrom").and_then(Value::as_array_mut) {
        accepted.retain(|item| !item.is_string());
    }
}

/// Keeps the first of equal items in each set.
pub(super) fn drop_repeated(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.iter_mut().for_each(|(name, value)| drop_repeated(&schema["properties"][name], value));
        }
        Value::Array(list) => {
            if schema["x-kubernetes-list-type"] == "set" {
                let mut kept: Vec<Value> = Vec::with_capacity(list.len());
                for item in std::mem::take(list) {
                    if !kept.contains(&item) {
                        kept.push(item);
                    }
                }
                *list = kept;
            }
            for item in list {
                drop_repeated(&schema["items"], item);
            }
        }
        _ => {}
    }
}

fn twice(path: &str, first: usize, again: usize, item: &Value, keys: Option<&[&str]>) -> Problem {
    let (message, remedy) = match keys {
        Some(keys) => {
            let message = format!("items {first} and {again} have the same {}", keys.join(" and "));
            (message, "merge them into one")
        }
        None => (format!("{} is listed twice", item.as_str().unwrap_or_default()), "list it once"),
    };
    Problem::at(format!("{path}[{again}]"), message, remedy)
}

/// What the API server would store of a new resource: no status, nulls dropped, defaults filled in, unknown fields pruned.
pub(super) fn store(schema: &Value, value: &Value) -> Value {
    let mut stored = kube_cel::apply_defaults(schema, &prune(schema, value, true));
    if let Some(stored) = stored.as_object_mut() {
        // It has a default.
        stored.remove("status");
    }
    stored
}

fn prune(schema: &Value, value: &Value, root: bool) -> Value {
    if schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(true) {
        return value.clone();
    }
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .filter_map(|(name, value)| {
                let kept = match schema["properties"].get(name) {
                    _ if root && name == "metadata" => prune(&metadata::SCHEMA, value, false),
                    _ if root && name == "status" => return None,
                    Some(schema) => prune(schema, value, false),
                    None if root && ENVELOPE.contains(&name.as_str()) => value.clone(),
                    None => prune(schema.get("additionalProperties")?, value, false),
                };
                Some((name.clone(), kept))
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(|item| prune(&schema["items"], item, false)).collect(),
        other => other.clone(),
    }
}

fn has_type(value: &Value, expected: &str) -> bool {
    match expected {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => value.is_number(),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn article(expected: &str) -> &'static str {
    match expected {
        "array" => "a list",
        "string" => "text (in quotes where it looks like something else)",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        _ => "an object",
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether two names differ by a typo: case, separators, or one edit.
fn alike(a: &str, b: &str) -> bool {
    let plain = |s: &str| -> Vec<char> {
        s.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let (a, b) = (plain(a), plain(b));
    let prefix = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let suffix = |a: &[char], b: &[char]| a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let rest = suffix(&a[prefix..], &b[prefix..]);
    let edits = a.len().max(b.len()) - prefix - rest;
    edits <= 1 || (edits == 2 && a.len() == b.len() && a.len() > 4)
}
