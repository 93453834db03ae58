//! What one business needs on the broker.
//!
//! Policies must be set before the streams that they match are declared: the broker reads `stream-max-segment-size-bytes` only when it
//! creates a stream (rabbitmq-server issue 10498).

use std::collections::BTreeSet;

use super::{merge_queues, policies, retention::retention};
use crate::{
    SendType,
    business::{Queue as QueueSettings, Route, WsBusinessSpec},
    contract::{
        edge_config::{Delivery, Retention},
        headers,
    },
    names,
    topology::{Binding, Exchange, ExchangeKind, Intake, Link, Queue, QueueKind, Topology},
};

pub(crate) fn topology(business: &str, spec: &WsBusinessSpec) -> Topology {
    let mut topology = Topology::default();
    exchanges(&mut topology, business);
    keepers(&mut topology, business);
    // Validation has rejected contradicting settings, so nothing is lost here.
    for queue in merge_queues(&spec.routes).unwrap_or_default().values() {
        route_queue(&mut topology, business, queue);
    }
    for route in &spec.routes {
        let Some(queue) = queue_of(business, route) else { continue };
        topology.intake.push(Intake {
            pattern: route.message_type.clone(),
            from: senders(route, &spec.client_types),
            queue,
            schema: route.schema.clone(),
        });
    }
    if spec.push.as_ref().map_or(Delivery::default(), |p| p.delivery) == Delivery::Durable {
        let declared = spec.push.as_ref().and_then(|p| p.retention.as_ref());
        stream(&mut topology, business, retention(declared));
        if spec.routes.iter().any(|route| route.receipts_within_seconds.is_some()) {
            receipts(&mut topology, business);
        }
    }
    sort(&mut topology);
    topology
}

fn exchanges(topology: &mut Topology, business: &str) {
    let (unrouted, push_unrouted) = (names::unrouted(business), names::push_unrouted(business));
    for (name, kind, alternate) in [
        (names::receive_exchange(business), ExchangeKind::Topic, Some(unrouted.clone())),
        (names::push_exchange(business), ExchangeKind::Fanout, Some(push_unrouted.clone())),
        // Events need no listener.
        (names::events_exchange(business), ExchangeKind::Topic, None),
        (unrouted, ExchangeKind::Fanout, None),
        (push_unrouted, ExchangeKind::Fanout, None),
        (names::dead_letter_exchange(business), ExchangeKind::Fanout, None),
        (names::replay_exchange(business), ExchangeKind::Direct, None),
    ] {
        topology.exchanges.push(Exchange { name, kind, alternate });
    }
}

/// `unrouted` and `dead`.
fn keepers(topology: &mut Topology, business: &str) {
    for (exchange, queue) in [
        (names::unrouted(business), names::unrouted(business)),
        (names::dead_letter_exchange(business), names::dead_queue(business)),
    ] {
        topology.queues.push(Queue { name: queue.clone(), kind: QueueKind::Quorum, dead_letter: None });
        bind(topology, exchange, queue);
    }
}

/// A queue of ours, or the name of an existing one.
fn route_queue(topology: &mut Topology, business: &str, queue: &QueueSettings) {
    let name = queue_name(business, queue);
    topology.bindings.push(Binding {
        exchange: names::receive_exchange(business),
        queue: name.clone(),
        routing_key: names::queue_key(&name),
    });
    if queue.existing {
        topology.existing_queues.push(name);
        return;
    }
    topology.policies.extend(policies::of_queue(&name, queue));
    topology.bounded.extend(queue.max_length_bytes.is_some().then(|| name.clone()));
    let dead_letter = Some(names::dead_letter_exchange(business));
    // Through the default exchange a user could write to any queue of the vhost, so no user may publish there.
    let routing_key = name.clone();
    topology.bindings.push(Binding { exchange: names::replay_exchange(business), queue: name.clone(), routing_key });
    topology.queues.push(Queue { name, kind: QueueKind::Quorum, dead_letter });
}

/// With a stream, pushes whose binding is missing are kept as well. Without one (delivery Transient) and without an edge a push has no
/// receiver: keeping it would fill `unrouted`, which then refuses every further one. `mandatory` tells the publisher. So the difference is a
/// binding behind the alternate exchange: the alternate exchange itself could be changed only by a policy, and a vhost can't afford many.
fn stream(topology: &mut Topology, business: &str, retention: Retention) {
    let name = names::stream(business);
    topology.policies.extend(policies::of_stream(&name, retention));
    topology.queues.push(Queue { name: name.clone(), kind: QueueKind::Stream, dead_letter: None });
    bind(topology, names::push_exchange(business), name);
    bind(topology, names::push_unrouted(business), names::unrouted(business));
}

/// What edges find out with who gave no receipt in time: the receipts, and what the edge that judges writes between them.
/// That has an exchange of its own: listeners of all events must not get it, and an edge that could write to the stream by
/// its name could bind it as well.
fn receipts(topology: &mut Topology, business: &str) {
    let (name, judge) = (names::receipts_stream(business), names::judge_exchange(business));
    topology.queues.push(Queue { name: name.clone(), kind: QueueKind::Stream, dead_letter: None });
    topology.exchanges.push(Exchange { name: judge.clone(), kind: ExchangeKind::Fanout, alternate: None });
    topology.bindings.push(Binding {
        exchange: names::events_exchange(business),
        queue: name.clone(),
        routing_key: names::DELIVERED.to_owned(),
    });
    bind(topology, judge, name);
}

/// The exchange for messages to the clients of several businesses. It stands beside `push`, not behind it: `push` leads
/// to no other exchange, so that its alternate exchange keeps what its stream does not get, and so that nothing goes on
/// from one business to the next. What names no target falls to the business's own pushes, whose edges report it.
pub(super) fn share(topology: &mut Topology, business: &str, acceptors: &BTreeSet<String>) {
    let (from, own) = (names::share_exchange(business), names::push_exchange(business));
    topology.exchanges.retain(|exchange| exchange.name != from);
    topology.links.clear();
    if acceptors.is_empty() {
        return;
    }
    topology.exchanges.push(Exchange { name: from.clone(), kind: ExchangeKind::Headers, alternate: Some(own) });
    for target in acceptors.iter().map(String::as_str).chain([business]) {
        topology.links.push(Link {
            from: from.clone(),
            to: names::push_exchange(target),
            header: headers::to_business(target),
            value: headers::TO_BUSINESS_VALUE.to_owned(),
        });
    }
    sort(topology);
}

fn bind(topology: &mut Topology, exchange: String, queue: String) {
    topology.bindings.push(Binding { exchange, queue, routing_key: String::new() });
}

/// The queue of a route, by its full name.
pub(super) fn queue_of(business: &str, route: &Route) -> Option<String> {
    let queue = route.queue.as_ref().filter(|_| route.send_type == SendType::ClientToServer)?;
    Some(queue_name(business, queue))
}

/// Client types that may send a route's message.
pub(super) fn senders(route: &Route, client_types: &[String]) -> Vec<String> {
    let everyone = route.send_type == SendType::ClientToServer && route.from.is_empty();
    if everyone { client_types.to_vec() } else { route.from.clone() }
}

fn queue_name(business: &str, queue: &QueueSettings) -> String {
    if queue.existing { queue.name.clone() } else { names::route_queue(business, &queue.name) }
}

fn sort(topology: &mut Topology) {
    topology.exchanges.sort();
    topology.queues.sort();
    topology.existing_queues.sort();
    topology.bindings.sort();
    topology.links.sort();
    topology.policies.sort_by(|a, b| a.name.cmp(&b.name));
}
