//! Problems in words: what is wrong, and what to do.

use std::fmt;

use super::{Problem, ReplicaRepair};
use crate::depth::{KeepReason, LOOKS_APART};
use crate::open::ACCEPT_ARGUMENT;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs { kind, name, is, should_be } => write!(
                f,
                "{kind} {name} is {is} and should be {should_be}; this can't be changed in place: empty and delete it, and it is created again"
            ),
            Self::MissingQueue { queue } => write!(
                f,
                "queue {queue} does not exist; declare it, or leave out `existing: true` to get a queue made for the route"
            ),
            Self::NoTarget { link } => write!(
                f,
                "exchange {} does not exist, so nothing is copied to it; it is bound as soon as that business is on the broker",
                link.to
            ),
            Self::QueueNotOpen { queue, business, bound: _ } => write!(
                f,
                "queue {queue} is not open to {business}; its owner declares it again with the argument {ACCEPT_ARGUMENT}: {business}, or the platform team opens it to the namespace by --existing-queues"
            ),
            Self::LeadsBack { object, to } => write!(
                f,
                "{object} passes events on to {to}, where they would become messages and events again; it is unbound: declare it again without a dead-letter or alternate exchange of wirepost's"
            ),
            Self::Kept { queue, because: KeepReason::Messages(n) } => {
                write!(
                    f,
                    "queue {queue} is no longer declared but holds {n} messages; consume or purge them, and it goes"
                )
            }
            Self::Kept { queue, because: KeepReason::Consumers(n) } => {
                write!(f, "queue {queue} is no longer declared but has {n} consumers; stop them, and it goes")
            }
            Self::Kept { queue, because: KeepReason::Stream } => write!(
                f,
                "stream {queue} is no longer declared; what it keeps is not deleted unasked: delete it, or declare the business again"
            ),
            Self::Kept { queue, because: KeepReason::Confirming } => write!(
                f,
                "queue {queue} is no longer declared and is empty; it is deleted if it is still empty after {} s",
                LOOKS_APART.as_secs()
            ),
            Self::Kept { queue, because: KeepReason::Edges } => write!(
                f,
                "{queue} is no longer declared; it stays as it is until every edge runs this generation, as edges with a former one may use it"
            ),
            Self::Kept { queue, because: KeepReason::Unknown(why) } => {
                write!(
                    f,
                    "queue {queue} is no longer declared; it is kept because nobody can tell whether it is empty: {why}"
                )
            }
            Self::Held { destruction, shared: None } => {
                write!(f, "{destruction}; nothing of it is done until a person allows it")
            }
            Self::Held { destruction, shared: Some(policy) } => write!(
                f,
                "{destruction}, by policy {policy} of all businesses, so that policy stays as it is; if that is meant, delete it, and it is set as declared"
            ),
            Self::Reserved { business, namespace: Some(namespace) } => {
                write!(f, "what is left of business {business} on the broker belongs to namespace {namespace}")
            }
            Self::Reserved { business, namespace: None } => {
                write!(f, "something of business {business} is left on the broker, and nothing says whose it is")
            }
            Self::PolicyOverruled { queue, policy, by: Some(by) } => write!(
                f,
                "policy {by} is in force on {queue} instead of {policy}; lower its priority or narrow its pattern"
            ),
            Self::PolicyOverruled { queue, policy, by: None } => {
                write!(f, "no policy is in force on {queue}, it should be {policy}; see the broker's log")
            }
            Self::PolicyLimited { queue, by, keys } => write!(
                f,
                "operator policy {by} changes {} on {queue}; widen it, or declare what it allows",
                keys.join(", ")
            ),
            Self::Unverified { reason } => {
                write!(f, "the policies that are in force can't be checked: {reason}; it is tried again")
            }
            Self::TooFewReplicas { queue, on, wanted, repair } => {
                write!(f, "{queue} has copies on {} of {wanted} nodes ({})", on.len(), on.join(", "))?;
                match repair {
                    ReplicaRepair::WhenNodesJoin { running } => {
                        write!(
                            f,
                            "; the broker has {running} running nodes: bring the others back, or lower --broker-nodes"
                        )
                    }
                    ReplicaRepair::BeingAdded => f.write_str("; the others are being added"),
                    ReplicaRepair::ByHand { vhost, node } => write!(
                        f,
                        "; only RabbitMQ's own tool can add one to a stream: `rabbitmq-streams add_replica --vhost {vhost} {queue} {node}`"
                    ),
                }
            }
            Self::MoreRoom { queue, bytes, default } => {
                let room = bytes.map_or_else(|| "any number of bytes".to_owned(), |bytes| format!("{bytes} bytes"));
                write!(
                    f,
                    "queue {queue} held more than the default of {default} bytes when that came, and may hold {room} until it holds less than half of the default: let its consumers catch up, or set queue.maxLengthBytes"
                )
            }
            Self::UserTaken { user, tag } => {
                write!(
                    f,
                    "broker user {user} exists without the tag {tag}, so it is not ours; delete it, and it is created again"
                )
            }
            Self::Refused { step, reason } => write!(f, "{step}: refused: {reason}"),
            Self::Failed { step, reason } => write!(f, "{step}: failed: {reason}; it is tried again"),
        }
    }
}
