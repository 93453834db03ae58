//! An AsyncAPI document while it is built: what is referenced is put in by the same calls that refer to it.

use serde_json::{Map, Value, json};

/// See the module.
#[derive(Default)]
pub(super) struct Document {
    servers: Map<String, Value>,
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    messages: Map<String, Value>,
    schemas: Map<String, Value>,
    security: Map<String, Value>,
}

/// What the layer does with the messages of a channel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// It takes them.
    Receive,
    /// It gives them.
    Send,
}

/// One operation; absent parts are left out.
pub(super) struct Operation<'a> {
    pub action: Action,
    pub channel: &'a str,
    pub summary: String,
    /// Keys of its messages.
    pub messages: Vec<String>,
    /// Keys of the answers, on the same channel.
    pub replies: Vec<String>,
    /// Security schemes: one of them is needed.
    pub security: &'a [&'a str],
    pub bindings: Value,
}

impl Document {
    pub(super) fn server(&mut self, key: &str, server: Value) {
        self.servers.insert(key.to_owned(), server);
    }

    pub(super) fn security_scheme(&mut self, key: &str, scheme: Value) {
        self.security.insert(key.to_owned(), scheme);
    }

    /// Adds a schema and refers to it.
    pub(super) fn schema(&mut self, key: &str, schema: Value) -> Value {
        self.schemas.insert(key.to_owned(), schema);
        reference(&format!("#/components/schemas/{key}"))
    }

    pub(super) fn message(&mut self, key: &str, message: Value) {
        self.messages.insert(key.to_owned(), message);
    }

    /// Adds a channel of one server with the messages of these keys.
    pub(super) fn channel(&mut self, key: &str, server: &str, messages: &[String], mut channel: Value) {
        let references: Map<_, _> =
            messages.iter().map(|one| (one.clone(), reference(&format!("#/components/messages/{one}")))).collect();
        channel["servers"] = json!([reference(&format!("#/servers/{server}"))]);
        channel["messages"] = references.into();
        self.channels.insert(key.to_owned(), channel);
    }

    pub(super) fn operation(&mut self, key: &str, operation: Operation<'_>) {
        let Operation { action, channel, summary, messages, replies, security, bindings } = operation;
        let of_channel = |keys: &[String]| -> Value {
            keys.iter().map(|one| reference(&format!("#/channels/{channel}/messages/{one}"))).collect()
        };
        let place = reference(&format!("#/channels/{channel}"));
        let mut out = json!({
            "action": if action == Action::Send { "send" } else { "receive" },
            "channel": place,
            "summary": summary,
            "messages": of_channel(&messages),
        });
        if !replies.is_empty() {
            out["reply"] = json!({"channel": place, "messages": of_channel(&replies)});
        }
        if !security.is_empty() {
            out["security"] = security.iter().map(|key| scheme(key)).collect();
        }
        if !bindings.is_null() {
            out["bindings"] = bindings;
        }
        self.operations.insert(key.to_owned(), out);
    }

    /// The finished document with its `info` and what AsyncAPI has no field for.
    pub(super) fn finish(self, info: &Value, facts: &Value) -> Value {
        json!({
            "asyncapi": "3.0.0",
            "info": info,
            "defaultContentType": "application/json",
            "servers": self.servers,
            "channels": self.channels,
            "operations": self.operations,
            "components": {"messages": self.messages, "schemas": self.schemas, "securitySchemes": self.security},
            "x-wirepost": facts,
        })
    }
}

pub(super) fn reference(place: &str) -> Value {
    json!({"$ref": place})
}

/// A reference to a security scheme.
pub(super) fn scheme(key: &str) -> Value {
    reference(&format!("#/components/securitySchemes/{key}"))
}
