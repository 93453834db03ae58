//! What was found about a business, and the status that follows from it.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::Value;
use wirepost_core::{
    business::{EdgesStatus, ExchangesStatus, LocalReference, RetentionStatus, WsBusinessStatus},
    contract::condition::{ConditionType, Reason},
};

use super::{ConditionState, EdgeProgress};

/// Longest message of a condition: the API server takes 32,768 bytes; a person reads less.
const MAX_MESSAGE: usize = 2_000;

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
    /// How many connections its clients have, about; `None` keeps what was reported.
    pub clients: Option<i64>,
    /// What the class of the business says; `None`: no class applies.
    pub policy: Option<Policy>,
    /// See [`ConditionType::Linked`]; `None`: it has nothing to do with other businesses.
    pub linked: Option<ConditionState>,
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
    /// What its class gave the declaration; `None`: no class applied.
    pub terms: Option<Value>,
    /// What is in force on its stream; `None`: there is none, or it is not known.
    pub retention: Option<RetentionStatus>,
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
            clients: None,
            policy: None,
            linked: None,
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
            clients: None,
            policy: None,
            linked: None,
        }
    }

    /// The Secret with the credentials, as it is now.
    pub fn set_secret(&mut self, secret: Option<String>) {
        if let Some(facts) = &mut self.facts {
            facts.secret = secret;
        }
    }

    /// What is in force on the stream; `None` leaves what was reported.
    pub fn set_retention(&mut self, retention: Option<RetentionStatus>) {
        if let (Some(facts), Some(retention)) = (&mut self.facts, retention) {
            facts.retention = Some(retention);
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
        .chain(self.linked.as_ref().map(|linked| (ConditionType::Linked, linked)))
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
            status.terms.clone_from(&facts.terms);
            status.retention.clone_from(&facts.retention);
        }
        if let Some((programmed, total)) = self.edges {
            let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
            status.edges = Some(EdgesStatus {
                programmed: count(programmed),
                total: count(total),
                summary: Some(format!("{programmed}/{total}")),
            });
        }
        status.clients = self.clients.or(old.clients);
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

    fn findings() -> Findings {
        Findings {
            accepted: ConditionState::met(Reason::Accepted, ""),
            provisioned: ConditionState::met(Reason::Provisioned, ""),
            programmed: ConditionState::met(Reason::Programmed, ""),
            facts: None,
            edges: Some((2, 2)),
            clients: None,
            policy: None,
            linked: None,
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
    fn the_same_findings_give_the_same_status_with_the_same_times() {
        let mut first = findings().status(3, &WsBusinessStatus::default());
        for condition in &mut first.conditions {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        assert_eq!(findings().status(3, &first), first);
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
