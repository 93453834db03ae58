//! An upgrade that brings a default limit in bytes makes no queue refuse messages that it accepted before.
//!
//! A queue that contains more than the default at that moment gets a policy of its own, with a higher priority than the others, which differs
//! from them in the bytes only. The only record of it is the policy itself: [`kept`] finds it in each snapshot and keeps the rest of it as
//! declared. It is deleted when the declaration sets the bytes of the queue, or when the queue contains less than half of the default
//! ([`emptied`]).

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use wirepost_core::names;
use wirepost_core::topology::{Policy, QueueKind, Topology, shared_policy_of};
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::actual;
use crate::error::Error;
use crate::report::Problem;
use crate::snapshot::Snapshot;
use crate::step::Step;
use crate::write::{WriteError, Writer};

const BYTES: &str = "max-length-bytes";
/// Above a queue's own policy (500).
const PRIORITY: i32 = 510;
/// A queue may contain twice as much as it contained, rounded up to whole GiB: that is bounded, and gives its team time.
const ROUNDED_TO: u64 = 1 << 30;
/// Queues that are checked together.
const MAX_LOOKS: usize = 50;

/// The shared policy for the queues of routes.
fn shared() -> Option<&'static Policy> {
    let any = names::route_queue("any", "any");
    shared_policy_of(&any)
}

/// Bytes that the queue of a route may contain by default.
pub(crate) fn default_bytes() -> u64 {
    shared().and_then(|policy| policy.definition.get(BYTES)?.as_u64()).unwrap_or(u64::MAX)
}

/// The policy that gives `queue` more room: like `others`, except for the bytes.
fn policy(queue: &str, others: &Map<String, Value>, bytes: Option<u64>) -> Option<Policy> {
    let mut definition = others.clone();
    definition.remove(BYTES);
    definition.extend(bytes.map(|bytes| (BYTES.to_owned(), json!(bytes))));
    let (name, pattern) = (names::room_policy(queue)?, names::exact_pattern(queue));
    Some(Policy { name, pattern, apply_to: "quorum_queues", priority: PRIORITY, definition })
}

/// The desired topology, with the policies that give queues more room and are still needed; `None`: there are none.
pub(crate) fn kept(desired: &Topology, there: &[&actual::Policy]) -> Option<Topology> {
    let mut with_room = None;
    for queue in desired.queues.iter().filter(|queue| queue.kind == QueueKind::Quorum) {
        let Some(name) = names::room_policy(&queue.name) else { continue };
        let Some(is) = there.iter().find(|policy| policy.name == name) else { continue };
        if desired.bounded.contains(&queue.name) {
            continue;
        }
        let bytes = is.definition.get(BYTES).and_then(Value::as_u64);
        let others = desired.policy_of(&queue.name).map(|policy| &policy.definition);
        if let Some(policy) = others.and_then(|others| policy(&queue.name, others, bytes)) {
            with_room.get_or_insert_with(|| desired.clone()).policies.push(policy);
        }
    }
    with_room
}

/// Queues that have more room than is declared.
pub(crate) fn problems(desired: &Topology) -> Vec<Problem> {
    if desired.policies.is_empty() {
        return Vec::new();
    }
    let of = |queue: &str| {
        let name = names::room_policy(queue)?;
        let policy = desired.policies.iter().find(|policy| policy.name == name)?;
        let bytes = policy.definition.get(BYTES).and_then(Value::as_u64);
        Some(Problem::MoreRoom { queue: queue.to_owned(), bytes, default: default_bytes() })
    };
    desired.queues.iter().filter_map(|queue| of(&queue.name)).collect()
}

#[derive(Deserialize)]
struct Size {
    #[serde(default)]
    name: String,
    /// Absent where statistics are off or not counted yet.
    #[serde(default)]
    message_bytes: Option<u64>,
    /// Ready and unacknowledged ones.
    #[serde(default)]
    messages: Option<u64>,
}

impl Snapshot {
    /// Whether queues without a limit in bytes are about to get the default: the shared policy is still the one of an older version.
    pub fn is_without_bytes(&self) -> bool {
        let Some(shared) = shared() else { return false };
        self.shared_policies().iter().any(|is| is.name == shared.name && !is.definition.contains_key(BYTES))
    }

