//! The difference between a topology and a vhost, in an order in which it can be applied without losing a message.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};
use wirepost_core::destruction::Destruction;
use wirepost_core::names;
use wirepost_core::topology::{
    Exchange, ExchangeKind, Link, Policy, Queue, QueueKind, Topology, shared_policies, shared_policy_of,
};

use crate::actual::{self, Accounts, Actual};
use crate::bindings::{is_declared_elsewhere, plan_bindings};
use crate::control::Control;
use crate::destroys::{Streams, plan_shared};
use crate::open;
use crate::report::Problem;
use crate::room;
use crate::step::Step;
use crate::users::DesiredUser;

/// Whose objects are compared; all others are left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Every object with our prefix: what is not desired is deleted. So a business whose newest declaration is rejected must be in `desired`
    /// with its last accepted topology.
    Everything,
    /// The objects of this business only.
    Business(&'a str),
}

impl Scope<'_> {
    fn contains(self, object: &str) -> bool {
        match (self, names::owner(object)) {
            (_, None) => false,
            (Self::Everything, Some(_)) => true,
            (Self::Business(business), Some(owner)) => business == owner,
        }
    }
}

/// What must be done, and what can't be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order: first what is created, then what is deleted.
    pub steps: Vec<Step>,
    /// What no step can repair.
    pub problems: Vec<Problem>,
    /// Steps that destroy messages at once, with what they destroy. Nothing of it is done without a person's word.
    pub destroys: Vec<(Step, Destruction)>,
    /// Foreign policies could win over ours, or limit them.
    pub foreign_policies_may_win: bool,
    /// Queues and the policies that must be in force on them after the steps. Empty if there are no steps and no foreign policy could
    /// interfere.
    pub(crate) to_verify: Vec<(String, Policy)>,
}

impl Plan {
    /// Whether everything is as declared, as far as definitions show.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.problems.is_empty()
    }
}

/// The objects that a plan is about.
#[derive(Default)]
pub(crate) struct Objects<'a> {
    pub(crate) exchanges: Vec<&'a actual::Exchange>,
    pub(crate) queues: Vec<&'a actual::Queue>,
    pub(crate) bindings: Vec<&'a actual::Binding>,
    pub(crate) policies: Vec<&'a actual::Policy>,
}

impl<'a> Objects<'a> {
    /// The objects in `actual` whose owner (for a binding: the owner of either end) passes. What comes out of a `share`
    /// is its owner's alone.
    pub(crate) fn of(actual: &'a Actual, passes: impl Fn(&str) -> bool) -> Self {
        let end = |b: &&actual::Binding| {
            passes(&b.source) || (passes(&b.destination) && !names::is_share_exchange(&b.source))
        };
        Self {
            exchanges: actual.exchanges.iter().filter(|e| passes(&e.name)).collect(),
            queues: actual.queues.iter().filter(|q| passes(&q.name)).collect(),
            bindings: actual.bindings.iter().filter(end).collect(),
            policies: actual.policies.iter().filter(|p| passes(&p.name)).collect(),
        }
    }
}

/// Several businesses' topologies as one.
pub fn merge<'a>(topologies: impl IntoIterator<Item = &'a Topology>) -> Topology {
    let mut all = Topology::default();
    for one in topologies {
        all.exchanges.extend(one.exchanges.iter().cloned());
        all.queues.extend(one.queues.iter().cloned());
        all.existing_queues.extend(one.existing_queues.iter().cloned());
        all.open_queues.extend(one.open_queues.iter().cloned());
        all.bounded.extend(one.bounded.iter().cloned());
        all.intake.extend(one.intake.iter().cloned());
        all.bindings.extend(one.bindings.iter().cloned());
        all.links.extend(one.links.iter().cloned());
        all.policies.extend(one.policies.iter().cloned());
    }
    all.existing_queues.sort();
    all.existing_queues.dedup();
    all
}

