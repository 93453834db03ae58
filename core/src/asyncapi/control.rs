//! The control frames of the subprotocol, of which each has a schema and an example.

use serde_json::{Map, Value, json};

use super::{
    clients::SOCKET,
    document::{Action, Document, Operation},
    envelope::{EXAMPLE_ID, EXAMPLE_TIME, TIME, example_cursor},
};
use crate::{
    edge_config::{BusinessConfig, Delivery},
    envelope::MAX_ID,
    frames::{GapReason, MAX_RECEIPTS, NackCode},
};

/// What a message of a client is answered with.
pub(super) const ANSWERS: [&str; 2] = ["control.ack", "control.nack"];

/// A frame, as this module describes it.
struct Frame {
    op: &'static str,
    /// Of the client; else of the edge.
    from_client: bool,
    summary: &'static str,
    /// Its fields beside `op`.
    properties: Value,
    required: &'static [&'static str],
    /// Fields of the example.
    example: Value,
    /// What it is answered with.
    replies: &'static [&'static str],
    /// Whether it only answers.
    is_answer: bool,
}

/// Adds all frames, and gives their keys.
pub(super) fn add(business: &BusinessConfig, document: &mut Document) -> Vec<String> {
    let mut keys = Vec::new();
    for frame in of_edge(business).into_iter().chain(of_client(business)) {
        let key = key(frame.op);
        document.message(&key, frame.message());
        keys.push(key);
    }
    keys
}

/// Adds their operations; the channel must have their messages.
pub(super) fn operations(business: &BusinessConfig, document: &mut Document) {
    for frame in of_edge(business).into_iter().chain(of_client(business)).filter(|frame| !frame.is_answer) {
        let action = if frame.from_client { Action::Receive } else { Action::Send };
        document.operation(
            &key(frame.op),
            Operation {
                action,
                channel: SOCKET,
                summary: frame.summary.to_owned(),
                messages: vec![key(frame.op)],
                replies: frame.replies.iter().map(|op| key(op)).collect(),
                security: &[],
                bindings: Value::Null,
            },
        );
    }
}

fn key(op: &str) -> String {
    format!("control.{op}")
}

impl Frame {
    fn message(&self) -> Value {
        let mut properties = Map::from_iter([("op".to_owned(), json!({"const": self.op}))]);
        properties.extend(self.properties.as_object().cloned().unwrap_or_default());
        let required: Vec<&str> = ["op"].iter().chain(self.required).copied().collect();
        let mut payload = Map::from_iter([("op".to_owned(), json!(self.op))]);
        payload.extend(self.example.as_object().cloned().unwrap_or_default());
        let from = if self.from_client { "client" } else { "edge" };
        json!({
            "name": self.op,
            "title": format!("{} (control frame of the {from})", self.op),
            "summary": self.summary,
            "contentType": "application/json",
            "payload": {"type": "object", "required": required, "properties": properties},
            "examples": [{"name": self.op, "payload": payload}],
        })
    }
}

