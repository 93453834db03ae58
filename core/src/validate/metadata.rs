//! `apiVersion`, `kind` and `metadata`, which the API server checks for every kind, before any schema of ours.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::{business::API_VERSION, problem::Problem};

/// Longest part of a label's or annotation's name, and longest label value.
const MAX_LABEL: usize = 63;
/// Longest DNS name.
const MAX_SUBDOMAIN: usize = 253;
/// Most bytes of all annotations together.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// What `metadata` may contain (Kubernetes API reference, ObjectMeta), as a CRD's schema.
pub(super) static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let (text, number) = (json!({"type": "string"}), json!({"type": "integer"}));
    let flag = json!({"type": "boolean"});
    let texts = json!({"type": "object", "additionalProperties": text});
    let owner = json!({
        "type": "object",
        "required": ["apiVersion", "kind", "name", "uid"],
        "properties": {
            "apiVersion": text, "kind": text, "name": text, "uid": text,
            "controller": flag, "blockOwnerDeletion": flag,
        },
    });
    let manager = json!({
        "type": "object",
        "properties": {
            "manager": text, "operation": text, "apiVersion": text, "time": text, "fieldsType": text, "subresource": text,
            "fieldsV1": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        },
    });
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": MAX_LABEL},
            "generateName": text, "namespace": text, "selfLink": text, "uid": text, "resourceVersion": text,
            "creationTimestamp": text, "deletionTimestamp": text,
            "generation": number, "deletionGracePeriodSeconds": number,
            "labels": texts, "annotations": texts,
            "finalizers": {"type": "array", "items": text},
            "ownerReferences": {"type": "array", "items": owner},
            "managedFields": {"type": "array", "items": manager},
        },
    })
});

/// What the schema can't express, of a resource of this kind.
pub(super) fn check(value: &Value, kind: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", kind)] {
        if value.get(field).and_then(Value::as_str) != Some(expected) {
            problems.push(Problem::at(field, format!("is not {expected}"), format!("write {field}: {expected}")));
        }
    }
    let metadata = &value["metadata"];
    match &metadata["name"] {
        Value::String(name) if is_subdomain(name) => {}
        // The schema reports that it is not a string.
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {}
        name => problems.push(Problem::at(
            "metadata.name",
            if name.as_str().is_none_or(str::is_empty) {
                "is missing"
            } else {
                "is not a name that Kubernetes accepts"
            },
            "use a-z, 0-9, hyphens and dots, beginning and ending with a letter or digit",
        )),
    }
    if let Some(namespace) = metadata["namespace"].as_str()
        && !namespace.is_empty()
        && !is_dns_label(namespace)
    {
        problems.push(Problem::at(
            "metadata.namespace",
            "is not a name that a namespace can have",
            "use at most 63 of a-z, 0-9 and hyphens, beginning and ending with a letter or digit",
        ));
    }
    for (name, value) in metadata["labels"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        if !is_qualified(name) || !(value.is_empty() || is_word(value)) {
            problems.push(Problem::at(
                format!("metadata.labels.{name}"),
                "is not a label that Kubernetes accepts",
                "use at most 63 letters, digits, hyphens, underscores and dots, beginning and ending with a letter or digit; a DNS name and a slash may stand before the name",
            ));
        }
    }
    for (i, name) in metadata["finalizers"].as_array().into_iter().flatten().enumerate() {
        if name.as_str().is_some_and(|name| !is_qualified(name)) {
            problems.push(Problem::at(
                format!("metadata.finalizers[{i}]"),
                "is not a name that a finalizer can have",
                "write a DNS name, a slash and a word, such as example.com/keep",
            ));
        }
    }
    let annotations = metadata["annotations"].as_object();
    for (name, _) in annotations.into_iter().flatten() {
        if !is_qualified(&name.to_lowercase()) {
            problems.push(Problem::at(
                format!("metadata.annotations.{name}"),
                "is not a name that an annotation can have",
                "use at most 63 letters, digits, hyphens, underscores and dots, beginning and ending with a letter or digit; a DNS name and a slash may stand before it",
            ));
        }
    }
    let bytes: usize =
        annotations.into_iter().flatten().map(|(name, value)| name.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > MAX_ANNOTATIONS {
        problems.push(Problem::at(
            "metadata.annotations",
            format!("have {bytes} bytes together"),
            format!("use at most {MAX_ANNOTATIONS}"),
        ));
    }
    problems
}

/// RFC 1123, in lower case.
fn is_subdomain(name: &str) -> bool {
    name.len() <= MAX_SUBDOMAIN && name.split('.').all(|label| is_between(label, |b| b == b'-') && is_lower(label))
}

fn is_dns_label(name: &str) -> bool {
    name.len() <= MAX_LABEL && is_between(name, |b| b == b'-') && is_lower(name)
}

/// A name, with a DNS name and a slash before it or without.
fn is_qualified(name: &str) -> bool {
    match name.split_once('/') {
        Some((domain, name)) => is_subdomain(domain) && is_word(name),
        None => is_word(name),
    }
}

fn is_word(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_between(text, |b| matches!(b, b'-' | b'_' | b'.'))
}

/// Letters and digits at both ends, between them also what `inner` says.
fn is_between(text: &str, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || inner(*b))
}

fn is_lower(text: &str) -> bool {
    !text.bytes().any(|b| b.is_ascii_uppercase())
}
