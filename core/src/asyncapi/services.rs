//! What services do on the broker: exchanges, queues and events.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    document::{Action, Document, Operation, scheme},
    envelope::{EXAMPLE_ID, EXAMPLE_TIME, Form, Message, RECEIVER, TIME, unique_key},
};
use crate::{
    SendType,
    edge_config::{BusinessConfig, Delivery},
    names,
};

/// The broker.
const SERVER: &str = "broker";
/// The security scheme of its users.
const USER: &str = "brokerUser";

/// Why a push is not delivered: the `reason` of a `rejected` event.
pub const REJECTED: [&str; 13] = [
    "expired",
    "invalid",
    "nobody",
    "not_accepted",
    "not_allowed",
    "not_copied",
    "other_business",
    "schema_mismatch",
    "too_complex",
    "too_large",
    "unknown_route",
    "unmovable",
    "unreadable",
];

pub(super) fn add(business: &BusinessConfig, messages: &[Message<'_>], document: &mut Document) {
    server(document);
    push(business, messages, document);
    queues(business, messages, document);
    events(business, document);
}

fn server(document: &mut Document) {
    document.security_scheme(
        USER,
        json!({
            "type": "userPassword",
            "description": "Keys username and password of the Secret that spec.access.secretName names.",
        }),
    );
    document.server(
        SERVER,
        json!({
            "host": "{host}",
            "pathname": "/{vhost}",
            "protocol": "amqp",
            "protocolVersion": "0.9.1",
            "title": "RabbitMQ",
            "description": "The key uri of the Secret that spec.access.secretName names has the whole address, amqps where it uses TLS.",
            "variables": {
                "host": {"default": "localhost:5672", "description": "Keys host and port of the Secret."},
                "vhost": {"default": "%2F", "description": "Key virtual-host of the Secret, percent-encoded."},
            },
            "security": [scheme(USER)],
        }),
    );
}

fn push(business: &BusinessConfig, messages: &[Message<'_>], document: &mut Document) {
    let name = &business.business_type;
    let keys: Vec<String> = messages
        .iter()
        .filter(|message| message.route.send_type == SendType::ServerToClient)
        .map(|message| message.add(Form::Pushed, document))
        .collect();
    if keys.is_empty() {
        return;
    }
    let alone = match business.delivery {
        Delivery::Durable => "What is confirmed reaches every addressed client that returns within the retention.",
        Delivery::Transient => "What is pushed while no edge has clients of the business is returned (`mandatory`).",
    };
    let judged: Vec<&str> = messages
        .iter()
        .filter(|message| message.route.judges_pushes())
        .map(|message| message.route.message_type.as_str())
        .collect();
    let judged = match judged[..] {
        [] => "By AMQP `content` is not judged by its schema.".to_owned(),
        _ => format!("By AMQP `content` is judged by its schema for {}, and for no other.", judged.join(", ")),
    };
    document.channel(
        "push",
        SERVER,
        &keys,
        json!({
            "address": names::push_exchange(name),
            "title": "Pushes to clients",
            "description": format!(
                "A fanout exchange: any routing key will do. Publish persistent messages (delivery mode 2) with publisher confirms. {alone} \
                 Each edge checks a push when it reads it, and reports one that it can't deliver by the event `rejected`. {judged}"
            ),
            "bindings": {"amqp": exchange(&names::push_exchange(name), "fanout")},
        }),
    );
    document.operation(
        "push.amqp",
        Operation {
            action: Action::Receive,
            channel: "push",
            summary: "Services publish pushes to clients".to_owned(),
            messages: keys,
            replies: Vec::new(),
            security: &[],
            bindings: json!({"amqp": {"deliveryMode": 2, "mandatory": true, "bindingVersion": "0.3.0"}}),
        },
    );
}

fn queues(business: &BusinessConfig, messages: &[Message<'_>], document: &mut Document) {
    let name = &business.business_type;
    let mut queues: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut all = Vec::new();
    for message in messages.iter().filter(|message| message.route.send_type == SendType::ClientToServer) {
        let key = message.add(Form::Queued, document);
        if let Some(queue) = &message.route.queue {
            queues.entry(queue).or_default().push(key.clone());
        }
        all.push(key);
    }
    let mut taken = BTreeSet::new();
    let prefix = names::route_queue(name, "");
    for (queue, keys) in &queues {
        let own = queue.strip_prefix(&prefix);
        let key = unique_key(&format!("queue.{}", own.unwrap_or(queue)), &mut taken);
        let whose = match own {
            Some(_) => "A quorum queue. After its delivery limit a message moves to the dead queue.",
            None => "A queue of the team's own (`existing: true`).",
        };
        document.channel(
            &key,
            SERVER,
            keys,
            json!({
                "address": address(queue),
                "title": format!("Queue {queue}"),
                "description": format!(
                    "{whose} Consume it with a prefetch, and acknowledge a message when the work is done. Expect repeats: recognise them by \
                     sender and `id`."
                ),
                "bindings": {"amqp": queue_binding(queue)},
            }),
        );
        document.operation(&key, consumed(&key, format!("Services consume {queue}"), keys.clone()));
    }
    if all.is_empty() {
        return;
    }
    let dead = names::dead_queue(name);
    document.channel(
        "dead",
        SERVER,
        &all,
        json!({
            "address": dead,
            "title": "Dead letters",
            "description": "Messages that failed too often or waited too long. `wirepost dead` lists them and sends them back.",
            "bindings": {"amqp": queue_binding(&dead)},
        }),
    );
    document.operation("dead", consumed("dead", "Services read dead letters".to_owned(), all.clone()));
    let own: Vec<_> = queues.keys().filter(|queue| queue.starts_with(&prefix)).collect();
    if own.is_empty() {
        return;
    }
    let replay = names::replay_exchange(name);
    document.channel(
        "replay",
        SERVER,
        &all,
        json!({
            "address": "{queue}",
            "title": "Dead letters, sent back",
            "description": "A direct exchange that returns a dead letter to its queue.",
            "parameters": {"queue": {
                "description": "Full name of the route's queue.",
                "enum": own,
            }},
            "bindings": {"amqp": exchange(&replay, "direct")},
        }),
    );
    document.operation(
        "replay",
        Operation {
            action: Action::Receive,
            channel: "replay",
            summary: "Services send dead letters back".to_owned(),
            messages: all,
            replies: Vec::new(),
            security: &[],
            bindings: json!({"amqp": {"deliveryMode": 2, "mandatory": true, "bindingVersion": "0.3.0"}}),
        },
    );
}

fn consumed(channel: &str, summary: String, messages: Vec<String>) -> Operation<'_> {
    Operation {
        action: Action::Send,
        channel,
        summary,
        messages,
        replies: Vec::new(),
        security: &[],
        bindings: json!({"amqp": {"deliveryMode": 2, "ack": true, "bindingVersion": "0.3.0"}}),
    }
}

fn events(business: &BusinessConfig, document: &mut Document) {
    let name = &business.business_type;
    let mut keys = Vec::new();
    let events = event_messages(business);
    for (event, message) in &events {
        let key = format!("event.{event}");
        document.message(&key, message.clone());
        keys.push(key);
    }
    let exchange_name = names::events_exchange(name);
    document.channel(
        "events",
        SERVER,
        &keys,
        json!({
            "address": "{event}",
            "title": "What happens to clients and pushes",
            "description": format!(
                "A topic exchange; the routing key is the name of the event. Declare a queue `{}` and bind it. Events are persistent. They \
                 are dropped while the broker does not take them; all but `delivered`: a client's receipt is answered once its event is with \
                 the broker, and else given again.",
                names::events_queue(name, "…")
            ),
            "parameters": {"event": {"enum": events.iter().map(|(event, _)| *event).collect::<Vec<_>>()}},
            "bindings": {"amqp": exchange(&exchange_name, "topic")},
        }),
    );
    for (event, message) in events {
        document.operation(
            &format!("event.{event}"),
            Operation {
                action: Action::Send,
                channel: "events",
                summary: message["summary"].as_str().unwrap_or_default().to_owned(),
                messages: vec![format!("event.{event}")],
                replies: Vec::new(),
                security: &[],
                bindings: json!({"amqp": {"deliveryMode": 2, "bindingVersion": "0.3.0"}}),
            },
        );
    }
}

fn event_messages(business: &BusinessConfig) -> Vec<(&'static str, Value)> {
    let client_type = json!({"type": "string"});
    let connection = json!({
        "connectionId": {"type": "string"}, "uniqueId": {"type": "string"}, "clientType": client_type,
    });
    let example_type = business.client_types.first();
    let of_connection = json!({"connectionId": EXAMPLE_ID, "uniqueId": RECEIVER, "clientType": example_type});
    let with = |base: &Value, more: Value| -> Value {
        let mut all = base.as_object().cloned().unwrap_or_default();
        all.extend(more.as_object().cloned().unwrap_or_default());
        all.into()
    };
    let event = |event: &'static str, summary: &str, fields: Value, optional: &[&str], example: Value| {
        let common = json!({
            "event": {"const": event}, "businessType": {"const": business.business_type}, "edge": {"type": "string"},
            "instance": {"type": "string", "description": "The process of the edge; the operator has none."},
            "timestamp": {"type": "integer", "description": TIME},
        });
        let properties = with(&common, fields);
        let required: Vec<&String> = properties
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.keys())
            .filter(|field| !optional.contains(&field.as_str()) && *field != "instance")
            .collect();
        let sample = json!({
            "event": event, "businessType": business.business_type, "edge": "edge-0", "instance": EXAMPLE_ID,
            "timestamp": EXAMPLE_TIME,
        });
        let message = json!({
            "name": event,
            "title": format!("{event} (event)"),
            "summary": summary,
            "contentType": "application/json",
            "payload": {"type": "object", "required": required, "properties": properties},
            "examples": [{"name": event, "payload": with(&sample, example)}],
        });
        (event, message)
    };
    let mut events = vec![
        event("connected", "A client has connected", connection.clone(), &[], of_connection.clone()),
        event(
            "disconnected",
            "A connection has ended",
            with(
                &connection,
                json!({"code": {"type": "integer", "description": "The close code."}, "reason": {"type": "string"}}),
            ),
            &[],
            with(&of_connection, json!({"code": 1000, "reason": "closed by the client"})),
        ),
        event(
            "census",
            "How many connections the earlier events of this instance tell of",
            json!({
                "connections": {"type": "integer", "minimum": 0},
                "digest": {"type": "string", "description": "The XOR of the connections' ids, as numbers of 128 bits, in hexadecimal."},
                "everySeconds": {"type": "number", "description": "When the next one comes."},
            }),
            &[],
            json!({"connections": 1, "digest": EXAMPLE_ID.replace('-', ""), "everySeconds": 15.0}),
        ),
        event(
            "rejected",
            "A push can't be delivered; each edge that reads it reports it",
            json!({
                "id": {"type": ["string", "null"]},
                "reason": {"type": "string", "enum": REJECTED, "description": "Later versions may have more."},
                "description": {"type": "string"},
                "refusedBy": {"type": "string", "description": "Another business, if it is that one that does not take it."},
                "offset": {"type": ["integer", "null"], "description": "Position in the stream."},
                "suppressed": {"type": "integer", "description": "Rejected pushes before it that got no event."},
            }),
            &["refusedBy", "suppressed"],
            json!({"id": "p-7", "reason": "nobody", "description": "toUniqueId and tags are absent or empty", "offset": 412}),
        ),
    ];
    if business.routes.iter().any(|route| route.receipts) {
        let ids = json!({
            "session": {"type": "string", "description": "What the connections of one session share: repeats have the same."},
            "ids": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        });
        events.push(event(
            "delivered",
            "A client reports that it has these messages",
            with(&connection, ids),
            &[],
            with(&of_connection, json!({"session": "2f6b8c1d", "ids": [EXAMPLE_ID]})),
        ));
    }
    if let Some(within) = business.routes.iter().find_map(|route| route.receipts_within_seconds) {
        events.push(event(
            "undelivered",
            "An identity that a push names has not reported it in time; comes at least once for each id and uniqueId",
            json!({
                "id": {"type": "string", "description": "The push."},
                "uniqueId": {"type": "string"},
                "messageType": {"type": "string"},
                "withinSeconds": {"type": "integer", "description": "What the route allows."},
                "offset": {"type": "integer", "description": "Position in the stream."},
            }),
            &[],
            json!({"id": EXAMPLE_ID, "uniqueId": "alice", "messageType": "payment.completed", "withinSeconds": within, "offset": 412}),
        ));
    }
    events
}

fn exchange(name: &str, kind: &str) -> Value {
    json!({
        "is": "routingKey",
        "exchange": {"name": name, "type": kind, "durable": true, "autoDelete": false},
        "bindingVersion": "0.3.0",
    })
}

fn queue_binding(name: &str) -> Value {
    json!({
        "is": "queue",
        "queue": {"name": name, "durable": true, "exclusive": false, "autoDelete": false},
        "bindingVersion": "0.3.0",
    })
}

/// A queue's name as an address; `null` where a team's own name has characters with a meaning there. The binding has the name in any case.
fn address(queue: &str) -> Value {
    if queue.contains(['{', '}', '?', '#']) { Value::Null } else { queue.into() }
}
