//! What is reported of a business, made without I/O.
//!
//! | condition | True | False | Unknown |
//! |---|---|---|---|
//! | Accepted | `Accepted` | `BusinessTypeTaken`, `InvalidRoute`, `InvalidSchema`, `InvalidAuth`, `InvalidSpec`, `QueueNotFound`, `QueueNotOpen`, `CustomResourceDefinitionOutdated` | |
//! | Provisioned | `Provisioned` | `NotAsDeclared`, `Drifted`, `BrokerUnavailable`, `BrokerRefused`, `SecretTaken`, `WriteRefused`, `Deleting` | `NotAccepted`, `Pending` |
//! | Programmed | `Programmed` | `EdgesBehind`, `EdgesUnreachable`, `NoEdges` | `NotAccepted`, `Pending` |
//! | Ready | `Ready` | the reason of the first condition that is not True | |

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::Value;
use wirepost_core::business::{EdgesStatus, ExchangesStatus, LocalReference, WsBusinessStatus};

/// The declaration is valid and the business type is its own.
pub const ACCEPTED: &str = "Accepted";
/// The broker has exactly the topology, and the credentials are where they belong.
pub const PROVISIONED: &str = "Provisioned";
/// Every ready edge runs this generation.
pub const PROGRAMMED: &str = "Programmed";
/// All of them.
pub const READY: &str = "Ready";

/// Longest message of a condition: the API server takes 32,768 bytes; a person reads less.
const MAX_MESSAGE: usize = 2_000;

/// What was found of one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence that says what to do where something is to be done.
    pub message: String,
}

impl Verdict {
    /// As it should be.
    pub fn good(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "True", reason, message: message.into() }
    }

    /// Not as it should be.
    pub fn bad(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "False", reason, message: message.into() }
    }

    /// Not looked at yet.
    pub fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason, message: message.into() }
    }

    /// What follows a declaration that is not accepted.
    pub fn not_accepted() -> Self {
        Self::unknown("NotAccepted", "this generation is not accepted; what was accepted before goes on unchanged")
    }

    /// Before the first look.
    pub fn pending(what: &str) -> Self {
        Self::unknown("Pending", format!("waiting for {what}"))
    }

    /// Whether it is as it should be.
    pub fn is_good(&self) -> bool {
        self.status == "True"
    }
}

/// Everything that was found of a business.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// See [`ACCEPTED`].
    pub accepted: Verdict,
    /// See [`PROVISIONED`].
    pub provisioned: Verdict,
    /// See [`PROGRAMMED`].
    pub programmed: Verdict,
    /// What the business's people need; `None` keeps what was reported.
    pub facts: Option<Facts>,
    /// Edges that run this generation, and all ready ones.
    pub edges: Option<(usize, usize)>,
}

/// Addresses and names of a business.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The business type.
    pub business: String,
    /// Address of the token call.
    pub token_url: Option<String>,
    /// Queues that its services consume, by full name.
    pub queues: Vec<String>,
    /// The Secret with its credentials.
    pub secret: Option<String>,
}

impl Findings {
    /// Nothing but a verdict on the declaration.
    pub fn rejected(accepted: Verdict) -> Self {
        Self {
            accepted,
            provisioned: Verdict::not_accepted(),
            programmed: Verdict::not_accepted(),
            facts: None,
            edges: None,
        }
    }

    /// The status that follows. `old` is what is stored: times of conditions that have not changed stay.
    pub fn status(&self, generation: i64, old: &WsBusinessStatus) -> WsBusinessStatus {
        let mut status = old.clone();
        let ready = self.ready();
        status.observed_generation = Some(generation);
        status.conditions = [
            (ACCEPTED, &self.accepted),
            (PROVISIONED, &self.provisioned),
            (PROGRAMMED, &self.programmed),
            (READY, &ready),
        ]
        .into_iter()
        .map(|(kind, verdict)| condition(kind, verdict, generation, &old.conditions))
        .collect();
        if let Some(facts) = &self.facts {
            use wirepost_core::names;
            let business = &facts.business;
            status.business_type = Some(business.clone());
            status.token_url.clone_from(&facts.token_url);
            status.exchanges = Some(ExchangesStatus {
                receive: names::receive_exchange(business),
                push: names::push_exchange(business),
                events: names::events_exchange(business),
            });
            status.queues.clone_from(&facts.queues);
            status.binding = facts.secret.clone().map(|name| LocalReference { name });
        }
        if let Some((programmed, total)) = self.edges {
            let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
            status.edges = Some(EdgesStatus {
                programmed: count(programmed),
                total: count(total),
                summary: Some(format!("{programmed}/{total}")),
            });
        }
        status
    }

