//! AsyncAPI 3.0, generated from the running declaration: what a client developer needs to know about one business
//! (asyncapi.com/docs/reference/specification/v3.0.0). The described application is the business behind its edge, so it `receive`s what
//! clients send and `send`s what they get.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    SendType,
    contract::edge_config::{Audience, BusinessConfig, Delivery, RouteConfig},
};

/// The document. `base_url` is how clients reach the edges, such as `https://ws.example`.
pub fn asyncapi(config: &BusinessConfig, base_url: &str) -> Value {
    let mut messages = Map::new();
    let mut schemas = Map::new();
    let mut operations = Map::new();
    let mut keys = BTreeSet::new();
    for route in &config.routes {
        let key = unique_key(route, &mut keys);
        messages.insert(key.clone(), message(route, &key));
        if let Some(schema) = &route.schema {
            let place = format!("#/components/schemas/{key}");
            schemas.insert(key.clone(), rebase(schema, &place));
        }
        for action in actions(route.send_type) {
            operations.insert(format!("{action}.{key}"), operation(route, &key, action));
        }
    }
    let references: Map<String, Value> = messages
        .keys()
        .map(|key| {
            let reference = json!({"$ref": format!("#/components/messages/{key}")});
            (key.clone(), reference)
        })
        .collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": config.business_type,
            "version": config.generation.to_string(),
            "description": description(config),
        },
        "defaultContentType": "application/json",
        "servers": {"edge": server(config, base_url)},
        "channels": {"socket": {
            "address": "/socket/{token}",
            "description": "One WebSocket of one client. Text frames only, each an envelope.",
            "parameters": {"token": {"description": "From the token call, or the resumeToken of an earlier connection."}},
            "servers": [{"$ref": "#/servers/edge"}],
            "messages": references,
            "bindings": {"ws": {"query": {
                "type": "object",
                "properties": {"cursor": {"type": "string", "description": "The position to continue from."}},
            }}},
        }},
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    })
}

fn server(config: &BusinessConfig, base_url: &str) -> Value {
    let (scheme, rest) = base_url.split_once("://").unwrap_or(("https", base_url));
    let host = rest.split('/').next().unwrap_or(rest);
    let protocol = match scheme {
        "http" | "ws" => "ws",
        _ => "wss",
    };
    json!({
        "host": host,
        "protocol": protocol,
        "description": format!(
            "Get a URL for the socket from /{}/websocket/token. Subprotocol wirepost.v1 adds acknowledgements, positions and gaps.",
            config.business_type
        ),
    })
}

fn description(config: &BusinessConfig) -> String {
    let kept = match config.delivery {
        Delivery::Durable => "What a client missed is delivered when it returns with its cursor within the retention.",
        Delivery::Transient => "What a client misses while it is away is gone.",
    };
    format!("Client types: {}. {kept}", config.client_types.join(", "))
}

fn actions(send_type: SendType) -> &'static [&'static str] {
    match send_type {
        SendType::ClientToServer => &["receive"],
        SendType::ServerToClient => &["send"],
        SendType::ClientToClient => &["receive", "send"],
    }
}

fn operation(route: &RouteConfig, key: &str, action: &str) -> Value {
    let mut summary = match action {
        "receive" => format!("Sent by {}", route.from.join(", ")),
        _ => format!("Delivered to {}", route.to.join(", ")),
    };
    if action == "send" {
        if route.audience == Audience::Everyone {
            summary.push_str("; everyone may be addressed");
        }
        if let Some(seconds) = route.ttl_seconds {
            summary = format!("{summary}; not after {seconds} s");
        }
        if route.receipts {
            summary.push_str("; answer with received");
        }
    }
    json!({
        "action": action,
        "channel": {"$ref": "#/channels/socket"},
        "summary": summary,
        "messages": [{"$ref": format!("#/channels/socket/messages/{key}")}],
    })
}

fn message(route: &RouteConfig, key: &str) -> Value {
    let wildcard = route.message_type.contains(['*', '#']);
    let message_type = if wildcard {
        json!({"type": "string", "pattern": regex(&route.message_type)})
    } else {
        json!({"const": route.message_type})
    };
    let content = match route.schema {
        Some(_) => json!({"$ref": format!("#/components/schemas/{key}")}),
        None => json!(true),
    };
    let mut properties = json!({
        "id": {"type": "string", "maxLength": 64},
        "messageType": message_type,
        "sendType": {"const": route.send_type},
        "fromUniqueId": {"type": "string"},
        "fromClientType": {"type": "string"},
        "timestamp": {"type": "integer", "description": "ms since the epoch"},
        "correlationId": {"type": "string"},
        "content": content,
    });
    if route.send_type != SendType::ClientToServer {
        properties["toUniqueId"] = json!({"type": ["string", "null"]});
        properties["toClientType"] = json!({"type": ["string", "null"], "enum": with_null(&route.to)});
        properties["tags"] = json!({"type": ["array", "null"], "items": {"type": "string"}});
        properties["expiresAt"] = json!({"type": "integer", "description": "ms since the epoch"});
        properties["cursor"] = json!({"type": "string", "description": "set on delivery"});
    }
    json!({
        "name": route.message_type,
        "contentType": "application/json",
        "payload": {"type": "object", "required": ["messageType"], "properties": properties},
    })
}

fn with_null(types: &[String]) -> Vec<Value> {
    types.iter().map(|t| json!(t)).chain([Value::Null]).collect()
}

/// A key for the components: letters, digits, dots, hyphens and underscores only, unique in the document.
fn unique_key(route: &RouteConfig, taken: &mut BTreeSet<String>) -> String {
    let plain: String = route
        .message_type
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || c == '.' || c == '-' => c,
            _ => '_',
        })
        .collect();
    let mut key = plain.clone();
    let mut number = 2;
    while !taken.insert(key.clone()) {
        key = format!("{plain}_{number}");
        number += 1;
    }
    key
}

/// An AMQP topic pattern as a regular expression (ECMA 262).
fn regex(pattern: &str) -> String {
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

/// A schema with its internal references adjusted to its position in the document.
fn rebase(schema: &Value, place: &str) -> Value {
    match schema {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| match value {
                Value::String(target) if key == "$ref" => {
                    let moved =
                        target.strip_prefix('#').map_or_else(|| target.clone(), |pointer| format!("{place}{pointer}"));
                    (key.clone(), moved.into())
                }
                value => (key.clone(), rebase(value, place)),
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(|value| rebase(value, place)).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compile, validate};

    #[test]
    fn the_example_is_described() {
        let text = include_str!("../../examples/payments.yaml");
        let business = validate::parse(&serde_yaml::from_str(text).unwrap(), None).unwrap();
        let compiled = compile::compile_one(&business).unwrap();
        insta::assert_yaml_snapshot!(asyncapi(&compiled.config, "https://ws.example/"));
    }

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
        assert_eq!(rebase(&schema, "#/x")["items"][0]["$ref"], "#/x/$defs/a");
    }
}
