//! The broker objects that a business needs, as data. [`crate::compile`] makes them; the `topology` crate applies them.

use serde::Serialize;
use serde_json::{Map, Value};

/// Everything that one business needs on the broker. Each list is sorted by name, so that equal declarations give equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Exchanges, durable, never auto-deleted.
    pub exchanges: Vec<Exchange>,
    /// Queues and streams, durable.
    pub queues: Vec<Queue>,
    /// Queues that a team owns and that we only bind; they must exist.
    pub existing_queues: Vec<String>,
    /// Bindings, all from exchanges of ours.
    pub bindings: Vec<Binding>,
    /// Policies: all that can change while the objects live (limits, retention, dead-lettering).
    pub policies: Vec<Policy>,
}

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exchange {
    /// Full name.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Where messages go that no binding takes, for good. Where that can change it is in a policy.
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
}

/// A durable queue or stream. Only what can never change is an argument (`x-queue-type`); all else is in policies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// Full name.
    pub name: String,
    /// Its type.
    pub kind: QueueKind,
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
    /// Topic pattern; empty for fanout.
    pub routing_key: String,
}

/// A policy. Of all policies that match an object the broker applies only the one with the highest priority.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Full name, `wirepost.…`.
    pub name: String,
    /// Anchored and escaped regular expression ([`crate::names::exact_pattern`]).
    pub pattern: String,
    /// `queues`, `quorum_queues`, `streams` or `exchanges`.
    pub apply_to: &'static str,
    /// Among ours all are equal; foreign ones with more win and are reported.
    pub priority: i32,
    /// Keys as the broker names them, such as `max-length-bytes`.
    pub definition: Map<String, Value>,
}
