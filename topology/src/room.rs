//! An upgrade that brings a default limit in bytes makes no queue refuse messages that it accepted before.
//!
//! A queue that contains more than the default at that moment gets a policy of its own, with a higher priority than the others, which differs
//! from them in the bytes only: twice what it contains. Where the broker has no statistics of it the size is estimated, and corrected once
//! there are some. The only record of it is the policy itself: [`kept`] finds it in each snapshot and keeps the rest of it as declared. It is
//! deleted when the declaration sets the bytes of the queue, or when two checks in a row find less than half of the default in it
//! ([`Snapshot::room_corrections`]).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};
use wirepost_core::names;
use wirepost_core::topology::{Policy, QueueKind, Topology, shared_policy_of};
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::actual;
use crate::depth::LOOKS_APART;
use crate::error::Error;
use crate::report::Problem;
use crate::snapshot::Snapshot;
use crate::step::Step;
use crate::write::{WriteError, Writer};

const BYTES: &str = "max-length-bytes";
const MESSAGES: &str = "max-length";
/// Above a queue's own policy (500).
const PRIORITY: i32 = 510;
/// The same for one whose bytes are an estimate.
const ESTIMATED_PRIORITY: i32 = 511;
/// A queue may contain twice as much as it contained, rounded up to whole GiB: that is bounded, and gives its team time.
const ROUNDED_TO: u64 = 1 << 30;
/// Bytes of a message where only the number of messages is known: the most that a declaration lets a client send, with its envelope.
const MOST_OF_A_MESSAGE: u64 = (1 << 20) + (64 << 10);
/// Queues that are checked together; the others follow with the next sweeps.
const MAX_CHECKS: usize = 50;
/// How long to wait for statistics that do not exist yet, as after a start of the broker.
const STATISTICS_TIMEOUT: Duration = Duration::from_secs(12);
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);

/// The shared policy for the queues of routes.
fn shared() -> Option<&'static Policy> {
    let any = names::route_queue("any", "any");
    shared_policy_of(&any)
}

/// Bytes that the queue of a route may contain by default.
pub(crate) fn default_bytes() -> u64 {
    shared().and_then(|policy| policy.definition.get(BYTES)?.as_u64()).unwrap_or(u64::MAX)
}

/// How much a policy lets a queue contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    /// `None`: any number, as older versions wrote it where statistics were missing.
    bytes: Option<u64>,
    /// Statistics were missing.
    estimated: bool,
}

impl Room {
    fn of(policy: &actual::Policy) -> Self {
        let bytes = policy.definition.get(BYTES).and_then(Value::as_u64);
        Self { bytes, estimated: bytes.is_none() || policy.priority == ESTIMATED_PRIORITY }
    }

    /// Twice the size of a queue whose policy would otherwise be `others`.
    fn for_size(size: &Size, others: &Map<String, Value>) -> Self {
        let twice = |bytes: u64| Some(bytes.saturating_mul(2).div_ceil(ROUNDED_TO).saturating_mul(ROUNDED_TO));
        if let Some(bytes) = size.message_bytes {
            return Self { bytes: twice(bytes), estimated: false };
        }
        // No queue contains more messages: the shared policy has always limited them.
        let most = others.get(MESSAGES).and_then(Value::as_u64).unwrap_or(1_000_000);
        Self { bytes: twice(size.messages.unwrap_or(most).saturating_mul(MOST_OF_A_MESSAGE)), estimated: true }
    }

