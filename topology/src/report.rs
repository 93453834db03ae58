//! What [`apply()`](crate::apply()) did, and what still differs.

use wirepost_core::destruction::Destruction;
use wirepost_core::{names, topology::Link};

use crate::depth::KeepReason;
use crate::step::Step;

mod text;

/// What was done and what still differs. Without problems, the vhost matches the topology.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What was changed, in order, as sentences for a log (`created queue wirepost.…`). Empty if all was as declared.
    pub changes: Vec<String>,
    /// What is not as declared.
    pub problems: Vec<Problem>,
    /// Steps of the plan that were left undone, each with good reason: a queue stays that is not empty, an object was refused.
    pub left: Vec<Step>,
    /// Queues of a removed business that its own services declared to listen to events. They stay, since the services own them.
    pub listeners: Vec<String>,
}

impl Report {
    /// Whether the broker has exactly the declared topology.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Queues and streams that are no longer declared but still exist: their deletion failed or was not tried.
    pub fn kept(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().filter_map(Problem::kept).chain(self.left.iter().filter_map(Step::keeps))
    }
}

/// A difference that an administrator must resolve. `Display` explains it and its remedy.
#[derive(Clone, Debug, PartialEq)]
pub enum Problem {
    /// An object of that name exists and differs in what can't be changed. It is left alone.
    Differs {
        /// `exchange`, `queue`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// As it is.
        is: String,
        /// As declared.
        should_be: String,
    },
    /// A route names a queue of the team (`existing: true`) that does not exist.
    MissingQueue {
        /// Its name.
        queue: String,
    },
    /// Another business accepts messages of this one, and its exchange for pushes does not exist: they are not copied
    /// to it.
    NoTarget {
        /// What would lead there.
        link: Link,
    },
    /// A route names a queue of another owner who has not opened it to the business. It is not bound; a binding from before stays.
    QueueNotOpen {
        /// Its name.
        queue: String,
        /// The business type.
        business: String,
        /// It has a binding from before.
        bound: bool,
    },
    /// An exchange or queue of a listener to events passes them on to an object of ours. It gets no events.
    LeadsBack {
        /// Its name.
        object: String,
        /// Where it leads.
        to: String,
    },
    /// No longer declared, but not empty or in use, so only unbound.
    Kept {
        /// The queue or stream.
        queue: String,
        /// Why it could not go.
        because: KeepReason,
    },
    /// A change that would destroy messages at once was not made: it needs a person's word.
    Held {
        /// What would be destroyed.
        destruction: Destruction,
        /// The policy of all businesses that would do it; `None`: something of this business alone.
        shared: Option<String>,
    },
    /// Something of the business type is left on the broker that belongs to another namespace, or may. Nothing was done.
    Reserved {
        /// The business type.
        business: String,
        /// The namespace that it belongs to; `None` = it is not known.
        namespace: Option<String>,
    },
    /// Another policy is in force on an object of ours: only the one with the highest priority is.
    PolicyOverruled {
        /// The queue or stream.
        queue: String,
        /// Ours.
        policy: String,
        /// The one in force; `None` if no policy is.
        by: Option<String>,
    },
    /// Our policy is in force, but an operator policy changes what it sets.
    PolicyLimited {
        /// The queue or stream.
        queue: String,
        /// The operator policy.
        by: String,
        /// Keys that have another value than declared.
        keys: Vec<String>,
    },
    /// Which policies are in force is unknown.
    Unverified {
        /// As the broker says it.
        reason: String,
    },
    /// A queue or stream has replicas on fewer nodes than wanted.
    TooFewReplicas {
        /// The queue or stream.
        queue: String,
        /// Nodes with a replica.
        on: Vec<String>,
        /// How many should.
        wanted: usize,
        /// What is being done, or must be done.
        repair: ReplicaRepair,
    },
    /// A queue held more than the default in bytes when that came, so it keeps more room until it holds much less.
    MoreRoom {
        /// The queue.
        queue: String,
        /// Bytes that it may hold; `None`: any number.
        bytes: Option<u64>,
        /// The default.
        default: u64,
    },
    /// A user of that name exists and is not ours. It is left alone.
    UserTaken {
        /// Its name.
        user: String,
        /// The tag that ours have.
        tag: String,
    },
    /// The broker refused one object; the others were written.
    Refused {
        /// What was not done.
        step: Box<Step>,
        /// As the broker says it.
        reason: String,
    },
    /// A call for one object failed or timed out while the broker answers others, for example for a queue whose leader is down. The others were
    /// written; this one is tried again.
    Failed {
        /// What was not done.
        step: Box<Step>,
        /// As the broker says it.
        reason: String,
    },
}