/// What turns `actual` into `desired`, including the shared policies and the control stream that it needs. Compares only objects in `scope`, so `desired` must lie
/// within it.
///
/// The queues of edges (`wirepost.B.edge.…`) and their bindings to `push` belong to the edges, `wirepost.B.events.…` and the bindings between
/// them and `wirepost.B.events` to the listeners: none is touched. Every other binding from, into or between our objects is ours.
pub fn plan(desired: &Topology, actual: &Actual, scope: Scope<'_>) -> Plan {
    let objects = Objects::of(actual, |name| scope.contains(name));
    let queues: HashMap<&str, _> = actual.queues.iter().map(|q| (q.name.as_str(), &q.arguments)).collect();
    let foreign = actual.policies.iter().filter(|p| names::owner(&p.name).is_none() && !is_shared(&p.name));
    let highest = foreign.map(|p| p.priority).max();
    let exchanges: HashSet<&str> = actual.exchanges.iter().map(|e| e.name.as_str()).collect();
    let others = Others { queue: &|name| queues.get(name).copied(), has_exchange: &|name| exchanges.contains(name) };
    let mut plan = plan_objects(desired, &objects, &others, &actual.policies, highest);
    if !desired.queues.is_empty() {
        // Streams that a shared policy would cut have their problems already.
        let control = Control::of(actual);
        plan.steps.extend(plan_shared(&actual.policies, streams_without_policy(actual), control).steps);
    }
    Step::sort(&mut plan.steps);
    plan
}

/// Streams of ours, in a vhost or in a part of it, that only the shared policy applies to.
pub(crate) fn streams_without_policy(actual: &Actual) -> impl Iterator<Item = &str> {
    let streams = actual.queues.iter().filter(|queue| queue_kind(&queue.arguments) == "stream");
    let streams = streams.map(|queue| queue.name.as_str()).filter(|name| shared_policy_of(name).is_some());
    streams.filter(|name| !actual.policies.iter().any(|own| own.name == **name))
}

/// What a plan for one business asks about the rest of the vhost.
pub(crate) struct Others<'f, 'a> {
    /// The arguments of the queue of that name, ours or foreign.
    pub(crate) queue: &'f dyn Fn(&str) -> Option<&'a Map<String, Value>>,
    /// Whether there is an exchange of that name, of any business.
    pub(crate) has_exchange: &'f dyn Fn(&str) -> bool,
}

/// `policies`: the shared ones that exist, others may be among them. `highest_foreign_priority`: of the policies that
/// are not ours.
pub(crate) fn plan_objects(
    desired: &Topology,
    actual: &Objects<'_>,
    others: &Others<'_, '_>,
    policies: &[actual::Policy],
    highest_foreign_priority: Option<i32>,
) -> Plan {
    let mut plan = Plan::default();
    let with_room = room::kept(desired, &actual.policies);
    let desired = with_room.as_ref().unwrap_or(desired);
    plan.problems.extend(room::problems(desired));
    plan_exchanges(&mut plan, desired, actual);
    plan_queues(&mut plan, desired, actual);
    plan_existing(&mut plan, desired, actual, others.queue);
    plan_bindings(&mut plan, desired, actual, others.has_exchange);
    plan_policies(&mut plan, desired, actual);
    // At equal priority it is undefined which one wins.
    let lowest = desired.queues.iter().filter_map(|q| desired.policy_of(&q.name)).map(|p| p.priority).min();
    plan.foreign_policies_may_win =
        lowest.zip(highest_foreign_priority).is_some_and(|(lowest, foreign)| foreign >= lowest);
    if plan.foreign_policies_may_win || !plan.steps.is_empty() {
        plan.to_verify = policies_of(desired);
    }
    Step::sort(&mut plan.steps);
    Streams::of(actual, policies).judge(&mut plan, desired);
    plan
}

