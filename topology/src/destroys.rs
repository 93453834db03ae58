//! Which messages on the broker a plan would destroy immediately. This is decided by what the broker has: a resource that was created again,
//! a new process and a class with another default know nothing of it.
//!
//! Only streams lose messages through a policy. Our policies for queues refuse new messages at the limit and drop none that a queue has, and
//! a queue is deleted only when it is empty ([`crate::depth`]).

use serde_json::{Map, Value};
use wirepost_core::destruction::{Destruction, cuts};
use wirepost_core::names;
use wirepost_core::topology::{Policy, Topology, shared_policies, shared_policy_of};

use crate::actual;
use crate::control::Control;
use crate::plan::{Objects, Plan, is_as_declared, queue_kind};
use crate::report::Problem;
use crate::step::Step;

/// The streams of a plan's businesses, and what is in force on them.
pub(crate) struct Streams<'a> {
    names: Vec<&'a str>,
    own: &'a [&'a actual::Policy],
    /// The shared policies that exist.
    shared: &'a [actual::Policy],
}

impl<'a> Streams<'a> {
    pub(crate) fn of(objects: &'a Objects<'_>, shared: &'a [actual::Policy]) -> Self {
        let streams = objects.queues.iter().filter(|queue| queue_kind(&queue.arguments) == "stream");
        Self { names: streams.map(|queue| queue.name.as_str()).collect(), own: &objects.policies, shared }
    }

    /// Adds to a plan what its steps destroy, and the shared policies that are not set because they would destroy messages.
    pub(crate) fn judge(&self, plan: &mut Plan, desired: &Topology) {
        plan.destroys =
            plan.steps.iter().flat_map(|step| self.destroys(step, desired).map(|what| (step.clone(), what))).collect();
        let by_shared = self.names.iter().filter(|stream| {
            desired.queues.iter().any(|queue| queue.name == **stream)
                && !desired.policies.iter().any(|own| own.name == **stream)
                && self.own_policy(stream).is_none()
        });
        for stream in by_shared {
            let Some(should) = shared_policy_of(stream) else { continue };
            let all = cuts(stream, self.in_force(stream).unwrap_or(&should.definition), &should.definition);
            let held = |destruction| Problem::Held { destruction, shared: Some(should.name.clone()) };
            plan.problems.extend(all.into_iter().map(held));
        }
    }

    /// What one step destroys. A new kind of step must be listed here.
    fn destroys(&self, step: &Step, desired: &Topology) -> impl Iterator<Item = Destruction> + use<> {
        let all = match step {
            Step::PutPolicy(policy) => self.cut(&policy.name, &policy.definition),
            // The shared policy applies instead. The policy of a stream that is not declared is deleted with the stream.
            Step::DeletePolicy(name) if desired.queues.iter().any(|queue| queue.name == *name) => {
                shared_policy_of(name).map(|shared| self.cut(name, &shared.definition)).unwrap_or_default()
            }
            // Copies of events, which the business has had.
            Step::DeleteStream(stream) if names::is_receipts_stream(stream) => Vec::new(),
            Step::DeleteStream(stream) => vec![Destruction::Stream { stream: stream.clone() }],
            // Deleted only if it is empty by its own count and by statistics.
            Step::DeleteQueue(_)
            // These contain no messages.
            | Step::DeletePolicy(_)
            | Step::DeleteExchange(_)
            | Step::DeleteUser { .. }
            | Step::Unbind(_)
            | Step::MarkBusiness { .. }
            | Step::UnmarkBusiness(_)
            | Step::PutQueue(_)
            | Step::PutExchange(_)
            | Step::Bind(_)
            | Step::PutUser(_)
            | Step::PutPermissions(_)
            | Step::Link(_)
            | Step::PutUserLimits(_) => Vec::new(),
        };
        all.into_iter()
    }

    /// What a stream loses once this definition is in force.
    fn cut(&self, stream: &str, should: &Map<String, Value>) -> Vec<Destruction> {
        if !self.names.contains(&stream) {
            return Vec::new();
        }
        self.in_force(stream).map(|is| cuts(stream, is, should)).unwrap_or_default()
    }

    /// What our policy on a stream sets. `None`: there is no such policy. Every version of wirepost sets one, so an administrator has deleted
    /// it, and nothing was promised since.
    fn in_force(&self, stream: &str) -> Option<&Map<String, Value>> {
        let shared = || {
            let declared = shared_policy_of(stream)?;
            self.shared.iter().find(|is| covers(is, declared))
        };
        self.own_policy(stream).or_else(shared).map(|policy| &policy.definition)
    }

    fn own_policy(&self, stream: &str) -> Option<&actual::Policy> {
        let pattern = names::exact_pattern(stream);
        self.own.iter().copied().find(|own| own.name == stream && own.pattern == pattern && own.apply_to == "streams")
    }
}

/// Whether it is this policy and applies to the same objects, whatever it sets.
fn covers(is: &actual::Policy, declared: &Policy) -> bool {
    is.name == declared.name && is.pattern == declared.pattern && is.apply_to == declared.apply_to
}

/// Corrects the shared policies, except for one that would shorten a stream: it affects every business, so no single business can allow it;
/// and creates what edges tell each other by. `there`: the policies of the vhost, including foreign ones; `streams`: the streams without a
/// policy of their own; `control`: what exists of the latter.
pub(crate) fn plan_shared<'a>(
    there: &[actual::Policy],
    mut streams: impl Iterator<Item = &'a str>,
    control: Control,
) -> Plan {
    let mut plan = Plan::default();
    let stream = streams.next();
    for policy in shared_policies() {
        let is = there.iter().find(|is| is.name == policy.name);
        if is.is_some_and(|is| is_as_declared(is, policy)) {
            continue;
        }
        let cut = is.filter(|is| policy.apply_to == "streams" && covers(is, policy)).zip(stream);
        let cut = cut.and_then(|(is, stream)| cuts(stream, &is.definition, &policy.definition).into_iter().next());
        match cut {
            Some(destruction) => {
                plan.problems.push(Problem::Held { destruction, shared: Some(policy.name.clone()) });
            }
            None => plan.steps.push(Step::PutPolicy(policy.clone())),
        }
    }
    plan.steps.extend(control.missing());
    plan
}
