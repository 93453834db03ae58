//! Limits and retentions as broker policies.
//!
//! Whenever a policy is set or deleted, the broker matches every object of the vhost against every policy (measured on 4.3.6: 0.8 us a pair;
//! with five policies for each of 100 businesses 0.4 s a call, so with 1,000 businesses 40 s). So the defaults are in policies that all
//! businesses share, and only limits that a declaration sets are in a policy of its own.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::retention::{quantity, retention, segment_bytes};
use crate::{
    business::{DEFAULT_QUEUE_BYTES, Queue},
    contract::edge_config::{MAX_SESSION_SECONDS, Retention},
    names,
    topology::{Policy, QueueKind},
};

/// Priority of a shared policy: above those that teams set by hand for everything (usually 0 to 100).
const SHARED_PRIORITY: i32 = 400;
/// Priority of a single queue's policy, with room above for a platform team that wants to override one, which is then reported.
const OWN_PRIORITY: i32 = 500;
/// Most messages of a route's queue where the declaration names no `maxLength`.
pub(crate) const DEFAULT_MAX_LENGTH: i64 = 1_000_000;
/// Failed deliveries where the declaration names no `deliveryLimit`; RabbitMQ 4's own default.
const DEFAULT_DELIVERY_LIMIT: i64 = 20;
/// No delivery limit, in effect. Not -1: on RabbitMQ 4.0 a queue without a limit requeues a message behind the others (measured; with any
/// limit, and always on 4.3, it is requeued at its position).
const KEEP_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// Most messages of `dead` and of `unrouted`.
const KEEP_MAX_LENGTH: i64 = 1_000_000;
/// Most bytes of `dead` and of `unrouted`.
const KEEP_MAX_BYTES: i64 = 1 << 30;

/// Members of a quorum queue and replicas of a stream on a broker of at least this many nodes; RabbitMQ's own default for a new queue, while
/// a stream would get one on every node. A broker whose membership reconciliation is switched on follows it too
/// (rabbitmq.com/docs/quorum-queues, "Continuous Membership Reconciliation").
pub const GROUP_SIZE: usize = 3;
/// Where the leader of a new queue or stream is. RabbitMQ's own default is the node that declares it: one for all, since one operator does.
const LEADER_LOCATOR: &str = "balanced";
/// Most messages and bytes of a queue that a business declares itself for its events.
const EVENTS_MAX_LENGTH: i64 = 1_000_000;
const EVENTS_MAX_BYTES: i64 = 256 << 20;
/// The control stream keeps a revocation for longer than any session lasts, and more of them than a business revokes by hand. Small
/// segments, since the broker reclaims whole ones.
const CONTROL_RETENTION: Retention = Retention { seconds: MAX_SESSION_SECONDS + 86_400, bytes: 64 << 20 };

/// Receipts are judged at most an hour after their push, and a while later if all edges were away. Larger than many of
/// them need: only what was written takes room.
const RECEIPTS_RETENTION: Retention = Retention { seconds: 4 * 3_600, bytes: RECEIPTS_BYTES };
/// See [`RECEIPTS_RETENTION`].
pub(crate) const RECEIPTS_BYTES: u64 = 256 << 20;

/// Indices into [`SHARED`].
const KEEPERS: usize = 0;
const QUEUES: usize = 1;
const STREAMS: usize = 2;
const RECEIPTS: usize = 3;

static SHARED: LazyLock<[Policy; 7]> = LazyLock::new(|| {
    let shared = |name: &str, rest: &str, apply_to, definition| Policy {
        name: format!("{}{name}", names::PREFIX),
        // Only the business varies, which contains no dot.
        pattern: format!(r"^wirepost\.[a-z0-9-]+\.{rest}$"),
        apply_to,
        priority: SHARED_PRIORITY,
        definition,
    };
    [
        shared("keepers", "(dead|unrouted)", applies_to(QueueKind::Quorum), keeper()),
        shared("queues", r"q\..+", applies_to(QueueKind::Quorum), queue(&Queue::default())),
        shared("streams", "stream", applies_to(QueueKind::Stream), stream(retention(None))),
        shared("receipts", "receipts", applies_to(QueueKind::Stream), stream(RECEIPTS_RETENTION)),
        // Of either type: their owners choose it. Not streams: those would drop their oldest messages.
        shared("events", r"events\..+", "classic_queues", events()),
        shared("events-quorum", r"events\..+", applies_to(QueueKind::Quorum), events()),
        Policy {
            name: names::CONTROL.to_owned(),
            pattern: names::exact_pattern(names::CONTROL),
            apply_to: applies_to(QueueKind::Stream),
            priority: SHARED_PRIORITY,
            definition: stream(CONTROL_RETENTION),
        },
    ]
});

/// The policies of the vhost that apply to every business's objects without a policy of their own, and that of the
/// [control stream](names::CONTROL). Their names contain no business.
pub fn shared_policies() -> &'static [Policy] {
    &*SHARED
}

