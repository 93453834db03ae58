//! The difference between what is declared and what a vhost has, in the order in which it can be made good without losing a message.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde_json::{Map, Value, json};
use wirepost_core::names;
use wirepost_core::topology::{Binding, Exchange, ExchangeKind, Policy, Queue, QueueKind, Topology};

use crate::actual::{self, Actual};
use crate::report::Problem;

/// Whose objects are looked at; all others are left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Every object with our prefix: what is not desired goes. So a business whose newest declaration is bad must be in `desired` with its
    /// last good topology.
    Everything,
    /// The objects of this business only.
    Business(&'a str),
}

impl Scope<'_> {
    fn holds(self, object: &str) -> bool {
        match (self, names::owner(object)) {
            (_, None) => false,
            (Self::Everything, Some(_)) => true,
            (Self::Business(business), Some(owner)) => business == owner,
        }
    }
}

/// What has to be done, and what can't be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order. First what is made, then what goes.
    pub steps: Vec<Step>,
    /// What no step can make good.
    pub problems: Vec<Problem>,
    /// Foreign policies that could win over ours.
    pub rival_policies: bool,
}

/// One call of the management API.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Creates or changes a policy.
    PutPolicy(Policy),
    /// Creates a queue or stream.
    PutQueue(Queue),
    /// Creates an exchange.
    PutExchange(Exchange),
    /// Binds a queue to an exchange.
    Bind(Binding),
    /// Removes a binding.
    Unbind(actual::Binding),
    /// Deletes a queue, if it is empty and not in use.
    DeleteQueue(String),
    /// Deletes a stream and what it keeps.
    DeleteStream(String),
    /// Deletes an exchange.
    DeleteExchange(String),
    /// Deletes a policy.
    DeletePolicy(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutPolicy(policy) => write!(f, "set policy {}", policy.name),
            Self::PutQueue(queue) => write!(f, "create queue {}", queue.name),
            Self::PutExchange(exchange) => write!(f, "create exchange {}", exchange.name),
            Self::Bind(b) => write!(f, "bind queue {} to exchange {} with '{}'", b.queue, b.exchange, b.routing_key),
            Self::Unbind(b) => {
                write!(f, "unbind {} from exchange {} with '{}'", b.destination, b.source, b.routing_key)
            }
            Self::DeleteQueue(name) => write!(f, "delete queue {name}"),
            Self::DeleteStream(name) => write!(f, "delete stream {name}"),
            Self::DeleteExchange(name) => write!(f, "delete exchange {name}"),
            Self::DeletePolicy(name) => write!(f, "delete policy {name}"),
        }
    }
}

impl Step {
    /// The business whose other queues must have gone before: what a queue dead-letters to, and its limits, go last.
    pub(crate) fn waits_for_queues_of(&self) -> Option<&str> {
        let (object, last): (&str, fn(&str) -> String) = match self {
            Self::Unbind(binding) => (&binding.source, names::dead_letter_exchange),
            Self::DeleteQueue(name) => (name, names::dead_queue),
            Self::DeleteExchange(name) => (name, names::dead_letter_exchange),
            Self::DeletePolicy(name) => return names::owner(name),
            _ => return None,
        };
        names::owner(object).filter(|business| last(business) == object)
    }

    // Making: a queue finds its policy (retention, limits) when it is born, and an exchange is made only when what it would otherwise
    // lose has a place, so its alternate exchange is bound before. Going: a queue is unbound before its messages are counted.
    fn rank(&self) -> u8 {
        match self {
            Self::PutPolicy(_) => 0,
            Self::PutQueue(_) => 1,
            Self::PutExchange(exchange) if exchange.alternate.is_none() => 2,
            Self::Bind(binding) if !routes_for_publishers(&binding.exchange) => 3,
            Self::PutExchange(_) => 4,
            Self::Bind(_) => 5,
            Self::Unbind(_) if self.waits_for_queues_of().is_none() => 6,
            Self::DeleteStream(_) => 7,
            Self::DeleteQueue(_) if self.waits_for_queues_of().is_none() => 7,
            Self::Unbind(_) => 8,
            Self::DeleteQueue(_) => 9,
            Self::DeleteExchange(_) => 10,
            Self::DeletePolicy(_) => 11,
        }
    }
}

fn routes_for_publishers(exchange: &str) -> bool {
    names::owner(exchange)
        .is_some_and(|b| exchange == names::receive_exchange(b) || exchange == names::push_exchange(b))
}

/// Several businesses' topologies as one.
pub fn merge<'a>(topologies: impl IntoIterator<Item = &'a Topology>) -> Topology {
    let mut all = Topology::default();
    for one in topologies {
        all.exchanges.extend(one.exchanges.iter().cloned());
        all.queues.extend(one.queues.iter().cloned());
        all.existing_queues.extend(one.existing_queues.iter().cloned());
        all.bindings.extend(one.bindings.iter().cloned());
        all.policies.extend(one.policies.iter().cloned());
    }
    all.existing_queues.sort();
    all.existing_queues.dedup();
    all
}

/// What makes `actual` into `desired`. Looks only at objects in `scope` and at those that `desired` names.
///
/// The queues of edges (`wirepost.B.edge.…`) and their bindings belong to the edges, bindings of `wirepost.B.events` to whoever listens:
/// neither is touched. All other bindings of our exchanges are ours, also those to foreign queues.
pub fn plan(desired: &Topology, actual: &Actual, scope: Scope<'_>) -> Plan {
    let mut plan = Plan::default();
    plan_exchanges(&mut plan, desired, actual, scope);
    plan_queues(&mut plan, desired, actual, scope);
    plan_bindings(&mut plan, desired, actual, scope);
    plan_policies(&mut plan, desired, actual, scope);
    plan.steps.sort_by_key(Step::rank); // stable: within a rank the declared order stays
    plan
}

