//! The envelopes of a route, in each form that somebody writes or reads, with examples.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{
    document::Document,
    schema::{draft7, regex},
};
use crate::{
    Cursor, SendType,
    content::{Schema, example},
    contract::headers,
    edge_config::{Audience, BusinessConfig, Delivery, RouteConfig},
    envelope::{EVERYONE, MAX_ID, MAX_IDENTITY, MAX_LIST},
    pattern,
};

/// Who is addressed and who sends in examples.
pub(super) const RECEIVER: &str = "alice";
pub(super) const SENDER: &str = "bob";
pub(super) const EXAMPLE_ID: &str = "01a210f3-03eb-7039-8d46-5a5957e3407b";
pub(super) const EXAMPLE_TIME: i64 = 1_795_580_691_435;
pub(super) const TIME: &str = "ms since the epoch";

/// Who writes the envelope, and who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A client, by its socket.
    Sent,
    /// A service, by AMQP or HTTP.
    Pushed,
    /// The edge, for a service's queue.
    Queued,
    /// The edge, for a client.
    Delivered,
}

impl Form {
    fn suffix(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Pushed => "pushed",
            Self::Queued => "queued",
            Self::Delivered => "delivered",
        }
    }
}

/// A route with what its messages have in common.
pub(super) struct Message<'a> {
    pub route: &'a RouteConfig,
    /// Unique in the document.
    pub key: String,
    business: &'a BusinessConfig,
    /// A reference to the schema of `content`.
    content: Value,
    /// Whether `content` may be absent.
    optional: bool,
    /// Content that the schema accepts, if one was found.
    example: Option<Value>,
}

impl<'a> Message<'a> {
    /// Those of all routes, in order. Adds the schemas of their contents.
    pub(super) fn all(business: &'a BusinessConfig, document: &mut Document) -> Vec<Self> {
        let mut taken = BTreeSet::new();
        business.routes.iter().map(|route| Self::of(business, route, &mut taken, document)).collect()
    }

    fn of(
        business: &'a BusinessConfig,
        route: &'a RouteConfig,
        taken: &mut BTreeSet<String>,
        document: &mut Document,
    ) -> Self {
        let key = unique_key(&route.message_type, taken);
        let Some(schema) = &route.schema else {
            return Self { route, key, business, content: json!(true), optional: true, example: Some(json!({})) };
        };
        let name = format!("content.{key}");
        let content = document.schema(&name, draft7(schema, &format!("#/components/schemas/{name}")));
        let optional = Schema::try_new(schema).is_ok_and(|schema| schema.check("null").is_ok());
        Self { route, key, business, content, optional, example: example::of(schema) }
    }

    /// Adds the message in one form, and gives its key.
    pub(super) fn add(&self, form: Form, document: &mut Document) -> String {
        let key = format!("{}.{}", self.key, form.suffix());
        let mut message = json!({
            "name": self.route.message_type,
            "title": format!("{} ({})", self.route.message_type, self.route.send_type),
            "summary": self.summary(form),
            "contentType": "application/json",
            "payload": self.payload(form),
        });
        if form == Form::Queued {
            message["headers"] = self.headers();
        }
        if let Some(content) = &self.example {
            let payload = self.example(form, content);
            let mut example = json!({"name": form.suffix(), "payload": payload});
            if form == Form::Queued {
                example["headers"] = self.header_example();
            }
            message["examples"] = json!([example]);
        }
        document.message(&key, message);
        key
    }

    fn summary(&self, form: Form) -> String {
        let (from, to) = (self.route.from.join(", "), self.route.to.join(", "));
        match form {
            Form::Sent => format!("Sent by {from}"),
            Form::Queued => format!("Sent by {from}; stamped by the edge with its sender"),
            Form::Pushed => format!("For {to}"),
            Form::Delivered => {
                let mut text = format!("Delivered to {to}");
                if self.route.audience == Audience::Everyone {
                    text.push_str("; everyone may be addressed");
                }
                if let Some(seconds) = self.route.ttl_seconds {
                    text = format!("{text}; not after {seconds} s");
                }
                if self.route.receipts {
                    text.push_str("; answer with received");
                }
                if let Some(seconds) = self.route.receipts_within_seconds {
                    text = format!("{text} within {seconds} s");
                }
                text
            }
        }
    }