fn plan_exchanges(plan: &mut Plan, desired: &Topology, actual: &Objects<'_>) {
    let there: HashMap<_, _> = actual.exchanges.iter().map(|e| (e.name.as_str(), e)).collect();
    for exchange in &desired.exchanges {
        let should = actual::Exchange {
            name: exchange.name.clone(),
            kind: exchange_kind(exchange.kind).to_owned(),
            durable: true,
            auto_delete: false,
            arguments: exchange_arguments(exchange),
        };
        match there.get(exchange.name.as_str()) {
            None => plan.steps.push(Step::PutExchange(exchange.clone())),
            Some(is) if ***is == should => {}
            Some(is) => plan.problems.push(Problem::Differs {
                kind: "exchange",
                name: exchange.name.clone(),
                is: describe(&is.kind, is.durable, is.auto_delete, &is.arguments),
                should_be: describe(&should.kind, true, false, &should.arguments),
            }),
        }
    }
    let declared: HashSet<&str> = desired.exchanges.iter().map(|e| e.name.as_str()).collect();
    let gone =
        actual.exchanges.iter().filter(|e| !is_declared_elsewhere(&e.name) && !declared.contains(e.name.as_str()));
    plan.steps.extend(gone.map(|e| Step::DeleteExchange(e.name.clone())));
}

fn plan_queues(plan: &mut Plan, desired: &Topology, actual: &Objects<'_>) {
    let there: HashMap<_, _> = actual.queues.iter().map(|q| (q.name.as_str(), q)).collect();
    for queue in &desired.queues {
        let should = queue_arguments(queue);
        match there.get(queue.name.as_str()) {
            None => plan.steps.push(Step::PutQueue(queue.clone())),
            Some(is) if is.durable && !is.auto_delete && is.arguments == should => {}
            Some(is) => plan.problems.push(Problem::Differs {
                kind: "queue",
                name: queue.name.clone(),
                is: describe(queue_kind(&is.arguments), is.durable, is.auto_delete, &is.arguments),
                should_be: describe(queue_kind(&should), true, false, &should),
            }),
        }
    }
    let declared: HashSet<&str> = desired
        .queues
        .iter()
        .map(|q| q.name.as_str())
        .chain(desired.existing_queues.iter().map(String::as_str))
        .collect();
    let gone = actual.queues.iter().filter(|q| !is_declared_elsewhere(&q.name) && !declared.contains(q.name.as_str()));
    plan.steps.extend(gone.map(|q| match queue_kind(&q.arguments) {
        "stream" => Step::DeleteStream(q.name.clone()),
        _ => Step::DeleteQueue(q.name.clone()),
    }));
}

/// Existing queues must exist and be open to the business that fills them.
fn plan_existing<'a>(
    plan: &mut Plan,
    desired: &Topology,
    actual: &Objects<'_>,
    find: impl Fn(&str) -> Option<&'a Map<String, Value>>,
) {
    for queue in &desired.existing_queues {
        let Some(arguments) = find(queue) else {
            plan.problems.push(Problem::MissingQueue { queue: queue.clone() });
            continue;
        };
        if desired.open_queues.contains(queue) {
            continue;
        }
        let bindings = desired.bindings.iter().filter(|binding| binding.queue == *queue);
        let businesses = bindings.filter_map(|binding| names::owner(&binding.exchange));
        for business in businesses.filter(|business| !open::accepts(arguments, business)) {
            let leads = |is: &actual::Binding| is.destination == *queue && names::owner(&is.source) == Some(business);
            let bound = actual.bindings.iter().any(|is| leads(is));
            let (queue, business) = (queue.clone(), business.to_owned());
            plan.problems.push(Problem::QueueNotOpen { queue, business, bound });
        }
    }
}

pub(crate) fn policies_of(desired: &Topology) -> Vec<(String, Policy)> {
    desired.queues.iter().filter_map(|q| Some((q.name.clone(), desired.policy_of(&q.name)?.clone()))).collect()
}

pub(crate) fn is_shared(policy: &str) -> bool {
    shared_policies().iter().any(|ours| ours.name == policy)
}

pub(crate) fn is_as_declared(is: &actual::Policy, policy: &Policy) -> bool {
    is.name == policy.name
        && is.pattern == policy.pattern
        && is.apply_to == policy.apply_to
        && is.priority == policy.priority
        && is.definition == policy.definition
}

