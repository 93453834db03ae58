//! Which bindings there should be: those that are declared, those that edges and listeners of events make for themselves, and no other one
//! from, into or between objects of ours.

use std::collections::HashSet;

use serde_json::Value;
use wirepost_core::names;
use wirepost_core::topology::Topology;

use crate::actual;
use crate::plan::{Objects, Plan};
use crate::report::Problem;
use crate::step::Step;

/// What stands at an end of a binding.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// `wirepost.B.events`.
    Events,
    /// `wirepost.B.events.…`: an exchange or queue that the business has declared itself.
    Listener,
    /// `wirepost.B.push`.
    Push,
    /// `wirepost.B.edge.…`: declared by an edge, expires after it.
    EdgeQueue,
    /// Anything else of ours.
    Ours,
    /// Not ours.
    Foreign,
}

fn end(name: &str) -> End {
    let Some(business) = names::owner(name) else { return End::Foreign };
    if name == names::events_exchange(business) {
        End::Events
    } else if name.starts_with(&names::events_queue(business, "")) {
        End::Listener
    } else if name == names::push_exchange(business) {
        End::Push
    } else if name.starts_with(&names::edge_queue(business, "")) {
        End::EdgeQueue
    } else {
        End::Ours
    }
}

/// Has our prefix and is not made by whoever makes the topology.
pub(crate) fn is_anothers(name: &str) -> bool {
    matches!(end(name), End::Listener | End::EdgeQueue)
}

/// A binding that its owner may have made. Events lead to whoever listens, and never back: what a business may read as a source and write as
/// a destination it can bind, so rights alone can't tell its queue for events from its exchange for pushes.
fn is_their_own(is: &actual::Binding) -> bool {
    let same = names::owner(&is.source) == names::owner(&is.destination);
    match (end(&is.source), end(&is.destination)) {
        (End::Events | End::Listener, End::Listener) | (End::Push, End::EdgeQueue) => same,
        // What somebody publishes to an exchange of their own is no event, and only an administrator can bind that to ours.
        (End::Events | End::Listener, End::Foreign) | (End::Foreign, _) => true,
        _ => false,
    }
}

/// Steps for bindings. Looks at the problems so far: a queue that is not there, or that its owner has not opened, is not bound.
pub(crate) fn plan_bindings(plan: &mut Plan, desired: &Topology, actual: &Objects<'_>) {
    // One of ours has a queue at its end and no arguments; another with the same key is another binding.
    let simple = |is: &actual::Binding| is.destination_type == "queue" && is.arguments.is_empty();
    let mine = actual.bindings.iter().filter(|b| simple(b));
    let there: HashSet<_> = mine.map(|b| (&*b.source, &*b.destination, &*b.routing_key)).collect();
    let declared: HashSet<_> = desired.bindings.iter().map(|b| (&*b.exchange, &*b.queue, &*b.routing_key)).collect();
    let mut made = Vec::new();
    for binding in &desired.bindings {
        let obstacle = plan.problems.iter().any(|problem| match problem {
            Problem::MissingQueue { queue } => *queue == binding.queue,
            // One that was bound before there was such a rule goes on, and is reported.
            Problem::QueueNotOpen { queue, business, bound } => {
                !bound && *queue == binding.queue && names::owner(&binding.exchange) == Some(business)
            }
            _ => false,
        });
        if !obstacle && !there.contains(&(&*binding.exchange, &*binding.queue, &*binding.routing_key)) {
            made.push(Step::Bind(binding.clone()));
        }
    }
    let back = lead_back(actual);
    let gone = actual.bindings.iter().filter(|is| {
        let wanted = simple(is) && declared.contains(&(&*is.source, &*is.destination, &*is.routing_key));
        !wanted && (!is_their_own(is) || back.contains(is.destination.as_str()))
    });
    let gone: Vec<Step> = gone.map(|&b| Step::Unbind(b.clone())).collect();
    plan.steps.extend(made);
    plan.steps.extend(gone);
    if desired.exchanges.is_empty() {
        // The business goes; its own listeners are nobody's trouble then.
        return;
    }
    for (name, to) in listeners(actual).filter_map(|(name, to)| Some((name, to?))) {
        if back.contains(name) {
            plan.problems.push(Problem::LeadsBack { object: name.to_owned(), to: to.to_owned() });
        }
    }
}

/// Listeners that hand what they get to an object of ours, at once or by way of other listeners: as good as a binding, and made by an
/// argument.
fn lead_back<'a>(actual: &Objects<'a>) -> HashSet<&'a str> {
    let onward: Vec<_> = listeners(actual).filter_map(|(name, to)| Some((name, to?))).collect();
    let mut back = HashSet::new();
    loop {
        let leads = |to: &str, back: &HashSet<&str>| match end(to) {
            End::Foreign => false,
            End::Listener => back.contains(to),
            _ => true,
        };
        let before = back.len();
        for (name, to) in &onward {
            if leads(to, &back) {
                back.insert(*name);
            }
        }
        if back.len() == before {
            return back;
        }
    }
}

/// Each with where its messages go on to.
fn listeners<'a>(actual: &Objects<'a>) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
    let queues = actual.queues.iter().map(|q| (q.name.as_str(), q.arguments.get("x-dead-letter-exchange")));
    let exchanges = actual.exchanges.iter().map(|e| (e.name.as_str(), e.arguments.get("alternate-exchange")));
    let all: Vec<_> = queues.chain(exchanges).filter(|(name, _)| end(name) == End::Listener).collect();
    all.into_iter().map(|(name, to)| (name, to.and_then(Value::as_str)))
}
