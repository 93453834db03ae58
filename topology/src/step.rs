//! One call of the management API, its name in a log, and its rank in the order of steps.

use std::fmt;

use wirepost_core::names;
use wirepost_core::topology::{Binding, Exchange, Link, Policy, Queue};

use crate::actual;
use crate::users::DesiredUser;

/// One call of the management API.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Records whose a business is. Nothing of it is created before.
    MarkBusiness {
        /// The business type.
        business: String,
        /// Its namespace.
        namespace: String,
        /// Of another one.
        instead: bool,
    },
    /// Creates or changes a policy.
    PutPolicy(Policy),
    /// Creates a queue or stream.
    PutQueue(Queue),
    /// Creates an exchange.
    PutExchange(Exchange),
    /// Binds a queue to an exchange.
    Bind(Binding),
    /// Binds an exchange to a headers exchange.
    Link(Link),
    /// Creates a user, or sets its password and tag again.
    PutUser(DesiredUser),
    /// Sets a user's permissions.
    PutPermissions(DesiredUser),
    /// Sets what a user may have open at the same time.
    PutUserLimits(DesiredUser),
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
    /// Deletes a user; the broker closes its connections.
    DeleteUser {
        /// Its name.
        name: String,
        /// The last user of a business is deleted after the queues: its services may have to empty them.
        last: bool,
    },
    /// Removes the record whose a business is, once nothing else of it is left.
    UnmarkBusiness(String),
}

/// The rank of the first removals.
const FIRST_REMOVAL: u8 = 9;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MarkBusiness { business, namespace, instead: _ } => {
                write!(f, "mark business {business} as that of namespace {namespace}")
            }
            Self::UnmarkBusiness(business) => write!(f, "delete the mark of business {business}"),
            Self::PutPolicy(policy) => write!(f, "set policy {}", policy.name),
            Self::PutQueue(queue) => write!(f, "create queue {}", queue.name),
            Self::PutExchange(exchange) => write!(f, "create exchange {}", exchange.name),
            Self::Bind(b) => write!(f, "bind queue {} to exchange {} with '{}'", b.queue, b.exchange, b.routing_key),
            Self::Link(link) => {
                write!(f, "bind exchange {} to exchange {} with the header {}", link.to, link.from, link.header)
            }
            Self::PutUser(user) => write!(f, "set user {}", user.name),
            Self::PutPermissions(user) => write!(f, "set permissions of user {}", user.name),
            Self::PutUserLimits(user) => write!(f, "set limits of user {}", user.name),
            Self::Unbind(b) => {
                write!(f, "unbind {} from exchange {} with '{}'", b.destination, b.source, b.routing_key)
            }
            Self::DeleteQueue(name) => write!(f, "delete queue {name}"),
            Self::DeleteStream(name) => write!(f, "delete stream {name}"),
            Self::DeleteExchange(name) => write!(f, "delete exchange {name}"),
            Self::DeletePolicy(name) => write!(f, "delete policy {name}"),
            Self::DeleteUser { name, .. } => write!(f, "delete user {name}"),
        }
    }
}

impl Step {
    /// The queue or stream that it deletes.
    pub(crate) fn queue_to_delete(&self) -> Option<&str> {
        match self {
            Self::DeleteQueue(name) | Self::DeleteStream(name) => Some(name),
            _ => None,
        }
    }

    /// The queue or stream that still exists until this is done.
    pub(crate) fn keeps(&self) -> Option<&str> {
        match self {
            Self::DeleteQueue(name) | Self::DeleteStream(name) => Some(name),
            Self::Unbind(binding) => Some(&binding.destination),
            _ => None,
        }
    }

    /// The business whose other queues must be deleted first: the target of dead letters and the user who may empty queues are deleted last.
    pub(crate) fn waits_for_queues_of(&self) -> Option<&str> {
        let (object, last): (&str, fn(&str) -> String) = match self {
            Self::Unbind(binding) => (&binding.source, names::dead_letter_exchange),
            Self::DeleteQueue(name) => (name, names::dead_queue),
            Self::DeleteExchange(name) => (name, names::dead_letter_exchange),
            Self::DeleteUser { name, last: true } => return names::owner(name),
            _ => return None,
        };
        names::owner(object).filter(|business| last(business) == object)
    }