    /// The policy that gives `queue` this room: like `others`, except for the bytes.
    fn policy(self, queue: &str, others: &Map<String, Value>) -> Option<Policy> {
        let mut definition = others.clone();
        definition.remove(BYTES);
        definition.extend(self.bytes.map(|bytes| (BYTES.to_owned(), json!(bytes))));
        let (name, pattern) = (names::room_policy(queue)?, names::exact_pattern(queue));
        let priority = if self.estimated { ESTIMATED_PRIORITY } else { PRIORITY };
        Some(Policy { name, pattern, apply_to: "quorum_queues", priority, definition })
    }
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
        let others = desired.policy_of(&queue.name).map(|policy| &policy.definition);
        if let Some(policy) = others.and_then(|others| Room::of(is).policy(&queue.name, others)) {
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

/// How much a queue contains.
#[derive(Clone, Debug, Default, Deserialize)]
struct Size {
    #[serde(default)]
    name: String,
    /// Absent where statistics are off, or do not exist yet.
    #[serde(default)]
    message_bytes: Option<u64>,
    /// Of all kinds.
    #[serde(default)]
    messages: Option<u64>,
}

impl Size {
    /// Whether it certainly contains less than this.
    fn is_below(&self, bytes: u64) -> bool {
        self.message_bytes.or(self.messages.filter(|messages| *messages == 0)).is_some_and(|is| is < bytes)
    }
}

/// A queue with a policy that gives it more room.
#[derive(Clone, Debug)]
pub(crate) struct WithRoom {
    pub(crate) queue: String,
    pub(crate) policy: actual::Policy,
}

impl Snapshot {
    /// Whether queues without a limit in bytes are about to get the default: the shared policy is still the one of an older version.
    pub fn is_without_bytes(&self) -> bool {
        let Some(shared) = shared() else { return false };
        self.shared_policies().iter().any(|is| is.name == shared.name && !is.definition.contains_key(BYTES))
    }

    /// Gives more room to each queue of a route that contains more than `above` bytes, or may. Called before a policy brings that limit. Waits
    /// some seconds for statistics that do not exist yet, as after a start of the broker.
    ///
    /// # Errors
    /// Not all of it was done.
    pub async fn leave_room(
        &self,
        management: &ManagementClient,
        above: u64,
        gate: Option<&(dyn Fn() -> bool + Send + Sync)>,
    ) -> Result<(), Error> {
        let queues: HashSet<&str> = self.route_queues().collect();
        let deadline = Instant::now() + STATISTICS_TIMEOUT;
        let mut full: HashMap<String, Size> = loop {
            let sizes = sizes(management, "columns=name,message_bytes").await?.into_iter();
            let sizes = sizes.filter(|size| queues.contains(size.name.as_str()));
            let found: HashMap<String, Size> = sizes.map(|size| (size.name.clone(), size)).collect();
            if Instant::now() >= deadline || found.values().all(|size| size.message_bytes.is_some()) {
                break found;
            }
            sleep(STATISTICS_INTERVAL).await;
        };
        if full.values().any(|size| size.message_bytes.is_none()) {
            for size in sizes(management, TOTALS).await? {
                if let Some(known) = full.get_mut(&size.name) {
                    known.messages = size.messages;
                }
            }
        }
        full.retain(|_, size| !size.is_below(above.saturating_add(1)));
        for (queue, size) in full {
            let Some(others) = self.definition_of(&queue) else { continue };
            let room = Room::for_size(&size, others);
            let Some(policy) = room.policy(&queue, others) else { continue };
            let (bytes, room, estimated) = (size.message_bytes, room.bytes, room.estimated);
            tracing::warn!(
                queue,
                bytes,
                room,
                estimated,
                "a queue contains more than the default limit, which it does not get yet"
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

    /// What to change in the policies that give queues more room: the policy of a queue that contained less than half of `default` in two
    /// checks, some seconds apart, is deleted; an estimate becomes twice the size. Checks a few queues, those after the queue `after`, and
    /// returns which one was the last.
    pub async fn room_corrections(
        &self,
        management: &ManagementClient,
        default: u64,
        after: Option<&str>,
    ) -> (Vec<Step>, Option<String>) {
        let (queues, last) = next_checks(self.with_room(), after);
        (corrections(management, queues, default).await, last)
    }
}

/// Counted by the queues themselves, with or without statistics.
const TOTALS: &str = "disable_stats=true&enable_queue_totals=true&columns=name,messages";

async fn sizes(management: &ManagementClient, query: &str) -> Result<Vec<Size>, Error> {
    let doing = "reading how much queues contain";
    let sizes = management.get(doing, &["queues", management.vhost()], query).await;
    Ok(sizes.map_err(|error: CallError| error.into_error(doing, "is this a RabbitMQ 4?"))?)
}

/// How much one queue contains; what can't be read is unknown.
async fn size(management: &ManagementClient, queue: &str) -> Size {
    let doing = format!("reading how much {queue} contains");
    let path = ["queues", management.vhost(), queue];
    let read = async |query| management.get::<Size>(&doing, &path, query).await.unwrap_or_default();
    let known = read("columns=message_bytes").await;
    if known.message_bytes.is_some() {
        known
    } else {
        read("disable_stats=true&enable_queue_totals=true&columns=messages").await
    }
}

/// See [`Snapshot::room_corrections`].
async fn corrections(management: &ManagementClient, queues: Vec<WithRoom>, default: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut emptied = Vec::new();
    for WithRoom { queue, policy } in queues {
        let size = size(management, &queue).await;
        if size.is_below(default / 2) {
            emptied.push(queue);
            continue;
        }
        let (is, should) = (Room::of(&policy), Room::for_size(&size, &policy.definition));
        // An estimate replaces no bound at all, and a size replaces an estimate.
        if is.estimated && (!should.estimated || is.bytes.is_none()) {
            steps.extend(should.policy(&queue, &policy.definition).map(Step::PutPolicy));
        }
    }
    if !emptied.is_empty() {
        sleep(LOOKS_APART).await;
    }
    for queue in emptied {
        if size(management, &queue).await.is_below(default / 2) {
            steps.extend(names::room_policy(&queue).map(Step::DeletePolicy));
        }
    }
    steps
}

/// The next few queues after this one, in a circle, and the last of them.
fn next_checks(mut queues: Vec<WithRoom>, after: Option<&str>) -> (Vec<WithRoom>, Option<String>) {
    queues.sort_by(|a, b| a.queue.cmp(&b.queue));
    let first = queues.iter().position(|it| Some(it.queue.as_str()) > after).unwrap_or_default();
    queues.rotate_left(first);
    queues.truncate(MAX_CHECKS);
    let last = queues.last().map(|it| it.queue.clone());
    (queues, last)
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
        let estimated =
            super::kept(&topology(false), &[&actual::Policy { priority: ESTIMATED_PRIORITY, ..room.clone() }]);
        assert_eq!(estimated.unwrap().policy_of("wirepost.pay.q.orders").unwrap().priority, ESTIMATED_PRIORITY);
        assert_eq!(super::kept(&topology(true), &[&room]), None);
        assert_eq!((super::kept(&topology(false), &[]), default_bytes()), (None, 1 << 30));
    }

    #[test]
    fn room_is_twice_the_size_and_a_bounded_estimate_where_that_is_not_known() {
        let others = Map::from_iter([(MESSAGES.to_owned(), json!(5_000))]);
        let room = |message_bytes, messages| {
            let Room { bytes, estimated } =
                Room::for_size(&Size { name: String::new(), message_bytes, messages }, &others);
            (bytes.map(|bytes| bytes >> 30), estimated)
        };
        assert_eq!(room(Some(3 << 29), None), (Some(3), false));
        assert_eq!(room(None, Some(1_000)), (Some(3), true));
        assert_eq!(room(None, None), (Some(11), true), "as many messages as it may have");
        let below = |message_bytes, messages| Size { name: String::new(), message_bytes, messages }.is_below(10);
        assert_eq!([below(Some(9), None), below(Some(10), None), below(None, Some(0))], [true, false, true]);
        assert!(!below(None, Some(1)) && !below(None, None), "it is not known");
    }

    #[test]
    fn every_queue_has_its_turn() {
        let with_room = |name: usize| WithRoom {
            queue: format!("q{name:03}"),
            policy: actual::Policy {
                name: String::new(),
                pattern: String::new(),
                apply_to: String::new(),
                priority: 0,
                definition: Map::new(),
            },
        };
        let all = || (0..MAX_CHECKS + 10).map(with_room).collect::<Vec<_>>();
        let (first, last) = next_checks(all(), None);
        assert_eq!((first.len(), last.as_deref()), (MAX_CHECKS, Some("q049")));
        let (second, _) = next_checks(all(), last.as_deref());
        let names: Vec<&str> = second.iter().map(|it| it.queue.as_str()).collect();
        assert_eq!((names[0], names[10], names.len()), ("q050", "q000", MAX_CHECKS));
        assert_eq!(next_checks(all(), Some("q999")).0[0].queue, "q000");
        assert_eq!(next_checks(Vec::new(), Some("q0")).1, None);
    }
}
