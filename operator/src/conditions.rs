//! What is reported about a business: conditions and status, made without I/O. The types and reasons of conditions are in
//! [`wirepost_core::contract::condition`].

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::Value;
use wirepost_core::{
    business::{EdgesStatus, ExchangesStatus, LocalReference, WsBusinessStatus},
    contract::condition::{ConditionType, Reason},
};

use crate::edges::EdgeProgress;

/// Longest message of a condition: the API server takes 32,768 bytes; a person reads less.
const MAX_MESSAGE: usize = 2_000;
/// Sentences of many that a message contains; the rest is counted.
const NAMED: usize = 5;

/// What was found about one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionState {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// Why.
    pub reason: Reason,
    /// For people: what is wrong and what to do.
    pub message: String,
}

impl ConditionState {
    /// As it should be.
    pub fn met(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "True", reason, message: message.into() }
    }

    /// Not as it should be.
    pub fn not_met(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "False", reason, message: message.into() }
    }

    /// Not known.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason, message: message.into() }
    }

    /// Of a generation that is not accepted.
    pub fn not_accepted() -> Self {
        Self::unknown(
            Reason::NotAccepted,
            "this generation is not accepted; what was accepted before goes on unchanged",
        )
    }

    /// For an accepted generation whose queue of the team's own is missing now.
    pub fn partly_in_force() -> Self {
        Self::unknown(
            Reason::NotAccepted,
            "a queue of the team's own is missing or not open (see Accepted): its routes wait for it, everything else of this generation is in force",
        )
    }

    /// Not known yet.
    pub fn pending(what: &str) -> Self {
        Self::unknown(Reason::Pending, format!("waiting for {what}"))
    }

    /// Whether it is as it should be.
    pub fn is_met(&self) -> bool {
        self.status == "True"
    }
}

impl EdgeProgress {
    /// The condition Programmed.
    pub fn condition(&self) -> ConditionState {
        let Self { total, needed, programmed, since: _, behind, unreachable, others: _ } = self;
        if *total == 0 {
            return ConditionState::not_met(
                Reason::NoEdges,
                "no edge is ready: look at the edge Deployment's pods and their logs",
            );
        }
        if programmed == total {
            return ConditionState::met(Reason::Programmed, "every ready edge runs this generation");
        }
        if programmed >= needed {
            let others: Vec<String> = behind.iter().chain(unreachable.iter().map(|(edge, _)| edge)).cloned().collect();
            let text = format!(
                "enough edges run this generation: {programmed} of {total}, {needed} needed; not known to run it: {}",
                summarize(&others)
            );
            return ConditionState::met(Reason::Programmed, text);
        }
        if let Some((edge, reason)) = unreachable.first()
            && programmed + unreachable.len() >= *needed
        {
            let text = format!(
                "{} of {total} edges don't answer the operator, such as {edge}: {reason}; a NetworkPolicy must let it reach their admin port",
                unreachable.len()
            );
            return ConditionState::unknown(Reason::EdgesUnreachable, text);
        }
        let text = format!("waiting for {} of {total} edges: {}", behind.len(), summarize(behind));
        ConditionState::not_met(Reason::EdgesBehind, text)
    }
}

/// The first of many sentences.
pub fn summarize(sentences: &[String]) -> String {
    let mut text = sentences.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if sentences.len() > NAMED {
        text = format!("{text}; and {} more", sentences.len() - NAMED);
    }
    text
}

/// Everything that was found about a business.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// See [`ConditionType::Accepted`].
    pub accepted: ConditionState,
    /// See [`ConditionType::Provisioned`].
    pub provisioned: ConditionState,
    /// See [`ConditionType::Programmed`].
    pub programmed: ConditionState,
    /// What the business's people need; `None` keeps what was reported.
    pub facts: Option<Facts>,
    /// Edges that run this generation, and all ready ones.
    pub edges: Option<(usize, usize)>,
    /// What the class of the business says; `None`: no class applies.
    pub policy: Option<Policy>,
}