    fn ready(&self) -> Verdict {
        let first = [&self.accepted, &self.provisioned, &self.programmed].into_iter().find(|v| !v.is_good());
        first.map_or_else(
            || Verdict::good("Ready", "clients can connect, messages flow"),
            |v| Verdict::bad(v.reason, v.message.clone()),
        )
    }
}

/// Every field of a status.
const FIELDS: [&str; 8] =
    ["observedGeneration", "businessType", "conditions", "tokenUrl", "exchanges", "queues", "binding", "edges"];

/// The status as a merge patch (RFC 7396) that leaves nothing of a former one.
pub fn replacing(status: &WsBusinessStatus) -> Value {
    let mut patch = serde_json::to_value(status).unwrap_or_default();
    for field in FIELDS {
        if patch.get(field).is_none() {
            patch[field] = Value::Null;
        }
    }
    patch
}

fn condition(kind: &str, verdict: &Verdict, generation: i64, old: &[Condition]) -> Condition {
    let before = old.iter().find(|c| c.type_ == kind && c.status == verdict.status);
    let since = before.map_or_else(|| Time(Timestamp::now()), |c| c.last_transition_time.clone());
    Condition {
        type_: kind.to_owned(),
        status: verdict.status.to_owned(),
        reason: verdict.reason.to_owned(),
        message: cut(&verdict.message),
        observed_generation: Some(generation),
        last_transition_time: since,
    }
}

fn cut(message: &str) -> String {
    if message.len() <= MAX_MESSAGE {
        return message.to_owned();
    }
    let end = (0..=MAX_MESSAGE).rev().find(|i| message.is_char_boundary(*i)).unwrap_or_default();
    format!("{} …", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        Findings {
            accepted: Verdict::good("Accepted", ""),
            provisioned: Verdict::good("Provisioned", ""),
            programmed: Verdict::good("Programmed", ""),
            facts: None,
            edges: Some((2, 2)),
        }
    }

    fn ready(status: &WsBusinessStatus) -> (String, String) {
        let ready = status.conditions.iter().find(|c| c.type_ == READY).unwrap();
        (ready.status.clone(), ready.reason.clone())
    }

    #[test]
    fn ready_sums_up_and_names_the_first_reason() {
        let good = findings().status(3, &WsBusinessStatus::default());
        assert_eq!(ready(&good), ("True".into(), "Ready".into()));
        let bad = Findings {
            provisioned: Verdict::bad("BrokerUnavailable", "x"),
            programmed: Verdict::bad("NoEdges", "y"),
            ..findings()
        };
        assert_eq!(ready(&bad.status(3, &good)), ("False".into(), "BrokerUnavailable".into()));
        assert!(good.conditions.iter().all(|c| c.observed_generation == Some(3)));
    }

    #[test]
    fn the_same_findings_give_the_same_status_with_the_same_times() {
        let mut first = findings().status(3, &WsBusinessStatus::default());
        for condition in &mut first.conditions {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        assert_eq!(findings().status(3, &first), first);
    }

    #[test]
    fn a_patch_speaks_of_every_field() {
        let schema = wirepost_core::crd::schema();
        let known = schema["properties"]["status"]["properties"].as_object().unwrap();
        let patch = replacing(&WsBusinessStatus::default());
        let sorted = |keys: serde_json::map::Keys<'_>| keys.cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(patch.as_object().unwrap().keys()), sorted(known.keys()));
    }

    #[test]
    fn a_rejected_generation_keeps_what_was_reported_of_the_last_good_one() {
        let facts = Facts { business: "pay".into(), queues: vec!["q".into()], ..Facts::default() };
        let good = Findings { facts: Some(facts), ..findings() }.status(1, &WsBusinessStatus::default());
        let bad = Findings::rejected(Verdict::bad("InvalidRoute", "…")).status(2, &good);
        assert_eq!((bad.queues, bad.edges), (good.queues, good.edges));
        assert_eq!(bad.observed_generation, Some(2));
    }
}