    /// Gives more room to each queue of a route that contains more bytes than `above`, or may. Called before policies bring that limit.
    ///
    /// # Errors
    /// Not all of it was done.
    pub async fn leave_room(
        &self,
        management: &ManagementClient,
        above: u64,
        gate: Option<&(dyn Fn() -> bool + Send + Sync)>,
    ) -> Result<(), Error> {
        let doing = "reading the sizes of queues";
        let list = async |query: &str| -> Result<Vec<Size>, Error> {
            let sizes = management.get(doing, &["queues", management.vhost()], query).await;
            Ok(sizes.map_err(|e| e.into_error(doing, "is this a RabbitMQ 4?"))?)
        };
        let queues: HashSet<&str> = self.route_queues().collect();
        let mut full: HashMap<String, Option<u64>> = HashMap::new();
        for size in list("columns=name,message_bytes").await? {
            if queues.contains(size.name.as_str()) && size.message_bytes.is_none_or(|bytes| bytes > above) {
                full.insert(size.name, size.message_bytes);
            }
        }
        if full.values().any(Option::is_none) {
            // Counted by the queues themselves.
            for size in list("disable_stats=true&enable_queue_totals=true&columns=name,messages").await? {
                if size.messages == Some(0) && full.get(&size.name).is_some_and(Option::is_none) {
                    full.remove(&size.name);
                }
            }
        }
        for (queue, bytes) in full {
            let room = bytes.map(|bytes| bytes.saturating_mul(2).div_ceil(ROUNDED_TO).saturating_mul(ROUNDED_TO));
            let Some(policy) = self.definition_of(&queue).and_then(|others| policy(&queue, others, room)) else {
                continue;
            };
            tracing::warn!(
                queue,
                bytes,
                room,
                "a queue contains more bytes than the new default limit; it keeps more room until its consumers have caught up"
            );
            let step = Step::PutPolicy(policy);
            let doing = step.to_string();
            match (Writer { management, gate, guard: false }).carry_out(&doing, &step).await {
                Ok(()) => {}
                Err(WriteError::Stopped) => return Err(Error::Stopped { doing }),
                Err(WriteError::Call(error)) => {
                    return Err(error.into_error(&doing, "the policy is needed before others").into());
                }
            }
        }
        Ok(())
    }
}

/// Steps that delete the policies of queues that contain less than half of `default` by now.
pub(crate) async fn emptied(management: &ManagementClient, queues: &[String], default: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for queue in queues.iter().take(MAX_LOOKS) {
        let doing = format!("reading the size of queue {queue}");
        let path = ["queues", management.vhost(), queue];
        let size: Result<Size, CallError> = management.get(&doing, &path, "columns=message_bytes").await;
        let Ok(Size { message_bytes: Some(bytes), .. }) = size else { continue };
        if bytes < default / 2 {
            steps.extend(names::room_policy(queue).map(Step::DeletePolicy));
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use wirepost_core::topology::Queue;

    use super::*;

    fn topology(bounded: bool) -> Topology {
        let name = "wirepost.pay.q.orders".to_owned();
        let bounded = if bounded { vec![name.clone()] } else { vec![] };
        let queues = vec![Queue { name, kind: QueueKind::Quorum, dead_letter: None }];
        Topology { queues, bounded, ..Topology::default() }
    }

    #[test]
    fn room_stays_with_the_rest_of_the_declaration_until_that_says_how_many_bytes() {
        let room = actual::Policy {
            name: "wirepost.pay.room.orders".to_owned(),
            pattern: String::new(),
            apply_to: "quorum_queues".to_owned(),
            priority: 1,
            definition: Map::from_iter([(BYTES.to_owned(), json!(5_u64 << 30)), ("max-length".to_owned(), json!(7))]),
        };
        let kept = kept(&topology(false), &[&room]).unwrap();
        let policy = kept.policy_of("wirepost.pay.q.orders").unwrap();
        assert_eq!((policy.name.as_str(), policy.priority), ("wirepost.pay.room.orders", PRIORITY));
        assert_eq!(policy.definition[BYTES], json!(5_u64 << 30));
        assert_eq!(policy.definition["max-length"], json!(1_000_000), "not what it was");
        assert!(matches!(&problems(&kept)[..], [Problem::MoreRoom { bytes: Some(_), .. }]));
        assert_eq!(super::kept(&topology(true), &[&room]), None);
        assert_eq!((super::kept(&topology(false), &[]), default_bytes()), (None, 1 << 30));
    }
}
