//! What one business needs on the broker.
//!
//! Policies must be set before the streams that they match are declared: the broker reads `stream-max-segment-size-bytes` only when it
//! creates a stream (rabbitmq-server issue 10498).

use serde_json::{Map, Value, json};

use super::{
    merge_queues,
    retention::{retention, segment_bytes},
};
use crate::{
    SendType,
    business::{Queue as QueueSettings, WsBusinessSpec},
    edge_config::{Delivery, Retention},
    names,
    topology::{Binding, Exchange, ExchangeKind, Policy, Queue, QueueKind, Topology},
};

/// Priority of our policies: above what teams set by hand for everything (0 to 100, as a rule), with room above for a platform team that
/// means to override one, which is then reported.
const POLICY_PRIORITY: i32 = 500;
/// Most messages of a route's queue where the declaration names no `maxLength`.
const DEFAULT_MAX_LENGTH: i64 = 1_000_000;
/// Failed deliveries where the declaration names no `deliveryLimit`; RabbitMQ 4's own default.
const DEFAULT_DELIVERY_LIMIT: i64 = 20;
/// No delivery limit, in effect. Not -1: on RabbitMQ 4.0 a queue without a limit puts a returned message behind the others (measured; with
/// any limit, and always on 4.3, it goes back to its place).
const KEEP_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// Most messages of `dead` and of `unrouted`.
const KEEP_MAX_LENGTH: i64 = 1_000_000;
/// Most bytes of `dead` and of `unrouted`.
const KEEP_MAX_BYTES: i64 = 1 << 30;

pub(crate) fn topology(business: &str, spec: &WsBusinessSpec) -> Topology {
    let delivery = spec.push.as_ref().map_or(Delivery::default(), |p| p.delivery);
    let mut topology = Topology::default();
    exchanges(&mut topology, business);
    keepers(&mut topology, business);
    // The check has refused contradicting settings, so nothing is lost here.
    for queue in merge_queues(&spec.routes).unwrap_or_default().values() {
        route_queue(&mut topology, business, queue);
    }
    for route in &spec.routes {
        if let (SendType::ClientToServer, Some(queue)) = (route.send_type, &route.queue) {
            topology.bindings.push(Binding {
                exchange: names::receive_exchange(business),
                queue: queue_name(business, queue),
                routing_key: route.message_type.clone(),
            });
        }
    }
    if delivery == Delivery::Durable {
        let declared = spec.push.as_ref().and_then(|p| p.retention.as_ref());
        stream(&mut topology, business, retention(declared));
        push_alternate(&mut topology, business);
    }
    sort(&mut topology);
    topology
}

fn exchanges(topology: &mut Topology, business: &str) {
    let unrouted = names::unrouted(business);
    for (name, kind, alternate) in [
        (names::receive_exchange(business), ExchangeKind::Topic, Some(unrouted.clone())),
        // By policy: see `push_alternate`.
        (names::push_exchange(business), ExchangeKind::Fanout, None),
        // Nobody needs to listen to events.
        (names::events_exchange(business), ExchangeKind::Topic, None),
        (unrouted, ExchangeKind::Fanout, None),
        (names::dead_letter_exchange(business), ExchangeKind::Fanout, None),
    ] {
        topology.exchanges.push(Exchange { name, kind, alternate });
    }
}

/// `unrouted` and `dead` keep what would be lost. At their bound they refuse, so that the loss is the publisher's to see: an unrouted
/// message is not confirmed, a dead one stays in its queue (at-least-once dead-lettering). No delivery limit: a consumer that crashes on
/// a dead message must not lose it.
fn keepers(topology: &mut Topology, business: &str) {
    for (exchange, queue) in [
        (names::unrouted(business), names::unrouted(business)),
        (names::dead_letter_exchange(business), names::dead_queue(business)),
    ] {
        declare(
            topology,
            &queue,
            QueueKind::Quorum,
            [
                ("delivery-limit", json!(KEEP_DELIVERY_LIMIT)),
                ("max-length", json!(KEEP_MAX_LENGTH)),
                ("max-length-bytes", json!(KEEP_MAX_BYTES)),
                ("overflow", json!("reject-publish")),
            ],
        );
        topology.bindings.push(Binding { exchange, queue, routing_key: String::new() });
    }
}

/// A queue of our own with its policy, or the name of one that exists.
fn route_queue(topology: &mut Topology, business: &str, queue: &QueueSettings) {
    let name = queue_name(business, queue);
    if queue.existing {
        topology.existing_queues.push(name);
        return;
    }
    // At-least-once dead-lettering needs `reject-publish`; with `drop-head` the broker falls back to at-most-once
    // (rabbitmq.com/docs/quorum-queues, "Dead Lettering").
    let mut settings = vec![
        ("dead-letter-exchange", json!(names::dead_letter_exchange(business))),
        ("dead-letter-strategy", json!("at-least-once")),
        ("delivery-limit", json!(queue.delivery_limit.unwrap_or(DEFAULT_DELIVERY_LIMIT))),
        ("max-length", json!(queue.max_length.unwrap_or(DEFAULT_MAX_LENGTH))),
        ("overflow", json!("reject-publish")),
    ];
    if let Some(seconds) = queue.message_ttl_seconds {
        settings.push(("message-ttl", json!(seconds * 1000)));
    }
    declare(topology, &name, QueueKind::Quorum, settings);
}

fn stream(topology: &mut Topology, business: &str, retention: Retention) {
    let name = names::stream(business);
    declare(
        topology,
        &name,
        QueueKind::Stream,
        [
            ("max-age", json!(format!("{}s", retention.seconds))),
            ("max-length-bytes", json!(retention.bytes)),
            ("stream-max-segment-size-bytes", json!(segment_bytes(retention))),
        ],
    );
    topology.bindings.push(Binding {
        exchange: names::push_exchange(business),
        queue: name,
        routing_key: String::new(),
    });
}

/// The alternate exchange of `push`, as a policy: an argument could not change with the delivery. With Transient there is none: without an
/// edge nobody wants a push, keeping it would fill `unrouted` and then refuse every further one; `mandatory` tells the publisher.
fn push_alternate(topology: &mut Topology, business: &str) {
    let settings = [("alternate-exchange", json!(names::unrouted(business)))];
    topology.policies.push(policy(&names::push_exchange(business), "exchanges", settings));
}

fn declare(
    topology: &mut Topology,
    name: &str,
    kind: QueueKind,
    settings: impl IntoIterator<Item = (&'static str, Value)>,
) {
    topology.queues.push(Queue { name: name.to_owned(), kind });
    let apply_to = match kind {
        QueueKind::Quorum => "quorum_queues",
        QueueKind::Stream => "streams",
    };
    topology.policies.push(policy(name, apply_to, settings));
}

fn policy(name: &str, apply_to: &'static str, settings: impl IntoIterator<Item = (&'static str, Value)>) -> Policy {
    Policy {
        name: name.to_owned(),
        pattern: names::exact_pattern(name),
        apply_to,
        priority: POLICY_PRIORITY,
        definition: settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>(),
    }
}

fn queue_name(business: &str, queue: &QueueSettings) -> String {
    if queue.existing { queue.name.clone() } else { names::route_queue(business, &queue.name) }
}

fn sort(topology: &mut Topology) {
    topology.exchanges.sort();
    topology.queues.sort();
    topology.existing_queues.sort();
    topology.bindings.sort();
    topology.policies.sort_by(|a, b| a.name.cmp(&b.name));
}