fn plan_exchanges(plan: &mut Plan, desired: &Topology, actual: &Actual, scope: Scope<'_>) {
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
            Some(is) if **is == should => {}
            Some(is) => plan.problems.push(Problem::Differs {
                kind: "exchange",
                name: exchange.name.clone(),
                is: describe(&is.kind, is.durable, is.auto_delete, &is.arguments),
                should_be: describe(&should.kind, true, false, &should.arguments),
            }),
        }
    }
    let declared: HashSet<&str> = desired.exchanges.iter().map(|e| e.name.as_str()).collect();
    let gone = actual.exchanges.iter().filter(|e| scope.holds(&e.name) && !declared.contains(e.name.as_str()));
    plan.steps.extend(gone.map(|e| Step::DeleteExchange(e.name.clone())));
}

fn plan_queues(plan: &mut Plan, desired: &Topology, actual: &Actual, scope: Scope<'_>) {
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
    plan.problems.extend(
        desired
            .existing_queues
            .iter()
            .filter(|q| !there.contains_key(q.as_str()))
            .map(|q| Problem::MissingQueue { queue: q.clone() }),
    );
    let declared: HashSet<&str> = desired
        .queues
        .iter()
        .map(|q| q.name.as_str())
        .chain(desired.existing_queues.iter().map(String::as_str))
        .collect();
    let gone = actual
        .queues
        .iter()
        .filter(|q| scope.holds(&q.name) && !is_an_edges(&q.name) && !declared.contains(q.name.as_str()));
    plan.steps.extend(gone.map(|q| match queue_kind(&q.arguments) {
        "stream" => Step::DeleteStream(q.name.clone()),
        _ => Step::DeleteQueue(q.name.clone()),
    }));
}

fn plan_bindings(plan: &mut Plan, desired: &Topology, actual: &Actual, scope: Scope<'_>) {
    // One of ours has a queue at its end and no arguments; another with the same key is another binding.
    let simple = |is: &&actual::Binding| is.destination_type == "queue" && is.arguments.is_empty();
    let there: HashSet<_> =
        actual.bindings.iter().filter(simple).map(|b| (&*b.source, &*b.destination, &*b.routing_key)).collect();
    let declared: HashSet<_> = desired.bindings.iter().map(|b| (&*b.exchange, &*b.queue, &*b.routing_key)).collect();
    let missing: HashSet<&str> = plan
        .problems
        .iter()
        .filter_map(|p| if let Problem::MissingQueue { queue } = p { Some(queue.as_str()) } else { None })
        .collect();
    let wanted = desired.bindings.iter().filter(|b| {
        !there.contains(&(&*b.exchange, &*b.queue, &*b.routing_key)) && !missing.contains(b.queue.as_str())
    });
    let made: Vec<Step> = wanted.map(|b| Step::Bind(b.clone())).collect();
    let gone = actual.bindings.iter().filter(|is| {
        let key = (&*is.source, &*is.destination, &*is.routing_key);
        scope.holds(&is.source)
            && names::owner(&is.source).is_some_and(|business| is.source != names::events_exchange(business))
            && !is_an_edges(&is.destination)
            && !(simple(is) && declared.contains(&key))
    });
    let gone: Vec<Step> = gone.map(|b| Step::Unbind(b.clone())).collect();
    plan.steps.extend(made);
    plan.steps.extend(gone);
}

fn plan_policies(plan: &mut Plan, desired: &Topology, actual: &Actual, scope: Scope<'_>) {
    let there: HashMap<_, _> = actual.policies.iter().map(|p| (p.name.as_str(), p)).collect();
    for policy in &desired.policies {
        let same = there.get(policy.name.as_str()).is_some_and(|is| {
            is.pattern == policy.pattern
                && is.apply_to == policy.apply_to
                && is.priority == policy.priority
                && is.definition == policy.definition
        });
        if !same {
            plan.steps.push(Step::PutPolicy(policy.clone()));
        }
    }
    let declared: HashSet<&str> = desired.policies.iter().map(|p| p.name.as_str()).collect();
    let gone = actual.policies.iter().filter(|p| scope.holds(&p.name) && !declared.contains(p.name.as_str()));
    plan.steps.extend(gone.map(|p| Step::DeletePolicy(p.name.clone())));
    // Equal priority: which one wins is not defined.
    let lowest = desired.policies.iter().map(|p| p.priority).min();
    plan.rival_policies = lowest.is_some_and(|lowest| {
        actual
            .policies
            .iter()
            .any(|p| names::owner(&p.name).is_none() && p.apply_to != "exchanges" && p.priority >= lowest)
    });
}

/// `wirepost.B.edge.…`: declared by an edge, expires after it.
fn is_an_edges(queue: &str) -> bool {
    names::owner(queue).is_some_and(|business| queue.starts_with(&names::edge_queue(business, "")))
}

pub(crate) fn exchange_kind(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Topic => "topic",
        ExchangeKind::Fanout => "fanout",
    }
}

pub(crate) fn exchange_arguments(exchange: &Exchange) -> Map<String, Value> {
    exchange.alternate.iter().map(|alternate| ("alternate-exchange".to_owned(), json!(alternate))).collect()
}

pub(crate) fn queue_arguments(queue: &Queue) -> Map<String, Value> {
    let kind = match queue.kind {
        QueueKind::Quorum => "quorum",
        QueueKind::Stream => "stream",
    };
    Map::from_iter([("x-queue-type".to_owned(), json!(kind))])
}

fn queue_kind(arguments: &Map<String, Value>) -> &str {
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
mod tests;