fn plan_policies(plan: &mut Plan, desired: &Topology, actual: &Objects<'_>) {
    let there: HashMap<_, _> = actual.policies.iter().map(|p| (p.name.as_str(), p)).collect();
    for policy in &desired.policies {
        if !there.get(policy.name.as_str()).is_some_and(|is| is_as_declared(is, policy)) {
            plan.steps.push(Step::PutPolicy(policy.clone()));
        }
    }
    let declared: HashSet<&str> = desired.policies.iter().map(|p| p.name.as_str()).collect();
    let gone = actual.policies.iter().filter(|p| !declared.contains(p.name.as_str()));
    plan.steps.extend(gone.map(|p| Step::DeletePolicy(p.name.clone())));
}

/// `accounts`: all users whose names belong to the business, or to the edges.
pub(crate) fn plan_users(plan: &mut Plan, desired: &[DesiredUser], accounts: &Accounts, tag: &str) {
    let Accounts { users: there, permissions, limits } = accounts;
    for user in desired {
        match there.iter().find(|is| is.name == user.name) {
            Some(is) if !is.tags.iter().any(|t| t == tag) => {
                plan.problems.push(Problem::UserTaken { user: user.name.clone(), tag: tag.to_owned() });
                continue;
            }
            Some(is) if user.matches(is) => {}
            _ => plan.steps.push(Step::PutUser(user.clone())),
        }
        if !permissions.iter().any(|is| user.has_permissions(is)) {
            plan.steps.push(Step::PutPermissions(user.clone()));
        }
        if !user.has_limits(limits.iter().find(|is| is.user == user.name)) {
            plan.steps.push(Step::PutUserLimits(user.clone()));
        }
    }
    let ours = there.iter().filter(|is| is.tags.iter().any(|t| t == tag));
    let gone = ours.filter(|is| !desired.iter().any(|user| user.name == is.name));
    plan.steps.extend(gone.map(|is| Step::DeleteUser { name: is.name.clone(), last: desired.is_empty() }));
    Step::sort(&mut plan.steps);
}

pub(crate) fn exchange_kind(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Topic => "topic",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Direct => "direct",
        ExchangeKind::Headers => "headers",
    }
}

pub(crate) fn exchange_arguments(exchange: &Exchange) -> Map<String, Value> {
    exchange.alternate.iter().map(|alternate| ("alternate-exchange".to_owned(), json!(alternate))).collect()
}

/// Of the binding that a link is.
pub(crate) fn link_arguments(link: &Link) -> Map<String, Value> {
    Map::from_iter([("x-match".to_owned(), json!("any")), (link.header.clone(), json!(link.value))])
}

pub(crate) fn queue_arguments(queue: &Queue) -> Map<String, Value> {
    let kind = match queue.kind {
        QueueKind::Quorum => "quorum",
        QueueKind::Stream => "stream",
    };
    let mut arguments = Map::from_iter([("x-queue-type".to_owned(), json!(kind))]);
    arguments.extend(queue.dead_letter.iter().map(|to| ("x-dead-letter-exchange".to_owned(), json!(to))));
    arguments
}

pub(crate) fn queue_kind(arguments: &Map<String, Value>) -> &str {
    arguments.get("x-queue-type").and_then(Value::as_str).unwrap_or("classic")
}

fn describe(kind: &str, durable: bool, auto_delete: bool, arguments: &Map<String, Value>) -> String {
    let life = match (durable, auto_delete) {
        (true, false) => "durable",
        (false, false) => "transient",
        (true, true) => "durable auto-delete",
        (false, true) => "transient auto-delete",
    };
    let arguments: Vec<String> = arguments
        .iter()
        .filter(|(key, _)| *key != "x-queue-type")
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if arguments.is_empty() { format!("{life} {kind}") } else { format!("{life} {kind} with {}", arguments.join(", ")) }
}

#[cfg(test)]
pub(crate) mod tests;