/// What a class allows and forbids of a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Name of the class.
    pub class: String,
    /// See [`ConditionType::Permitted`].
    pub permitted: ConditionState,
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
    /// Of a generation that is not accepted.
    pub fn rejected(accepted: ConditionState) -> Self {
        Self {
            accepted,
            provisioned: ConditionState::not_accepted(),
            programmed: ConditionState::not_accepted(),
            facts: None,
            edges: None,
            policy: None,
        }
    }

    /// Of a declaration that is accepted, before anything else is known.
    pub fn accepted(facts: Facts) -> Self {
        Self {
            accepted: ConditionState::met(Reason::Accepted, "the declaration is valid"),
            provisioned: ConditionState::pending("the broker"),
            programmed: ConditionState::pending("the broker"),
            facts: Some(facts),
            edges: None,
            policy: None,
        }
    }

    /// The Secret with the credentials, as it is now.
    pub fn set_secret(&mut self, secret: Option<String>) {
        if let Some(facts) = &mut self.facts {
            facts.secret = secret;
        }
    }

    /// How many edges run what is in force. This does not cover a declaration whose routes are partly left out.
    pub fn set_progress(&mut self, progress: &EdgeProgress) {
        self.edges = Some((progress.programmed, progress.total));
        self.programmed = if self.accepted.is_met() { progress.condition() } else { ConditionState::partly_in_force() };
    }

    /// The status that follows. `old` is what is stored: times of conditions that have not changed stay.
    pub fn status(&self, generation: i64, old: &WsBusinessStatus) -> WsBusinessStatus {
        let mut status = old.clone();
        let ready = self.ready();
        let abnormal = self.abnormal();
        status.observed_generation = Some(generation);
        status.class_name = self.policy.as_ref().map(|policy| policy.class.clone());
        status.conditions = [
            (ConditionType::Accepted, &self.accepted),
            (ConditionType::Provisioned, &self.provisioned),
            (ConditionType::Programmed, &self.programmed),
            (ConditionType::Ready, &ready),
        ]
        .into_iter()
        .chain(self.policy.as_ref().map(|policy| (ConditionType::Permitted, &policy.permitted)))
        .chain(abnormal.as_ref().map(|(kind, state)| (*kind, state)))
        .map(|(kind, state)| condition(kind, state, generation, &old.conditions))
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

    /// The conditions that are not met, in the order in which they come true.
    fn unmet(&self) -> impl Iterator<Item = &ConditionState> {
        [&self.accepted, &self.provisioned, &self.programmed].into_iter().filter(|state| !state.is_met())
    }

    fn ready(&self) -> ConditionState {
        let Some(first) = self.unmet().next() else {
            return ConditionState::met(Reason::Ready, "clients can connect, messages flow");
        };
        let failed = self.unmet().any(|state| state.status == "False");
        ConditionState { status: if failed { "False" } else { "Unknown" }, ..first.clone() }
    }

    /// Whether what is not met needs somebody (`Stalled`) or only takes time (`Reconciling`).
    fn abnormal(&self) -> Option<(ConditionType, ConditionState)> {
        let stalled = self.unmet().find(|state| state.reason.needs_help());
        let (kind, state) = match stalled {
            Some(state) => (ConditionType::Stalled, state),
            None => (ConditionType::Reconciling, self.unmet().next()?),
        };
        Some((kind, ConditionState { status: "True", ..state.clone() }))
    }
}

/// Whether two conditions say the same, whenever they changed.
pub fn same_but_time(a: &Condition, b: &Condition) -> bool {
    Condition { last_transition_time: b.last_transition_time.clone(), ..a.clone() } == *b
}

