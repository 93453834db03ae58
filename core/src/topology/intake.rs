//! Which queues accept a client's message, decided without an edge: for unrouted messages.

use std::sync::OnceLock;

use serde::Serialize;
use serde_json::Value;

use super::{Binding, Topology};
use crate::{Envelope, content, names, pattern};

/// Which messages one ClientToServer route lets into its queue.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Intake {
    /// Topic pattern of the message type.
    pub pattern: String,
    /// Client types that may send it.
    pub from: Vec<String>,
    /// Full name of the queue.
    pub queue: String,
    /// JSON Schema of `content`.
    #[serde(skip)]
    pub schema: Option<Value>,
}

/// A message that lies in `wirepost.B.unrouted`.
#[derive(Clone, Copy, Debug)]
pub struct UnroutedMessage<'a> {
    /// The exchange that it was published to.
    pub exchange: &'a str,
    /// Its routing key.
    pub routing_key: &'a str,
    /// Its header [`QUEUE`](crate::contract::headers::QUEUE): the queue that an edge admitted it to. An older edge sets none.
    pub queue: Option<&'a str>,
    /// Its header [`FROM_CLIENT_TYPE`](crate::contract::headers::FROM_CLIENT_TYPE).
    pub from_client_type: Option<&'a str>,
    /// Its body.
    pub body: &'a [u8],
}

/// Finds the queues that unrouted messages of one business belong to. A schema is compiled when the first message needs it.
pub struct Destinations<'a> {
    topology: &'a Topology,
    /// Of the intakes, in their order. `None`: the schema can't be compiled, so nothing matches it.
    schemas: Vec<OnceLock<Option<content::Schema>>>,
}

impl<'a> Destinations<'a> {
    /// By what this topology declares.
    pub fn new(topology: &'a Topology) -> Self {
        Self { topology, schemas: topology.intake.iter().map(|_| OnceLock::new()).collect() }
    }

    /// Where a message belongs: each `Some` is one queue behind its exchange, `None` all that the exchange has. Empty if nothing declared
    /// takes it.
    ///
    /// The queue that admitted it is the only one. If that is no longer declared, or the message names none, today's routes decide, each
    /// for itself, as an edge would.
    pub fn of(&self, message: UnroutedMessage<'_>) -> Vec<Option<&'a str>> {
        let Topology { bindings, intake, .. } = self.topology;
        if names::is_share_exchange(message.exchange) {
            // It came on by a link that existed then: whether one exists now is the broker's word, not this topology's.
            return vec![None];
        }
        let mut bindings = bindings.iter().filter(|binding| binding.exchange == message.exchange);
        let receives = names::owner(message.exchange).is_some_and(|b| message.exchange == names::receive_exchange(b));
        if !receives {
            return bindings.next().map(|_| None).into_iter().collect();
        }
        let names =
            |binding: &&Binding| message.queue == Some(&binding.queue) || message.routing_key == binding.routing_key;
        if let Some(binding) = bindings.find(names) {
            return vec![Some(&binding.queue)];
        }
        let mut destinations = Vec::new();
        for (intake, schema) in intake.iter().zip(&self.schemas) {
            let destination = Some(intake.queue.as_str());
            if !destinations.contains(&destination) && intake.admits(message, schema) {
                destinations.push(destination);
            }
        }
        destinations
    }
}

impl Intake {
    fn admits(&self, message: UnroutedMessage<'_>, compiled: &OnceLock<Option<content::Schema>>) -> bool {
        pattern::matches(&self.pattern, message.routing_key)
            && message.from_client_type.is_none_or(|from| self.from.iter().any(|allowed| allowed == from))
            && self.schema.as_ref().is_none_or(|schema| {
                let compiled = compiled.get_or_init(|| content::Schema::try_new(schema).ok());
                compiled.as_ref().is_some_and(|schema| matches(schema, message.body))
            })
    }
}

/// Content that takes too many steps to check does not match, as at an edge.
fn matches(schema: &content::Schema, body: &[u8]) -> bool {
    Envelope::parse(body).is_ok_and(|envelope| schema.check(envelope.content.unwrap_or("null")).is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn topology() -> Topology {
        let intake = |pattern: &str, from: &str, queue: &str, schema: Option<Value>| Intake {
            pattern: pattern.into(),
            from: vec![from.into()],
            queue: queue.into(),
            schema,
        };
        let bind = |exchange: &str, queue: &str| Binding {
            exchange: exchange.into(),
            queue: queue.into(),
            routing_key: names::queue_key(queue),
        };
        Topology {
            intake: vec![
                intake("log.*", "h5", "wirepost.pay.q.a", None),
                intake("log.admin", "app", "wirepost.pay.q.b", Some(json!({"type": "object"}))),
            ],
            bindings: vec![
                bind("wirepost.pay.receive", "wirepost.pay.q.a"),
                bind("wirepost.pay.receive", "wirepost.pay.q.b"),
                bind("wirepost.pay.push", "wirepost.pay.stream"),
            ],
            ..Topology::default()
        }
    }

    #[test]
    fn a_message_goes_back_to_the_queue_that_admitted_it_or_is_judged_by_todays_routes() {
        let topology = topology();
        let destinations = Destinations::new(&topology);
        let (a, b) = (Some("wirepost.pay.q.a"), Some("wirepost.pay.q.b"));
        let good = r#"{"messageType":"log.admin","content":{}}"#;
        let bad = r#"{"messageType":"log.admin","content":1}"#;
        for (queue, from, body, expected) in [
            (a, Some("app"), bad, vec![a]),
            (b, Some("h5"), bad, vec![b]),
            (Some("wirepost.pay.q.gone"), Some("h5"), good, vec![a]),
            (Some("wirepost.pay.q.gone"), Some("app"), good, vec![b]),
            (None, Some("app"), bad, vec![]),
            (None, Some("h5"), bad, vec![a]),
            (None, None, good, vec![a, b]),
        ] {
            let message = UnroutedMessage {
                exchange: "wirepost.pay.receive",
                routing_key: "log.admin",
                queue,
                from_client_type: from,
                body: body.as_bytes(),
            };
            assert_eq!(destinations.of(message), expected, "{queue:?} {from:?} {body}");
        }
        let push = UnroutedMessage {
            exchange: "wirepost.pay.push",
            routing_key: "",
            queue: a,
            from_client_type: None,
            body: b"",
        };
        assert_eq!(destinations.of(push), [None]);
        assert_eq!(destinations.of(UnroutedMessage { exchange: "", routing_key: "wirepost.pay.q.a", ..push }), []);
    }
}
