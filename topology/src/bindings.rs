//! Which bindings there should be: the declared ones, those that edges and listeners of events create for themselves, and no others from,
//! into or between objects of ours.

use std::collections::HashSet;

use serde_json::Value;
use wirepost_core::names;
use wirepost_core::topology::{Link, Topology};

use crate::actual;
use crate::plan::{Objects, Plan, link_arguments};
use crate::report::Problem;
use crate::reserved::marked;
use crate::step::Step;

/// What is at an end of a binding.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BindingEnd {
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

fn end(name: &str) -> BindingEnd {
    let Some(business) = names::owner(name) else { return BindingEnd::Foreign };
    if name == names::events_exchange(business) {
        BindingEnd::Events
    } else if name.starts_with(&names::events_queue(business, "")) {
        BindingEnd::Listener
    } else if name == names::push_exchange(business) {
        BindingEnd::Push
    } else if name.starts_with(&names::edge_queue(business, "")) {
        BindingEnd::EdgeQueue
    } else {
        BindingEnd::Ours
    }
}

/// Has our prefix and is not part of the topology: an edge or a listener declares it, or it is the mark of a business's owner.
pub(crate) fn is_declared_elsewhere(name: &str) -> bool {
    matches!(end(name), BindingEnd::Listener | BindingEnd::EdgeQueue) || marked(name).is_some()
}

/// A binding that its owner may have created. Events lead to listeners, and never back: a business can bind whatever it may read as a
/// source and write as a destination, so permissions alone can't tell its queue for events from its exchange for pushes.
fn is_owner_made(is: &actual::Binding) -> bool {
    let same = names::owner(&is.source) == names::owner(&is.destination);
    match (end(&is.source), end(&is.destination)) {
        (BindingEnd::Events | BindingEnd::Listener, BindingEnd::Listener)
        | (BindingEnd::Push, BindingEnd::EdgeQueue) => same,
        // What is published to a foreign exchange is no event, and only an administrator can bind such an exchange to ours.
        (BindingEnd::Events | BindingEnd::Listener, BindingEnd::Foreign) | (BindingEnd::Foreign, _) => true,
        _ => false,
    }
}

/// Steps for bindings. Depends on the problems so far: a queue that does not exist, or that its owner has not opened, is not bound.
///
/// `has_exchange`: see [`Others`](crate::plan::Others).
pub(crate) fn plan_bindings(
    plan: &mut Plan,
    desired: &Topology,
    actual: &Objects<'_>,
    has_exchange: &dyn Fn(&str) -> bool,
) {
    // Those of queues have no arguments; one with arguments and the same key is a different binding.
    let simple = |is: &actual::Binding| is.destination_type == "queue" && is.arguments.is_empty();
    let mine = actual.bindings.iter().filter(|b| simple(b));
    let there: HashSet<_> = mine.map(|b| (&*b.source, &*b.destination, &*b.routing_key)).collect();
    let declared: HashSet<_> = desired.bindings.iter().map(|b| (&*b.exchange, &*b.queue, &*b.routing_key)).collect();
    let mut made = Vec::new();
    for binding in &desired.bindings {
        let obstacle = plan.problems.iter().any(|problem| match problem {
            Problem::MissingQueue { queue } => *queue == binding.queue,
            // A binding from before this rule stays, and is reported.
            Problem::QueueNotOpen { queue, business, bound } => {
                !bound && *queue == binding.queue && names::owner(&binding.exchange) == Some(business)
            }
            _ => false,
        });
        if !obstacle && !there.contains(&(&*binding.exchange, &*binding.queue, &*binding.routing_key)) {
            made.push(Step::Bind(binding.clone()));
        }
    }
    let is_link = |is: &actual::Binding, link: &Link| {
        is.destination_type == "exchange"
            && is.source == link.from
            && is.destination == link.to
            && is.routing_key.is_empty()
            && is.arguments == link_arguments(link)
    };
    for link in &desired.links {
        let exists = has_exchange(&link.to) || desired.exchanges.iter().any(|exchange| exchange.name == link.to);
        if !exists {
            plan.problems.push(Problem::NoTarget { link: link.clone() });
        } else if !actual.bindings.iter().any(|is| is_link(is, link)) {
            made.push(Step::Link(link.clone()));
        }
    }
    let back = lead_back(actual);
    let gone = actual.bindings.iter().filter(|is| {
        let wanted = (simple(is) && declared.contains(&(&*is.source, &*is.destination, &*is.routing_key)))
            || desired.links.iter().any(|link| is_link(is, link));
        !wanted && (!is_owner_made(is) || back.contains(is.destination.as_str()))
    });
    let gone: Vec<Step> = gone.map(|&b| Step::Unbind(b.clone())).collect();
    plan.steps.extend(made);
    plan.steps.extend(gone);
    if desired.exchanges.is_empty() {
        // The business is being removed: its listeners do not matter any more.
        return;
    }
    for (name, to) in listeners(actual).filter_map(|(name, to)| Some((name, to?))) {
        if back.contains(name) {
            plan.problems.push(Problem::LeadsBack { object: name.to_owned(), to: to.to_owned() });
        }
    }
}

/// Listeners that pass on what they get to an object of ours, directly or through other listeners: equivalent to a binding, but set by an
/// argument.
fn lead_back<'a>(actual: &Objects<'a>) -> HashSet<&'a str> {
    let onward: Vec<_> = listeners(actual).filter_map(|(name, to)| Some((name, to?))).collect();
    let mut back = HashSet::new();
    loop {
        let leads = |to: &str, back: &HashSet<&str>| match end(to) {
            BindingEnd::Foreign => false,
            BindingEnd::Listener => back.contains(to),
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

/// Each with the exchange that it passes messages on to.
fn listeners<'a>(actual: &Objects<'a>) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
    let queues = actual.queues.iter().map(|q| (q.name.as_str(), q.arguments.get("x-dead-letter-exchange")));
    let exchanges = actual.exchanges.iter().map(|e| (e.name.as_str(), e.arguments.get("alternate-exchange")));
    let all: Vec<_> = queues.chain(exchanges).filter(|(name, _)| end(name) == BindingEnd::Listener).collect();
    all.into_iter().map(|(name, to)| (name, to.and_then(Value::as_str)))
}
