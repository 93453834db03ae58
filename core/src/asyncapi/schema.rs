//! Declared JSON Schemas and patterns as an AsyncAPI document can hold them: its schemas are of draft 7, declared ones usually of 2020-12.

use serde_json::{Map, Value, json};

/// Keywords whose value is a map of names to schemas.
const MAPS: [&str; 6] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Keywords whose value is data, which no keyword inside changes.
const DATA: [&str; 4] = ["const", "enum", "default", "examples"];
/// Keywords that AsyncAPI gives another form, and that judge nothing.
const FOREIGN: [&str; 3] = ["$schema", "discriminator", "externalDocs"];

/// A declared schema for the place `place` in a document (a JSON pointer with `#`): references are relative to the document, and what draft 7
/// writes differently is written its way too. What draft 7 can't say (`unevaluatedProperties`) is left in and judges nothing there, so a
/// schema may accept more than the edge does, and never less.
pub(super) fn draft7(schema: &Value, place: &str) -> Value {
    let declared = schema["$schema"].as_str().unwrap_or_default();
    let old = ["draft-03", "draft-04", "draft-06", "draft-07"].iter().any(|name| declared.contains(name));
    Translation { place, old }.schema(schema)
}

struct Translation<'a> {
    place: &'a str,
    /// Of draft 7 or before.
    old: bool,
}

impl Translation<'_> {
    fn schema(&self, schema: &Value) -> Value {
        let Value::Object(map) = schema else { return self.data(schema) };
        let mut out: Map<String, Value> = map
            .iter()
            .filter(|(key, _)| !FOREIGN.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), self.keyword(key, value)))
            .collect();
        booleans(&mut out);
        if !self.old {
            newer(&mut out);
        }
        out.into()
    }

    fn keyword(&self, key: &str, value: &Value) -> Value {
        match value {
            Value::Object(map) if MAPS.contains(&key) => {
                map.iter().map(|(name, schema)| (name.clone(), self.schema(schema))).collect::<Map<_, _>>().into()
            }
            Value::String(target) if key == "$ref" => self.moved(target).into(),
            _ if DATA.contains(&key) => self.data(value),
            Value::Array(list) => list.iter().map(|schema| self.schema(schema)).collect(),
            value => self.schema(value),
        }
    }

    /// References in data are moved as well: a reader of the document follows each `$ref`, wherever it stands.
    fn data(&self, value: &Value) -> Value {
        match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| match value {
                    Value::String(target) if key == "$ref" => (key.clone(), self.moved(target).into()),
                    value => (key.clone(), self.data(value)),
                })
                .collect::<Map<_, _>>()
                .into(),
            Value::Array(list) => list.iter().map(|value| self.data(value)).collect(),
            other => other.clone(),
        }
    }

    fn moved(&self, target: &str) -> String {
        target.strip_prefix('#').map_or_else(|| target.to_owned(), |pointer| format!("{}{pointer}", self.place))
    }
}

/// Draft 4 has exclusive bounds as true and false beside the bound.
fn booleans(schema: &mut Map<String, Value>) {
    for (exclusive, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        let Some(Value::Bool(yes)) = schema.get(exclusive) else { continue };
        if *yes && let Some(bound) = schema.remove(bound) {
            schema.insert(exclusive.to_owned(), bound);
        } else {
            schema.remove(exclusive);
        }
    }
}

/// What is written differently since draft 7. The newer form stays where a reference may lead into it.
fn newer(schema: &mut Map<String, Value>) {
    // Since 2019-09 it judges nothing.
    schema.remove("dependencies");
    if schema.len() > 1
        && let Some(target) = schema.remove("$ref")
    {
        // In draft 7 a reference hides what stands beside it.
        let referred = json!({"$ref": target});
        match schema.get_mut("allOf") {
            Some(Value::Array(all)) => all.push(referred),
            _ => drop(schema.insert("allOf".to_owned(), json!([referred]))),
        }
    }
    if let Some(first) = schema.get("prefixItems").cloned() {
        let rest = schema.insert("items".to_owned(), first);
        schema.extend(rest.map(|rest| ("additionalItems".to_owned(), rest)));
    } else {
        schema.remove("additionalItems");
    }
    for key in ["dependentSchemas", "dependentRequired"] {
        let Some(Value::Object(more)) = schema.get(key).cloned() else { continue };
        let known = schema.entry("dependencies").or_insert_with(|| json!({}));
        for (name, needed) in more {
            // Both for one property, which draft 7 can't say: the schema says what the list would.
            let list = json!({"required": needed});
            match &known[&name] {
                Value::Null => known[&name] = needed,
                other => known[&name] = json!({"allOf": [other, list]}),
            }
        }
    }
    if schema.get("minContains").is_some_and(|least| least.as_u64() == Some(0)) {
        schema.remove("contains");
    }
}

