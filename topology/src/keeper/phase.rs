//! A declaration changes while edges run the former one: objects that they may still use are removed last.
//!
//! An edge decides by its configuration which queue a client's message is for. If that queue is unbound or deleted before the edge knows, the
//! message is acknowledged to the client and ends in `unrouted`, where no declared route takes it. So a change has two phases: first
//! everything is created ([`Phase::Grow`]), then the edges get their configuration, and at last the rest is removed ([`Phase::Shrink`]).
//!
//! Such objects are recognized by their shape and not by memory, so that a process that starts in the middle of a change knows them too:
//! queues and the exchange to which an edge may publish, and the stream that it may read. Anything else that should not
//! exist is removed immediately.

use std::collections::BTreeSet;

use wirepost_core::{names, topology::Intake};

use crate::{KeepReason, Problem, Step, actual};

/// How much of a plan may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Objects are created and changed. Objects that an edge with the former configuration may use stay.
    Grow,
    /// Those are removed too: no edge uses them any more.
    Shrink,
}

/// A plan's steps by phase.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Phases {
    pub(super) now: Vec<Step>,
    /// Those that wait for [`Phase::Shrink`].
    pub(super) later: Vec<Step>,
    /// The queues and the stream that stay until then, or until no edge uses them.
    kept: BTreeSet<String>,
}

impl Phases {
    /// Of a business with these intakes.
    pub(super) fn of(business: &str, intake: &[Intake], steps: Vec<Step>) -> Self {
        Self::with(business, intake, steps, |_| true)
    }

    /// Where every edge runs the same, with these queues, which are not declared any more.
    pub(super) fn while_in_use(business: &str, in_use: &BTreeSet<String>, steps: Vec<Step>) -> Self {
        Self::with(business, &[], steps, |queue| in_use.contains(queue))
    }

    fn with(business: &str, intake: &[Intake], steps: Vec<Step>, in_use: impl Fn(&str) -> bool) -> Self {
        let mut phases = Self::default();
        let (stream, share) = (names::stream(business), names::share_exchange(business));
        let (receipts, judge) = (names::receipts_stream(business), names::judge_exchange(business));
        for step in &steps {
            match step {
                Step::Unbind(binding) if may_be_published_to(business, binding) && in_use(&binding.destination) => {
                    phases.kept.insert(binding.destination.clone());
                }
                Step::DeleteStream(name) if *name == stream && in_use(name) => {
                    phases.kept.insert(stream.clone());
                }
                Step::DeleteStream(name) if *name == receipts && in_use(name) => {
                    phases.kept.insert(receipts.clone());
                }
                _ => {}
            }
        }
        let waits = |step: &Step| match step {
            Step::Unbind(binding) => {
                (may_be_published_to(business, binding) && in_use(&binding.destination))
                    || (binding.source == names::replay_exchange(business)
                        && phases.kept.contains(&binding.destination))
                    || (is_behind_push(business, binding) && in_use(&stream))
                    || is_by_route(business, intake, binding)
                    || (binding.destination == receipts && in_use(&receipts))
                    // What leads to another business goes at once: that one does not want it any more.
                    || (binding.source == share && binding.destination == names::push_exchange(business) && in_use(&share))
            }
            Step::DeleteExchange(name) => (*name == share && in_use(&share)) || (*name == judge && in_use(&receipts)),
            Step::DeleteQueue(name) | Step::DeleteStream(name) => phases.kept.contains(name),
            Step::DeletePolicy(name) => phases.kept.iter().any(|queue| names::is_policy_of(name, queue)),
            _ => false,
        };
        (phases.later, phases.now) = steps.into_iter().partition(waits);
        phases
    }

    /// The problems that name what stays.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.kept.iter().map(|queue| Problem::Kept { queue: queue.clone(), because: KeepReason::Edges })
    }
}

/// Whether it is as an edge's configuration makes it: from `receive` to a queue, by that queue's own key.
fn may_be_published_to(business: &str, binding: &actual::Binding) -> bool {
    binding.source == names::receive_exchange(business)
        && binding.destination_type == "queue"
        && binding.arguments.is_empty()
        && binding.routing_key == names::queue_key(&binding.destination)
}