/// The object that can't be relied on because of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affected<'a> {
    /// None: everything declared exists.
    Nothing,
    /// A queue, stream or exchange, by name.
    Object(&'a str),
    /// A user, by name.
    User(&'a str),
}

impl Problem {
    /// The object that can't be relied on because of it.
    pub fn affected(&self) -> Affected<'_> {
        match self {
            Self::Differs { name: object, .. }
            | Self::MissingQueue { queue: object }
            | Self::QueueNotOpen { queue: object, bound: false, .. } => Affected::Object(object),
            Self::NoTarget { link } => Affected::Object(&link.to),
            Self::UserTaken { user, .. } => Affected::User(user),
            Self::Refused { step, .. } | Self::Failed { step, .. } => match &**step {
                Step::PutPolicy(policy) => Affected::Object(&policy.name),
                Step::PutQueue(queue) => Affected::Object(&queue.name),
                Step::PutExchange(exchange) => Affected::Object(&exchange.name),
                Step::Bind(binding) => Affected::Object(&binding.queue),
                // Without the link to its own pushes the exchange leads nowhere.
                Step::Link(link) if names::owner(&link.to) == names::owner(&link.from) => Affected::Object(&link.from),
                Step::Link(link) => Affected::Object(&link.to),
                Step::PutUser(user) | Step::PutPermissions(user) | Step::PutUserLimits(user) => {
                    Affected::User(&user.name)
                }
                // Only a removal is missing. Without its mark nothing of a business is made, and there is no report.
                Step::MarkBusiness { .. }
                | Step::UnmarkBusiness(_)
                | Step::Unbind(_)
                | Step::DeleteQueue(_)
                | Step::DeleteStream(_)
                | Step::DeleteExchange(_)
                | Step::DeletePolicy(_)
                | Step::DeleteUser { .. } => Affected::Nothing,
            },
            // A queue that is no longer open was open before, and its bindings stay.
            Self::QueueNotOpen { bound: true, .. }
            | Self::Held { .. }
            | Self::Reserved { .. }
            | Self::LeadsBack { .. }
            | Self::Kept { .. }
            | Self::MoreRoom { .. }
            | Self::PolicyOverruled { .. }
            | Self::PolicyLimited { .. }
            | Self::TooFewReplicas { .. }
            | Self::Unverified { .. } => Affected::Nothing,
        }
    }

    /// A queue or stream that is no longer declared but still exists because of it.
    pub fn kept(&self) -> Option<&str> {
        match self {
            Self::Kept { queue, .. } => Some(queue),
            Self::Refused { step, .. } | Self::Failed { step, .. } => step.keeps(),
            _ => None,
        }
    }

    /// Whether it is only to be known: what was declared is there, and something more.
    pub fn is_notice(&self) -> bool {
        matches!(self, Self::Kept { .. } | Self::MoreRoom { .. } | Self::NoTarget { .. })
    }

    /// Whether a retry of the same step may succeed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Unverified { .. } | Self::NoTarget { .. })
    }
}

/// How a queue or stream gets its missing replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaRepair {
    /// Too few nodes of the broker run.
    WhenNodesJoin {
        /// How many run.
        running: usize,
    },
    /// The keeper is adding them.
    BeingAdded,
    /// It is a stream: an administrator must add them.
    ByHand {
        /// The vhost.
        vhost: String,
        /// A running node without a replica.
        node: String,
    },
}

impl Problem {
    /// Whether it is a stream that stays with its messages.
    pub fn is_kept_stream(&self) -> bool {
        matches!(self, Self::Kept { because: KeepReason::Stream, .. })
    }

    /// Whether a change waits for a person's word, since it would destroy messages.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }

    /// Whether it passes in a few seconds: a queue that was found empty is checked once more.
    pub fn is_confirming(&self) -> bool {
        matches!(self, Self::Kept { because: KeepReason::Confirming, .. })
    }
}