/// An AMQP topic pattern as a regular expression (ECMA 262).
pub(super) fn regex(pattern: &str) -> String {
    let mut out = String::from("^");
    let words: Vec<&str> = pattern.split('.').collect();
    // Whether the next word needs a dot before it.
    let mut dot = false;
    for (i, word) in words.iter().enumerate() {
        match *word {
            "#" if words.len() == 1 => out.push_str(".*"),
            "#" if dot => out.push_str("(\\.[^.]+)*"),
            "#" if i + 1 < words.len() => out.push_str("([^.]+\\.)*"),
            "#" => {}
            word => {
                if dot {
                    out.push_str("\\.");
                }
                dot = true;
                if word == "*" {
                    out.push_str("[^.]+");
                } else {
                    for c in word.chars() {
                        if c.is_ascii_punctuation() && c != '_' && c != '-' {
                            out.push('\\');
                        }
                        out.push(c);
                    }
                }
            }
        }
    }
    out.push('$');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_regular_expressions() {
        for (pattern, expected) in [
            ("#", "^.*$"),
            ("a.*", "^a\\.[^.]+$"),
            ("a.#", "^a(\\.[^.]+)*$"),
            ("#.b", "^([^.]+\\.)*b$"),
            ("a.#.b+c", "^a(\\.[^.]+)*\\.b\\+c$"),
        ] {
            assert_eq!(regex(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn references_follow_their_schema() {
        let schema = json!({"$defs": {"a": {}}, "items": [{"$ref": "#/$defs/a"}]});
        assert_eq!(draft7(&schema, "#/x")["items"][0]["$ref"], "#/x/$defs/a");
    }

    /// A draft 7 reader judges as the edge does.
    #[test]
    fn draft_7_judges_the_same() {
        for (schema, good, bad) in [
            (
                json!({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}),
                json!(["a", 1]),
                json!(["a", "b"]),
            ),
            (json!({"prefixItems": [{"type": "string"}]}), json!(["a", []]), json!([1])),
            (
                json!({"$ref": "#/$defs/a", "maxLength": 2, "$defs": {"a": {"type": "string"}}}),
                json!("ab"),
                json!("abc"),
            ),
            (json!({"dependentRequired": {"a": ["b"]}}), json!({"a": 1, "b": 1}), json!({"a": 1})),
            (json!({"dependentSchemas": {"a": {"required": ["b"]}}}), json!({"c": 1}), json!({"a": 1})),
            (
                json!({"dependentSchemas": {"a": {"required": ["b"]}}, "dependentRequired": {"a": ["c"]}}),
                json!({"a": 1, "b": 1, "c": 1}),
                json!({"a": 1, "b": 1}),
            ),
            (
                json!({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": true}),
                json!(2),
                json!(1),
            ),
            (
                json!({"properties": {"items": {"type": "string"}, "$ref": {"type": "string"}}}),
                json!({"items": "a"}),
                json!({"$ref": 1}),
            ),
            (json!({"contains": {"const": 1}, "minContains": 0, "type": "array"}), json!([2]), json!("a")),
        ] {
            let at_the_edge = crate::content::Schema::try_new(&schema).unwrap();
            let mut described = draft7(&schema, "#");
            described["$schema"] = "http://json-schema.org/draft-07/schema#".into();
            let described = jsonschema::options().offline().build(&described).unwrap();
            for (content, fits) in [(&good, true), (&bad, false)] {
                assert_eq!(at_the_edge.check(&content.to_string()).is_ok(), fits, "{schema} at the edge: {content}");
                assert_eq!(described.is_valid(content), fits, "{schema} as described: {content}");
            }
        }
    }
}
