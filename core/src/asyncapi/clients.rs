//! What clients do: one WebSocket, envelopes and control frames.

use serde_json::{Value, json};

use super::{
    control,
    document::{Action, Document, Operation, scheme},
    envelope::{Form, Message},
    server::Base,
};
use crate::{
    SendType,
    edge_config::{BusinessConfig, DEFAULT_BYTES_PER_SECOND, Delivery},
    frames::{CloseCode, SUBPROTOCOL, TOKEN_PROTOCOL},
};

/// The channel of the WebSocket.
pub(super) const SOCKET: &str = "socket";
/// Its server.
const SERVER: &str = "edge";
/// The security scheme of tickets and resume tokens.
const TICKET: &str = "ticket";

pub(super) fn add(business: &BusinessConfig, messages: &[Message<'_>], base: &Base<'_>, document: &mut Document) {
    document.security_scheme(
        TICKET,
        json!({
            "type": "httpApiKey", "in": "header", "name": "Sec-WebSocket-Protocol",
            "description": format!(
                "A ticket of the token call, or the resumeToken of an earlier connection, offered as the subprotocol `{TOKEN_PROTOCOL}{{token}}` \
                 beside `{SUBPROTOCOL}`. Clients that can't offer subprotocols connect to /socket/{{token}}."
            ),
        }),
    );
    let mut server = base.server(if base.secure { "wss" } else { "ws" });
    server["title"] = json!("Edges, by WebSocket");
    server["protocolVersion"] = json!("13");
    server["description"] = json!(format!(
        "Subprotocol {SUBPROTOCOL} adds acknowledgements, positions and gaps (its control frames). Without it a client sees envelopes only."
    ));
    server["security"] = json!([scheme(TICKET)]);
    document.server(SERVER, server);

    let mut keys = control::add(business, document);
    let mut operations = Vec::new();
    for message in messages {
        if message.route.send_type != SendType::ServerToClient {
            let key = message.add(Form::Sent, document);
            keys.push(key.clone());
            operations.push((Action::Receive, message, key));
        }
        if message.route.send_type != SendType::ClientToServer {
            let key = message.add(Form::Delivered, document);
            keys.push(key.clone());
            operations.push((Action::Send, message, key));
        }
    }
    document.channel(SOCKET, SERVER, &keys, channel(business));
    for (action, message, key) in operations {
        document.operation(&name(action, message), operation(action, message, key));
    }
    control::operations(business, document);
}

fn channel(business: &BusinessConfig) -> Value {
    let protocols = json!({
        "type": "string", "description": format!("`{SUBPROTOCOL}, {TOKEN_PROTOCOL}{{token}}`; the answer selects `{SUBPROTOCOL}` alone."),
    });
    let mut binding = json!({
        "method": "GET",
        "headers": {"type": "object", "properties": {"Sec-WebSocket-Protocol": protocols}},
        "bindingVersion": "0.1.0",
    });
    if business.delivery == Delivery::Durable {
        binding["query"] = json!({
            "type": "object",
            "properties": {"cursor": {"type": "string", "maxLength": 128, "description": "The position to continue from."}},
        });
    }
    json!({
        "address": "/socket",
        "title": "The WebSocket of a client",
        "description": format!(
            "Text frames only; each is one JSON object: a control frame if it has a string `op`, else an envelope.\n\n{}\n\n{}",
            limits(business),
            close_codes(),
        ),
        "bindings": {"ws": binding},
    })
}

/// The limits as a list, for people.
fn limits(business: &BusinessConfig) -> String {
    let limits = &business.limits;
    let mut lines = vec![
        format!("- a message of a client: {} bytes (`messageBytes`)", limits.message_bytes),
        format!("- a message to clients: {} bytes (`pushBytes`)", limits.push_bytes),
        format!(
            "- messages of one identity to an edge: {} a second (`messagesPerSecond`), {} at once (`burst`)",
            limits.messages_per_second, limits.burst
        ),
        format!("- connections of one identity to an edge: {} (`connectionsPerId`)", limits.connections_per_id),
        format!("- a session: {} s (`session.maxSeconds`)", business.session_max_seconds),
    ];
    let share = &limits.per_edge;
    for (what, most) in [
        ("connections of all clients to an edge", share.connections.map(u64::from)),
        ("messages a second of all clients to an edge", share.messages_per_second.map(u64::from)),
        (
            "bytes a second of messages of all clients to an edge",
            Some(share.bytes_per_second.unwrap_or(DEFAULT_BYTES_PER_SECOND).into()),
        ),
        ("pushes a second by an edge", share.pushes_per_second.map(u64::from)),
        ("bytes of messages on their way in an edge", share.memory_bytes.map(|bytes| bytes as u64)),
    ] {
        lines.extend(most.map(|most| format!("- {what}: {most} (`perEdge`)")));
    }
    format!("Limits:\n\n{}", lines.join("\n"))
}

fn close_codes() -> String {
    let lines: Vec<_> =
        codes().into_iter().map(|(code, reasons)| format!("- {code}: {}", reasons.join("; "))).collect();
    format!("Close codes of the edge:\n\n{}", lines.join("\n"))
}

/// Each close code with its reasons, in order.
pub(super) fn codes() -> std::collections::BTreeMap<u16, Vec<&'static str>> {
    let mut codes: std::collections::BTreeMap<u16, Vec<_>> = std::collections::BTreeMap::new();
    for cause in CloseCode::ALL {
        codes.entry(cause.code()).or_default().push(cause.reason());
    }
    codes
}

fn name(action: Action, message: &Message<'_>) -> String {
    let word = if action == Action::Receive { "receive" } else { "send" };
    format!("{word}.{}", message.key)
}

fn operation<'a>(action: Action, message: &Message<'_>, key: String) -> Operation<'a> {
    let route = message.route;
    let summary = match action {
        Action::Receive => format!("Clients of type {} send it", route.from.join(", ")),
        Action::Send => format!("Clients of type {} get it", route.to.join(", ")),
    };
    let replies = if action == Action::Receive { control::ANSWERS.map(str::to_owned).to_vec() } else { Vec::new() };
    Operation { action, channel: SOCKET, summary, messages: vec![key], replies, security: &[], bindings: Value::Null }
}