    fn payload(&self, form: Form) -> Value {
        let route = self.route;
        let mut properties = json!({
            "id": {"type": "string", "minLength": 1, "maxLength": MAX_ID, "description": "Names the message among those of its sender."},
            "messageType": self.message_type(),
            "sendType": {"const": route.send_type},
            "businessType": {"const": self.business.business_type},
            "timestamp": {"type": "integer", "minimum": 0, "description": TIME},
            "correlationId": {"type": "string", "maxLength": MAX_ID, "description": "Id of the message that this one answers."},
            "content": self.content,
        });
        if matches!(form, Form::Queued | Form::Delivered) {
            properties["fromUniqueId"] = identity("Who sent it.");
            // A service may name a sender of its own.
            properties["fromClientType"] = match form {
                Form::Queued => json!({"type": "string", "enum": route.from}),
                _ => identity("Kind of client that sent it."),
            };
        }
        let mut required = match form {
            Form::Sent | Form::Pushed => vec!["messageType"],
            Form::Queued => {
                vec!["businessType", "fromClientType", "fromUniqueId", "id", "messageType", "sendType", "timestamp"]
            }
            Form::Delivered => vec!["businessType", "id", "messageType", "sendType", "timestamp"],
        };
        if !self.optional {
            required.push("content");
        }
        let to_clients = form == Form::Delivered || route.send_type != SendType::ClientToServer;
        if to_clients {
            properties["toUniqueId"] = self.to_unique_id();
            properties["toClientType"] = json!({"type": "string", "enum": route.to});
            properties["tags"] = json!({
                "type": "array", "minItems": 1, "maxItems": MAX_LIST, "items": identity("A tag."),
                "description": "Connections that have one of them.",
            });
            properties["expiresAt"] =
                json!({"type": "integer", "minimum": 0, "description": format!("{TIME}; not delivered from then on")});
        }
        if form == Form::Delivered && self.business.delivery == Delivery::Durable {
            properties["cursor"] = json!({"type": "string", "description": "The position to continue from."});
            required.push("cursor");
        }
        let mut payload = json!({"type": "object", "required": required, "properties": properties});
        if to_clients && form != Form::Delivered {
            payload["anyOf"] = json!([{"required": ["toUniqueId"]}, {"required": ["tags"]}]);
        }
        payload
    }

    fn message_type(&self) -> Value {
        let declared = &self.route.message_type;
        if declared.contains(['*', '#']) {
            json!({"type": "string", "pattern": regex(declared), "description": format!("Matches {declared}.")})
        } else {
            json!({"const": declared})
        }
    }

    fn to_unique_id(&self) -> Value {
        let mut field = identity("One identity, on all its connections");
        if self.route.audience == Audience::Everyone {
            field["description"] = json!(format!("One identity, on all its connections; or {EVERYONE:?}, everyone."));
        } else {
            field["not"] = json!({"const": EVERYONE});
        }
        field
    }

    fn headers(&self) -> Value {
        json!({
            "type": "object",
            "required": [headers::MESSAGE_TYPE, headers::FROM_UNIQUE_ID, headers::FROM_CLIENT_TYPE],
            "properties": {
                headers::MESSAGE_TYPE: self.message_type(),
                headers::FROM_UNIQUE_ID: {"type": "string"},
                headers::FROM_CLIENT_TYPE: {"type": "string", "enum": self.route.from},
                headers::QUEUE: {"type": "string", "description": "The queue that it is for."},
            },
        })
    }

    fn header_example(&self) -> Value {
        json!({
            headers::MESSAGE_TYPE: pattern::example(&self.route.message_type),
            headers::FROM_UNIQUE_ID: SENDER,
            headers::FROM_CLIENT_TYPE: self.route.from.first(),
        })
    }

    fn example(&self, form: Form, content: &Value) -> Value {
        let route = self.route;
        let mut example = Map::new();
        let mut set = |field: &str, value: Value| drop(example.insert(field.to_owned(), value));
        set("id", EXAMPLE_ID.into());
        set("messageType", pattern::example(&route.message_type).into());
        set("content", content.clone());
        if route.send_type != SendType::ClientToServer {
            let everyone = route.audience == Audience::Everyone;
            set("toUniqueId", if everyone { EVERYONE } else { RECEIVER }.into());
        }
        if matches!(form, Form::Queued | Form::Delivered) {
            set("sendType", json!(route.send_type));
            set("businessType", self.business.business_type.as_str().into());
            set("timestamp", EXAMPLE_TIME.into());
            if let Some(from) = route.from.first() {
                set("fromUniqueId", SENDER.into());
                set("fromClientType", from.as_str().into());
            }
        }
        if form == Form::Delivered {
            if let Some(seconds) = route.ttl_seconds {
                let lives = i64::try_from(seconds).unwrap_or_default().saturating_mul(1000);
                set("expiresAt", EXAMPLE_TIME.saturating_add(lives).into());
            }
            if self.business.delivery == Delivery::Durable {
                set("cursor", example_cursor(&self.business.business_type).into());
            }
        }
        example.into()
    }
}

fn identity(description: &str) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": MAX_IDENTITY, "description": description})
}

/// A cursor of this business, for examples.
pub(super) fn example_cursor(business: &str) -> String {
    Cursor { business: business.to_owned(), partition: 0, offset: 334, fingerprint: 0xc74f_c66f_d69d_a971 }.to_string()
}

/// A key for the components: letters, digits, dots, hyphens and underscores only, unique in the document.
pub(super) fn unique_key(name: &str, taken: &mut BTreeSet<String>) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect();
    let mut key = plain.clone();
    let mut number = 2;
    while !taken.insert(key.clone()) {
        key = format!("{plain}_{number}");
        number += 1;
    }
    key
}