/// Whether two statuses say the same, whenever their conditions changed.
pub fn same_but_times(a: &WsBusinessStatus, b: &WsBusinessStatus) -> bool {
    let without_times = |status: &WsBusinessStatus| {
        let mut status = status.clone();
        for condition in &mut status.conditions {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        status
    };
    without_times(a) == without_times(b)
}

/// Every field of a status.
const FIELDS: [&str; 9] = [
    "observedGeneration",
    "businessType",
    "className",
    "conditions",
    "tokenUrl",
    "exchanges",
    "queues",
    "binding",
    "edges",
];

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

fn condition(kind: ConditionType, state: &ConditionState, generation: i64, old: &[Condition]) -> Condition {
    let before = old.iter().find(|c| c.type_ == kind.as_str() && c.status == state.status);
    let since = before.map_or_else(|| Time(Timestamp::now()), |c| c.last_transition_time.clone());
    Condition {
        type_: kind.as_str().to_owned(),
        status: state.status.to_owned(),
        reason: state.reason.as_str().to_owned(),
        message: cut(&state.message),
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
    use crate::edges::Share;

    fn findings() -> Findings {
        Findings {
            accepted: ConditionState::met(Reason::Accepted, ""),
            provisioned: ConditionState::met(Reason::Provisioned, ""),
            programmed: ConditionState::met(Reason::Programmed, ""),
            facts: None,
            edges: Some((2, 2)),
            policy: None,
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
            provisioned: ConditionState::not_met(Reason::BrokerUnavailable, "x"),
            programmed: ConditionState::not_met(Reason::NoEdges, "y"),
            ..findings()
        };
        assert_eq!(ready(&bad.status(3, &good)), ("False".into(), "BrokerUnavailable".into()));
        assert!(good.conditions.iter().all(|c| c.observed_generation == Some(3)));
    }

    #[test]
    fn what_cannot_be_told_is_not_false() {
        let away = Findings { provisioned: ConditionState::unknown(Reason::BrokerUnavailable, "x"), ..findings() };
        assert_eq!(
            ready(&away.status(3, &WsBusinessStatus::default())),
            ("Unknown".into(), "BrokerUnavailable".into())
        );
        let late = Findings { programmed: ConditionState::not_met(Reason::EdgesBehind, "y"), ..away };
        assert_eq!(ready(&late.status(3, &WsBusinessStatus::default())), ("False".into(), "BrokerUnavailable".into()));
    }

    #[test]
    fn it_is_stalled_while_somebody_must_act_and_else_reconciling_until_it_is_ready() {
        let of = |findings: &Findings| {
            let status = findings.status(1, &WsBusinessStatus::default());
            let mut found: Vec<_> =
                status.conditions.into_iter().skip(4).map(|c| (c.type_, c.status, c.reason)).collect();
            assert!(found.len() < 2);
            found.pop()
        };
        assert_eq!(of(&findings()), None);
        let behind = Findings { programmed: ConditionState::not_met(Reason::EdgesBehind, ""), ..findings() };
        assert_eq!(of(&behind), Some(("Reconciling".into(), "True".into(), "EdgesBehind".into())));
        // Even if something else only takes time, somebody must act.
        let taken = Findings {
            provisioned: ConditionState::unknown(Reason::BrokerUnavailable, ""),
            accepted: ConditionState::not_met(Reason::QueueNotFound, ""),
            ..behind
        };
        assert_eq!(of(&taken), Some(("Stalled".into(), "True".into(), "QueueNotFound".into())));
    }

    #[test]
    fn a_business_is_programmed_by_a_share_of_the_edges() {
        let of = |total: usize, programmed: usize, unreachable: usize| {
            let names = |n: usize| (0..n).map(|i| format!("edge-{i}"));
            let progress = EdgeProgress {
                total,
                needed: Share::new(80).of(total),
                programmed,
                since: None,
                behind: names(total - programmed - unreachable).collect(),
                unreachable: names(unreachable).map(|name| (name, "timeout".to_owned())).collect(),
                others: false,
            };
            let ConditionState { status, reason, .. } = progress.condition();
            (status, reason)
        };
        assert_eq!(of(0, 0, 0), ("False", Reason::NoEdges));
        for (total, enough) in [(1, 1), (2, 2), (4, 4), (5, 4), (10, 8), (11, 9)] {
            assert_eq!(of(total, enough, 0), ("True", Reason::Programmed), "{total}");
            assert_eq!(of(total, enough - 1, 0), ("False", Reason::EdgesBehind), "{total}");
            assert_eq!(of(total, enough - 1, 1), ("Unknown", Reason::EdgesUnreachable), "{total}");
        }
        assert_eq!(of(10, 5, 2), ("False", Reason::EdgesBehind), "the two that do not answer are not enough");
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
        let bad = Findings::rejected(ConditionState::not_met(Reason::InvalidRoute, "…")).status(2, &good);
        assert_eq!((bad.queues, bad.edges), (good.queues, good.edges));
        assert_eq!(bad.observed_generation, Some(2));
    }
}