/// Whether pushes to a stream go that way: directly, or to `unrouted` while that binding is missing.
fn is_behind_push(business: &str, binding: &actual::Binding) -> bool {
    let (source, to) = (&binding.source, &binding.destination);
    (*source == names::push_exchange(business) && *to == names::stream(business))
        || (*source == names::push_unrouted(business) && *to == names::unrouted(business))
}

/// Whether it is by a route's pattern, which edges of an older version rely on: without it their messages would make the detour over
/// `unrouted`.
fn is_by_route(business: &str, intake: &[Intake], binding: &actual::Binding) -> bool {
    let by_route = |intake: &Intake| binding.routing_key == intake.pattern && binding.destination == intake.queue;
    binding.source == names::receive_exchange(business) && intake.iter().any(by_route)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn unbind(source: &str, destination: &str, key: &str) -> Step {
        Step::Unbind(actual::Binding {
            source: source.to_owned(),
            destination: destination.to_owned(),
            destination_type: "queue".to_owned(),
            routing_key: key.to_owned(),
            arguments: Map::new(),
        })
    }

    #[test]
    fn what_an_edge_may_still_use_is_removed_last_and_what_no_edge_uses_immediately() {
        let own = "wirepost.pay.q.orders";
        let later = vec![
            unbind("wirepost.pay.receive", own, &names::queue_key(own)),
            unbind("wirepost.pay.replay", own, own),
            Step::DeleteQueue(own.to_owned()),
            Step::DeletePolicy(own.to_owned()),
            Step::DeletePolicy("wirepost.pay.room.orders".to_owned()),
            unbind("wirepost.pay.receive", "theirs", &names::queue_key("theirs")),
            unbind("wirepost.pay.receive", "wirepost.pay.q.new", "order.#"),
            unbind("wirepost.pay.push", "wirepost.pay.stream", ""),
            unbind("wirepost.pay.push.unrouted", "wirepost.pay.unrouted", ""),
            Step::DeleteStream("wirepost.pay.stream".to_owned()),
            Step::DeletePolicy("wirepost.pay.stream".to_owned()),
            unbind("wirepost.pay.share", "wirepost.pay.push", ""),
            Step::DeleteExchange("wirepost.pay.share".to_owned()),
        ];
        let now = vec![
            // Unbound before: it only waits to be emptied.
            Step::DeleteQueue("wirepost.pay.q.older".to_owned()),
            Step::DeletePolicy("wirepost.pay.q.older".to_owned()),
            Step::DeletePolicy("wirepost.pay.room.older".to_owned()),
            unbind("wirepost.pay.receive", "mine", "#"),
            unbind("wirepost.pay.events", "wirepost.pay.push", "#"),
            unbind("wirepost.pay.share", "wirepost.chat.push", ""),
            Step::DeleteStream("wirepost.pay.other".to_owned()),
            Step::DeleteUser { name: "wirepost.pay.1".to_owned(), last: false },
        ];
        let intake = Intake {
            pattern: "order.#".to_owned(),
            from: Vec::new(),
            queue: "wirepost.pay.q.new".to_owned(),
            schema: Some(json!({})),
        };
        let phases = Phases::of("pay", &[intake], [later.clone(), now.clone()].concat());
        assert_eq!((&phases.later, &phases.now), (&later, &now));
        let named: Vec<_> = phases.problems().collect();
        let kept = |queue: &str| Problem::Kept { queue: queue.to_owned(), because: KeepReason::Edges };
        assert_eq!(named, ["theirs", own, "wirepost.pay.stream"].map(kept));

        // A route waits, so one former queue is in use: its steps wait still, and no other's.
        let in_use = BTreeSet::from([own.to_owned()]);
        let phases = Phases::while_in_use("pay", &in_use, [later.clone(), now].concat());
        assert_eq!(phases.later, later[..5]);
        let stream = BTreeSet::from(["wirepost.pay.stream".to_owned()]);
        assert_eq!(Phases::while_in_use("pay", &stream, later.clone()).later, later[7..11]);
        let share = BTreeSet::from(["wirepost.pay.share".to_owned()]);
        assert_eq!(Phases::while_in_use("pay", &share, later.clone()).later, later[11..]);
    }
}