fn of_edge(business: &BusinessConfig) -> Vec<Frame> {
    let frame = |op, summary, properties, required, example| Frame {
        op,
        from_client: false,
        summary,
        properties,
        required,
        example,
        replies: &[],
        is_answer: false,
    };
    let answer = |op, summary, properties, required, example| Frame {
        is_answer: true,
        ..frame(op, summary, properties, required, example)
    };
    let name = business.business_type.as_str();
    let cursor = json!({"type": "string", "maxLength": 128, "description": "Opaque; keep the newest one."});
    let token = json!({"type": "string", "description": "Reconnects within the session; a secret."});
    let time = json!({"type": "integer", "description": TIME});
    let id = json!({"type": "string", "minLength": 1, "maxLength": MAX_ID});
    let limits = &business.limits;
    let durable = business.delivery == Delivery::Durable;
    let mut welcome = json!({
        "connectionId": EXAMPLE_ID, "resumed": false, "resumeToken": "AQGQ0HL2irxz3XER", "sessionEndsAt": EXAMPLE_TIME + 86_400_000,
        "limits": {"messageBytes": limits.message_bytes, "messagesPerSecond": limits.messages_per_second, "burst": limits.burst},
    });
    let mut welcome_fields = json!({
        "connectionId": {"type": "string"},
        "resumed": {"type": "boolean", "description": "Whether nothing is missing since the client's cursor; absent while the edge can't know."},
        "resumeToken": token,
        "sessionEndsAt": time,
        "limits": {
            "type": "object",
            "required": ["messageBytes", "messagesPerSecond", "burst"],
            "properties": {
                "messageBytes": {"type": "integer", "const": limits.message_bytes},
                "messagesPerSecond": {"type": "integer", "const": limits.messages_per_second},
                "burst": {"type": "integer", "const": limits.burst},
            },
        },
    });
    if durable {
        welcome["cursor"] = example_cursor(name).into();
        welcome_fields["cursor"] = cursor.clone();
    }
    vec![
        frame(
            "welcome",
            "The first frame of a connection",
            welcome_fields,
            &["connectionId", "resumeToken", "sessionEndsAt", "limits"],
            welcome,
        ),
        frame(
            "position",
            "The client's position, for quiet clients",
            json!({"cursor": cursor, "resumeToken": token}),
            &["cursor"],
            json!({"cursor": example_cursor(name)}),
        ),
        answer("ack", "The broker has the message", json!({"id": id}), &["id"], json!({"id": EXAMPLE_ID})),
        answer(
            "nack",
            "The message was not taken, or its fate is unknown",
            json!({
                "id": id,
                "code": {"type": "string", "enum": NackCode::ALL.map(NackCode::as_str), "description": "Later versions may have more."},
                "reason": {"type": "string"},
                "retryable": {"type": "boolean"},
                "mayHaveArrived": {"type": "boolean", "description": "Then a repeat must carry the same id."},
                "retryAfterMs": {"type": "integer", "minimum": 0},
            }),
            &["code", "reason", "retryable", "mayHaveArrived"],
            json!({
                "id": EXAMPLE_ID, "code": NackCode::RateLimited, "reason": "too fast", "retryable": true, "mayHaveArrived": false,
                "retryAfterMs": 45,
            }),
        ),
        frame(
            "gap",
            "Messages may be missing: fetch your state again",
            json!({
                "business": {"const": name},
                "reason": {"type": "string", "enum": GapReason::ALL, "description": "Later versions may have more."},
            }),
            &["business", "reason"],
            json!({"business": name, "reason": GapReason::Retention}),
        ),
        frame(
            "expiring",
            "The session ends soon",
            json!({"inSeconds": {"type": "integer", "minimum": 0}}),
            &["inSeconds"],
            json!({"inSeconds": 59}),
        ),
        answer(
            "refreshed",
            "The session is extended",
            json!({"sessionEndsAt": time, "resumeToken": token}),
            &["sessionEndsAt", "resumeToken"],
            json!({"sessionEndsAt": EXAMPLE_TIME + 86_400_000, "resumeToken": "AQHk3vYw"}),
        ),
        answer(
            "error",
            "A control frame of the client was refused and had no effect",
            json!({
                "about": {"type": "string"},
                "reason": {"type": "string"},
                "ids": {"type": "array", "items": id, "description": "Of `received`: what it is about."},
                "retryable": {"type": "boolean", "description": "Of `received`: whether the same ids may pass later."},
            }),
            &["about", "reason"],
            json!({"about": "refresh", "reason": "token expired"}),
        ),
        answer(
            "receipt",
            "The business is told that the client has these messages",
            json!({"ids": {"type": "array", "minItems": 1, "items": id}}),
            &["ids"],
            json!({"ids": [EXAMPLE_ID]}),
        ),
        frame(
            "drain",
            "This edge goes: reconnect to another one",
            json!({"reconnectWithinMs": {"type": "integer", "minimum": 0}}),
            &["reconnectWithinMs"],
            json!({"reconnectWithinMs": 5000}),
        ),
        answer("pong", "Answer to ping", json!({}), &[], json!({})),
    ]
}

