//! A JSON Schema as a type. What TypeScript can't say (lengths, patterns, ranges) is left to the edge's check.

use std::{collections::HashMap, fmt::Write};

use serde_json::{Map, Value};

use super::{comment, names::Names};

/// Deeper parts of a schema are `unknown`.
const MAX_DEPTH: usize = 32;

/// The declaration of a route's content, and of the definitions that it refers to.
pub(super) fn declare(name: &str, schema: &Value, message_type: &str, names: &mut Names) -> String {
    let mut targets = HashMap::new();
    let mut definitions = Vec::new();
    for place in ["$defs", "definitions"] {
        for (key, value) in schema[place].as_object().into_iter().flatten() {
            let of = names.unique(&[name, key]);
            targets.insert(format!("#/{place}/{}", key.replace('~', "~0").replace('/', "~1")), of.clone());
            definitions.push((of, value));
        }
    }
    targets.insert("#".to_owned(), name.to_owned());
    let mut text = String::new();
    let mut write = |name: &str, schema: &Value, fallback: &str| {
        let told = schema["description"].as_str().or(schema["title"].as_str()).unwrap_or(fallback);
        let _ = write!(text, "\n/** {} */\nexport type {name} = {};\n", comment(told), of(schema, &targets, 0));
    };
    write(name, schema, &format!("Content of {message_type}."));
    for (name, schema) in definitions {
        write(&name, schema, &format!("Part of {message_type}."));
    }
    text
}

/// The type of values that a schema admits, or of more.
fn of(schema: &Value, targets: &HashMap<String, String>, depth: usize) -> String {
    let Some(fields) = schema.as_object() else {
        return if *schema == Value::Bool(false) { "never" } else { "unknown" }.to_owned();
    };
    if depth > MAX_DEPTH {
        return "unknown".to_owned();
    }
    let inner = |schema: &Value| of(schema, targets, depth + 1);
    let mut parts = Vec::new();
    if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
        parts.push(targets.get(reference).cloned().unwrap_or_else(|| "unknown".to_owned()));
    }
    if let Some(constant) = fields.get("const") {
        parts.push(literal(constant));
    } else if let Some(values) = fields.get("enum").and_then(Value::as_array) {
        parts.push(union(values.iter().map(literal)));
    } else {
        parts.extend(by_type(fields, &inner));
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(choices) = fields.get(choice).and_then(Value::as_array) {
            parts.push(union(choices.iter().map(&inner)));
        }
    }
    parts.extend(fields.get("allOf").and_then(Value::as_array).into_iter().flatten().map(inner));
    parts.retain(|part| part != "unknown");
    match parts.as_slice() {
        [] => "unknown".to_owned(),
        [one] => one.clone(),
        several => several.iter().map(|part| enclosed(part)).collect::<Vec<_>>().join(" & "),
    }
}

/// By `type`, or by the keywords of a type.
fn by_type(fields: &Map<String, Value>, inner: &impl Fn(&Value) -> String) -> Option<String> {
    let one = |name: &str| match name {
        "string" | "boolean" | "null" => name.to_owned(),
        "number" | "integer" => "number".to_owned(),
        "array" => array(fields, inner),
        "object" => object(fields, inner),
        _ => "unknown".to_owned(),
    };
    match fields.get("type") {
        Some(Value::String(name)) => Some(one(name)),
        Some(Value::Array(names)) => Some(union(names.iter().filter_map(Value::as_str).map(one))),
        _ if fields.contains_key("properties") => Some(object(fields, inner)),
        _ => None,
    }
}

fn array(fields: &Map<String, Value>, inner: &impl Fn(&Value) -> String) -> String {
    let items = |key: &str| fields.get(key).map(inner);
    if let Some(first) = fields.get("prefixItems").and_then(Value::as_array) {
        let mut items: Vec<_> = first.iter().map(|schema| format!("{}?", enclosed(&inner(schema)))).collect();
        items.push(format!("...{}[]", enclosed(&fields.get("items").map_or_else(|| "unknown".to_owned(), inner))));
        return format!("[{}]", items.join(", "));
    }
    format!("{}[]", enclosed(&items("items").unwrap_or_else(|| "unknown".to_owned())))
}

fn object(fields: &Map<String, Value>, inner: &impl Fn(&Value) -> String) -> String {
    let required: Vec<&str> =
        fields.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let none = Map::new();
    let properties = fields.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let mut members: Vec<String> = properties
        .iter()
        .map(|(name, schema)| {
            let optional = if required.contains(&name.as_str()) { "" } else { "?" };
            let told = schema["description"].as_str().map(|told| format!("/** {} */ ", comment(told)));
            format!("{}{}{optional}: {}", told.unwrap_or_default(), Value::from(name.as_str()), inner(schema))
        })
        .collect();
    let undeclared = required.iter().filter(|name| !properties.contains_key(**name));
    members.extend(undeclared.map(|name| format!("{}: unknown", Value::from(*name))));
    // Names that are not declared are admitted where the schema says nothing, but are more often misspelt than meant.
    if members.is_empty() {
        match fields.get("additionalProperties") {
            Some(Value::Bool(false)) => return "Record<string, never>".to_owned(),
            Some(schema) => members.push(format!("[name: string]: {}", inner(schema))),
            None => members.push("[name: string]: unknown".to_owned()),
        }
    }
    format!("{{ {} }}", members.join("; "))
}

/// A JSON value as a literal type.
fn literal(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
        Value::Array(_) | Value::Object(_) => "unknown".to_owned(),
    }
}

fn union(choices: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = Vec::new();
    for choice in choices {
        if choice == "unknown" {
            return choice;
        }
        if !all.contains(&choice) {
            all.push(choice);
        }
    }
    if all.is_empty() { "never".to_owned() } else { all.join(" | ") }
}

/// In parentheses where an operator follows.
fn enclosed(text: &str) -> String {
    if text.contains([' ', '|', '&']) && !text.starts_with(['{', '(']) { format!("({text})") } else { text.to_owned() }
}