/// The shared policy that applies to a queue or stream of ours.
pub fn shared_policy_of(queue: &str) -> Option<&'static Policy> {
    let business = names::owner(queue)?;
    let index = if queue == names::dead_queue(business) || queue == names::unrouted(business) {
        KEEPERS
    } else if queue.starts_with(&names::route_queue(business, "")) {
        QUEUES
    } else if queue == names::stream(business) {
        STREAMS
    } else if queue == names::receipts_stream(business) {
        RECEIPTS
    } else {
        return None;
    };
    Some(&SHARED[index])
}

/// The policy of a route's queue, if it has settings of its own.
pub(super) fn of_queue(name: &str, settings: &Queue) -> Option<Policy> {
    own(name, QueueKind::Quorum, queue(settings))
}

/// The policy of a stream, if it has a retention of its own.
pub(super) fn of_stream(name: &str, retention: Retention) -> Option<Policy> {
    own(name, QueueKind::Stream, stream(retention))
}

fn own(name: &str, kind: QueueKind, definition: Map<String, Value>) -> Option<Policy> {
    let differs = shared_policy_of(name).is_none_or(|shared| shared.definition != definition);
    differs.then(|| Policy {
        name: name.to_owned(),
        pattern: names::exact_pattern(name),
        apply_to: applies_to(kind),
        priority: OWN_PRIORITY,
        definition,
    })
}

fn applies_to(kind: QueueKind) -> &'static str {
    match kind {
        QueueKind::Quorum => "quorum_queues",
        QueueKind::Stream => "streams",
    }
}

/// `unrouted` and `dead` keep what would be lost. At their bound they refuse, so that the publisher sees it: an unrouted message is not
/// confirmed, a dead one stays in its queue (at-least-once dead-lettering). No delivery limit: a consumer that crashes on a dead message
/// must not lose it.
fn keeper() -> Map<String, Value> {
    definition([
        ("delivery-limit", json!(KEEP_DELIVERY_LIMIT)),
        ("max-length", json!(KEEP_MAX_LENGTH)),
        ("max-length-bytes", json!(KEEP_MAX_BYTES)),
        ("overflow", json!("reject-publish")),
        ("queue-leader-locator", json!(LEADER_LOCATOR)),
        ("target-group-size", json!(GROUP_SIZE)),
    ])
}

/// At-least-once dead-lettering needs `reject-publish`; with `drop-head` the broker falls back to at-most-once
/// (rabbitmq.com/docs/quorum-queues, "Dead Lettering").
///
/// So a queue above a new, lower limit keeps its messages, and refuses new ones until it is below.
fn queue(settings: &Queue) -> Map<String, Value> {
    let declared = settings.max_length_bytes.as_deref().and_then(quantity);
    // Validation has rejected a malformed size.
    let bytes = declared.or_else(|| quantity(DEFAULT_QUEUE_BYTES)).unwrap_or(1 << 30);
    let mut definition = definition([
        ("dead-letter-strategy", json!("at-least-once")),
        ("delivery-limit", json!(settings.delivery_limit.unwrap_or(DEFAULT_DELIVERY_LIMIT))),
        ("max-length", json!(settings.max_length.unwrap_or(DEFAULT_MAX_LENGTH))),
        ("max-length-bytes", json!(bytes)),
        ("overflow", json!("reject-publish")),
        ("queue-leader-locator", json!(LEADER_LOCATOR)),
        ("target-group-size", json!(GROUP_SIZE)),
    ]);
    if let Some(seconds) = settings.message_ttl_seconds {
        definition.insert("message-ttl".to_owned(), json!(seconds * 1000));
    }
    definition
}

/// A listener that has stopped must not fill the disk for everyone. It misses the newest events, and keeps those that it had before this
/// policy (`drop-head` would have deleted them).
fn events() -> Map<String, Value> {
    definition([
        ("max-length", json!(EVENTS_MAX_LENGTH)),
        ("max-length-bytes", json!(EVENTS_MAX_BYTES)),
        ("overflow", json!("reject-publish")),
    ])
}

fn stream(retention: Retention) -> Map<String, Value> {
    definition([
        ("initial-cluster-size", json!(GROUP_SIZE)),
        ("max-age", json!(format!("{}s", retention.seconds))),
        ("max-length-bytes", json!(retention.bytes)),
        ("queue-leader-locator", json!(LEADER_LOCATOR)),
        ("stream-max-segment-size-bytes", json!(segment_bytes(retention))),
    ])
}

fn definition<const N: usize>(settings: [(&str, Value); N]) -> Map<String, Value> {
    settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a change destroys is looked for in streams alone.
    #[test]
    fn no_policy_of_a_queue_drops_what_it_holds() {
        let small = Queue { max_length: Some(1), message_ttl_seconds: Some(1), ..Queue::default() };
        let own = of_queue("wirepost.pay.q.a", &small).unwrap();
        for policy in shared_policies().iter().chain([&own]).filter(|policy| policy.apply_to != "streams") {
            assert_eq!(policy.definition["overflow"], "reject-publish", "{}", policy.name);
            assert!(!policy.definition.contains_key("expires"), "{}", policy.name);
        }
    }
}