    /// Sorts what is created in the declared order, and what is removed by name: a broker lists its objects in no
    /// particular order, and a plan should read the same each time.
    pub(crate) fn sort(steps: &mut [Self]) {
        steps.sort_by_cached_key(|step| {
            let rank = step.rank();
            (rank, if rank < FIRST_REMOVAL { String::new() } else { step.to_string() })
        });
    }

    /// What exists, or is removed, once it is done.
    pub(crate) fn provides(&self) -> Option<Provided<'_>> {
        match self {
            Self::PutPolicy(policy) => Some(Provided::Policy(&policy.name)),
            Self::PutQueue(queue) => Some(Provided::Queue(&queue.name)),
            Self::PutExchange(exchange) => Some(Provided::Exchange(&exchange.name)),
            Self::PutUser(user) => Some(Provided::User(&user.name)),
            Self::Unbind(binding) => Some(Provided::Unbound(&binding.destination)),
            _ => None,
        }
    }

    /// What must be done before: a queue must find its limits when it is created, an exchange needs a target for messages without a binding,
    /// and a queue is unbound before its messages are counted.
    pub(crate) fn needs(&self) -> impl Iterator<Item = Provided<'_>> {
        let (first, second) = match self {
            Self::PutQueue(queue) => (Some(Provided::Policy(&queue.name)), None),
            Self::PutExchange(exchange) => (exchange.alternate.as_deref().map(Provided::Exchange), None),
            Self::Bind(binding) => (Some(Provided::Queue(&binding.queue)), Some(Provided::Exchange(&binding.exchange))),
            Self::Link(link) => (Some(Provided::Exchange(&link.from)), Some(Provided::Exchange(&link.to))),
            Self::PutPermissions(user) => (Some(Provided::User(&user.name)), None),
            Self::DeleteQueue(name) | Self::DeleteStream(name) => (Some(Provided::Unbound(name)), None),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// Whether it removes something.
    pub(crate) fn removes(&self) -> bool {
        self.rank() >= FIRST_REMOVAL
    }

    /// Steps of one rank may be done in any order, ranks only one after the other.
    ///
    /// Creation: a queue finds its policy (retention, limits) when it is created, and an exchange follows its alternate exchange and the
    /// bindings of that one, so that it loses nothing. Deletion: a queue is unbound before its messages are counted, and the alternate exchange of
    /// a business that became Transient before its stream, else unwanted pushes would end in `unrouted`.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::MarkBusiness { .. } => 0,
            Self::PutPolicy(_) => 1,
            Self::PutQueue(_) => 2,
            Self::PutExchange(exchange) if !is_for_publishers(&exchange.name) => 3,
            Self::Bind(binding) if !is_for_publishers(&binding.exchange) => 4,
            Self::PutExchange(_) => 5,
            Self::Bind(_) | Self::Link(_) => 6,
            Self::PutUser(_) => 7,
            Self::PutPermissions(_) | Self::PutUserLimits(_) => 8,
            Self::Unbind(binding) if is_alternate_of_push(&binding.source) => FIRST_REMOVAL,
            Self::Unbind(_) if self.waits_for_queues_of().is_none() => 10,
            Self::DeleteStream(_) => 11,
            Self::DeleteQueue(_) if self.waits_for_queues_of().is_none() => 11,
            Self::Unbind(_) => 12,
            Self::DeleteQueue(_) => 13,
            Self::DeleteExchange(_) => 14,
            Self::DeletePolicy(_) => 15,
            Self::DeleteUser { .. } => 16,
            Self::UnmarkBusiness(_) => 17,
        }
    }
}

/// See [`Step::provides`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Provided<'a> {
    Policy(&'a str),
    Queue(&'a str),
    Exchange(&'a str),
    User(&'a str),
    /// This queue or stream is unbound.
    Unbound(&'a str),
}

fn is_for_publishers(exchange: &str) -> bool {
    names::owner(exchange).is_some_and(|b| {
        [names::receive_exchange(b), names::push_exchange(b), names::share_exchange(b)].iter().any(|it| it == exchange)
    })
}

fn is_alternate_of_push(exchange: &str) -> bool {
    names::owner(exchange).is_some_and(|business| exchange == names::push_unrouted(business))
}
