//! What is reported of a business, made without I/O. The conditions and their reasons: [`wirepost_core::contract::condition`].

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::Value;
use wirepost_core::{
    business::{EdgesStatus, ExchangesStatus, LocalReference, WsBusinessStatus},
    contract::condition::{ConditionType, Reason},
};

/// Longest message of a condition: the API server takes 32,768 bytes; a person reads less.
const MAX_MESSAGE: usize = 2_000;

/// What was found of one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// Why.
    pub reason: Reason,
    /// A sentence that says what to do where something is to be done.
    pub message: String,
}

impl Verdict {
    /// As it should be.
    pub fn good(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "True", reason, message: message.into() }
    }

    /// Not as it should be.
    pub fn bad(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "False", reason, message: message.into() }
    }

    /// Not looked at yet.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason, message: message.into() }
    }

    /// What follows a declaration that is not accepted.
    pub fn not_accepted() -> Self {
        Self::unknown(
            Reason::NotAccepted,
            "this generation is not accepted; what was accepted before goes on unchanged",
        )
    }

    /// Before the first look.
    pub fn pending(what: &str) -> Self {
        Self::unknown(Reason::Pending, format!("waiting for {what}"))
    }

    /// Whether it is as it should be.
    pub fn is_good(&self) -> bool {
        self.status == "True"
    }
}

/// Everything that was found of a business.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// See [`ConditionType::Accepted`].
    pub accepted: Verdict,
    /// See [`ConditionType::Provisioned`].
    pub provisioned: Verdict,
    /// See [`ConditionType::Programmed`].
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
            (ConditionType::Accepted, &self.accepted),
            (ConditionType::Provisioned, &self.provisioned),
            (ConditionType::Programmed, &self.programmed),
            (ConditionType::Ready, &ready),
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
            || Verdict::good(Reason::Ready, "clients can connect, messages flow"),
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

fn condition(kind: ConditionType, verdict: &Verdict, generation: i64, old: &[Condition]) -> Condition {
    let before = old.iter().find(|c| c.type_ == kind.as_str() && c.status == verdict.status);
    let since = before.map_or_else(|| Time(Timestamp::now()), |c| c.last_transition_time.clone());
    Condition {
        type_: kind.as_str().to_owned(),
        status: verdict.status.to_owned(),
        reason: verdict.reason.as_str().to_owned(),
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
            accepted: Verdict::good(Reason::Accepted, ""),
            provisioned: Verdict::good(Reason::Provisioned, ""),
            programmed: Verdict::good(Reason::Programmed, ""),
            facts: None,
            edges: Some((2, 2)),
        }
    }

    fn ready(status: &WsBusinessStatus) -> (String, String) {
        let ready = status.conditions.iter().find(|c| c.type_ == ConditionType::Ready.as_str()).unwrap();
        (ready.status.clone(), ready.reason.clone())
    }

    #[test]
    fn ready_sums_up_and_names_the_first_reason() {
        let good = findings().status(3, &WsBusinessStatus::default());
        assert_eq!(ready(&good), ("True".into(), "Ready".into()));
        let bad = Findings {
            provisioned: Verdict::bad(Reason::BrokerUnavailable, "x"),
            programmed: Verdict::bad(Reason::NoEdges, "y"),
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
        let bad = Findings::rejected(Verdict::bad(Reason::InvalidRoute, "…")).status(2, &good);
        assert_eq!((bad.queues, bad.edges), (good.queues, good.edges));
        assert_eq!(bad.observed_generation, Some(2));
    }
}
