//! The broker objects that a business needs, as data. [`crate::compile`] makes them; the `topology` crate applies them.

pub use crate::compile::{GROUP_SIZE, shared_policies, shared_policy_of};

mod intake;

pub use intake::{Destinations, Intake, UnroutedMessage};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::names;

/// Everything that one business needs on the broker. Each list is sorted by name, so that equal declarations give equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Exchanges, durable, never auto-deleted.
    pub exchanges: Vec<Exchange>,
    /// Queues and streams, durable.
    pub queues: Vec<Queue>,
    /// Queues that a team owns and that are only bound; they must exist.
    pub existing_queues: Vec<String>,
    /// Those of them that may be bound without their owner's permission. Empty as compiled: the caller that applies the topology knows.
    #[serde(skip)]
    pub open_queues: Vec<String>,
    /// Queues of ours whose declaration says how many bytes they hold.
    #[serde(skip)]
    pub bounded: Vec<String>,
    /// Which messages of clients each queue accepts, in the order of the routes.
    pub intake: Vec<Intake>,
    /// Bindings of queues, all to exchanges of ours.
    pub bindings: Vec<Binding>,
    /// Bindings of exchanges to exchanges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// Policies of single queues and streams: where the declaration asks for other limits or another retention than
    /// [`shared_policies`] give. Each is called as its queue and stands alone.
    pub policies: Vec<Policy>,
}

impl Topology {
    /// The policy that should apply to a queue or stream of this business: the one that leaves it more room, its own, or a shared one.
    pub fn policy_of(&self, queue: &str) -> Option<&Policy> {
        let of = |name: &str| self.policies.iter().find(|own| own.name == name);
        if self.policies.is_empty() {
            return shared_policy_of(queue);
        }
        let room = names::room_policy(queue).and_then(|name| of(&name));
        room.or_else(|| of(queue)).or_else(|| shared_policy_of(queue))
    }
}

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exchange {
    /// Full name.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Where messages go that match no binding.
    pub alternate: Option<String>,
}

/// How an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeKind {
    /// By pattern of the routing key.
    Topic,
    /// To every binding.
    Fanout,
    /// To the bindings with exactly its routing key.
    Direct,
    /// To the bindings with a header of the message.
    Headers,
}

/// A durable queue or stream. Only what can never change is an argument; everything else is in policies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// Full name.
    pub name: String,
    /// `x-queue-type`.
    pub kind: QueueKind,
    /// `x-dead-letter-exchange`.
    pub dead_letter: Option<String>,
}

/// `x-queue-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// Replicated, with delivery limit.
    Quorum,
    /// Append-only log, read by offset.
    Stream,
}

/// A binding of a queue to an exchange.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// The exchange.
    pub exchange: String,
    /// The queue.
    pub queue: String,
    /// [`queue_key`](crate::names::queue_key) for `receive`, the key itself for direct; empty for fanout.
    pub routing_key: String,
}

/// A binding of an exchange to a headers exchange.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The exchange that messages come from; of this business.
    pub from: String,
    /// The exchange that they go to; of this or another business.
    pub to: String,
    /// The header that a message must have.
    pub header: String,
    /// Its value.
    pub value: String,
}

/// A policy. Of all policies that match an object the broker applies only the one with the highest priority.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Full name, `wirepost.…`.
    pub name: String,
    /// Anchored and escaped regular expression.
    pub pattern: String,
    /// `quorum_queues` or `streams`.
    pub apply_to: &'static str,
    /// A single queue's is above the shared ones; a foreign policy with a higher one wins and is reported.
    pub priority: i32,
    /// Keys as the broker names them, such as `max-length-bytes`.
    pub definition: Map<String, Value>,
}