fn of_client(business: &BusinessConfig) -> Vec<Frame> {
    let frame = |op, summary, properties, required, example, replies| Frame {
        op,
        from_client: true,
        summary,
        properties,
        required,
        example,
        replies,
        is_answer: false,
    };
    let mut frames = vec![
        frame("ping", "Asks for a pong", json!({}), &[], json!({}), &["pong"]),
        frame(
            "refresh",
            "Extends the session by a new ticket",
            json!({"token": {"type": "string", "description": "The last part of the path of the token call's data."}}),
            &["token"],
            json!({"token": "AQBgNGkUSAwDm0M3"}),
            &["refreshed", "error"],
        ),
    ];
    if business.routes.iter().any(|route| route.receipts) {
        let id = json!({"type": "string", "minLength": 1, "maxLength": MAX_ID});
        frames.push(frame(
            "received",
            "Receipt: the client has these messages",
            json!({"ids": {"type": "array", "minItems": 1, "maxItems": MAX_RECEIPTS, "items": id}}),
            &["ids"],
            json!({"ids": [EXAMPLE_ID]}),
            &["receipt", "error"],
        ));
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        asyncapi::tests::{described, everything},
        frames::{ClientFrame, ClientLimits, ServerFrame},
    };

    /// One of each; the match makes sure that no frame is forgotten.
    fn edge_frames(receipts: &[String]) -> Vec<ServerFrame<'_>> {
        let limits = everything().limits;
        let limits = ClientLimits {
            message_bytes: limits.message_bytes,
            messages_per_second: limits.messages_per_second,
            burst: limits.burst,
        };
        let nack = |id, retry_after_ms| ServerFrame::Nack {
            id,
            code: NackCode::Timeout,
            reason: "no confirm within 2 s",
            retryable: true,
            may_have_arrived: true,
            retry_after_ms,
        };
        let welcome = |cursor, resumed| ServerFrame::Welcome {
            connection_id: "c",
            cursor,
            resumed,
            resume_token: "t",
            session_ends_at: 1,
            limits,
        };
        let frames = vec![
            welcome(None, None),
            welcome(Some("AQ"), Some(true)),
            ServerFrame::Position { cursor: "AQ", resume_token: None },
            ServerFrame::Position { cursor: "AQ", resume_token: Some("t") },
            ServerFrame::Ack { id: "a" },
            nack(None, None),
            nack(Some("a"), Some(1)),
            ServerFrame::Gap { business: "everything", reason: GapReason::Unread },
            ServerFrame::Expiring { in_seconds: 1 },
            ServerFrame::Refreshed { session_ends_at: 1, resume_token: "t" },
            ServerFrame::Error { about: "refresh", reason: "no", ids: &[], retryable: None },
            ServerFrame::Error { about: "received", reason: "no", ids: receipts, retryable: Some(true) },
            ServerFrame::Receipt { ids: receipts },
            ServerFrame::Drain { reconnect_within_ms: 1 },
            ServerFrame::Pong,
        ];
        for frame in &frames {
            match frame {
                ServerFrame::Welcome { .. }
                | ServerFrame::Position { .. }
                | ServerFrame::Ack { .. }
                | ServerFrame::Nack { .. }
                | ServerFrame::Gap { .. }
                | ServerFrame::Expiring { .. }
                | ServerFrame::Refreshed { .. }
                | ServerFrame::Error { .. }
                | ServerFrame::Receipt { .. }
                | ServerFrame::Drain { .. }
                | ServerFrame::Pong => {}
            }
        }
        frames
    }

    #[test]
    fn each_frame_of_the_edge_is_as_described() {
        let document = described(&everything());
        for frame in edge_frames(&["p-7".to_owned()]) {
            let frame: Value = serde_json::from_str(&frame.to_text()).unwrap();
            let name = key(frame["op"].as_str().unwrap());
            document.check(&name, "payload", &frame);
            let fields = &document.value["components"]["messages"][&name]["payload"]["properties"];
            let known = |field: &String| fields.get(field).is_some();
            assert!(frame.as_object().unwrap().keys().all(known), "{name} lacks a field of {frame}");
        }
    }

    #[test]
    fn each_described_frame_of_a_client_is_taken() {
        let document = described(&everything());
        let mut taken = Vec::new();
        for frame in of_client(&everything()) {
            let example = document.value["components"]["messages"][key(frame.op)]["examples"][0]["payload"].clone();
            taken.push(match serde_json::from_value(example).unwrap() {
                ClientFrame::Refresh { .. } => "refresh",
                ClientFrame::Received { .. } => "received",
                ClientFrame::Ping => "ping",
            });
        }
        taken.sort_unstable();
        assert_eq!(taken, ["ping", "received", "refresh"]);
    }
}
