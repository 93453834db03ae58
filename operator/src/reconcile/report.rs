//! Writes a status if it has changed, but not for what passes in a moment.
//!
//! **The delay.** One failed snapshot of the broker, or one edge that does not answer, concerns every business at the same time: reported
//! immediately, a blip of a second would cost two writes for each of a thousand resources, and as many alarms. So changes of that kind
//! ([`Reason::may_pass`], and the number of edges) wait for [`Options::status_delay`](super::Options::status_delay) and are written only if
//! they last that long. Improvements, a new generation, and changes of one business alone are written immediately.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use wirepost_core::{
    business::WsBusinessStatus,
    contract::condition::{ConditionType, Reason},
};

use super::{Error, Reconcile, state::ResourceState};
use crate::{
    conditions::{ConditionState, Findings, same_but_time, summarize},
    metrics::Object,
};

impl Reconcile<'_> {
    /// Writes the status if it differs from what is known, now or after the delay. Whether the business is ready.
    pub(super) async fn report(&self, findings: &Findings) -> Result<bool, Error> {
        let Self { stored, context } = *self;
        let policy = context.states.of(stored, |state| state.policy.clone());
        let old = stored.status();
        let new = Findings { policy, linked: self.linked(), ..findings.clone() }.status(stored.generation(), &old);
        let ready = new.conditions.iter().any(|c| c.type_ == ConditionType::Ready.as_str() && c.status == "True");
        if new == old || !context.states.of(stored, |state| state.is_news(&new)) {
            context.states.of(stored, ResourceState::release_status);
            return Ok(ready);
        }
        if may_wait(&old, &new) {
            let (held, begins) = context.states.of(stored, |state| state.hold_status(context.options.status_delay));
            if begins {
                context.metrics.status_delays.inc();
            }
            if held {
                return Ok(ready);
            }
        }
        context.states.of(stored, ResourceState::release_status);
        if let Err(error) = context.writer.status(stored, &new).await {
            if error.is_invalid() {
                // The API server takes no write to an object with a field of another type than today's, not even of its status, until
                // somebody corrects it. Events still reach people.
                let before = context.states.of(stored, |state| state.unwritten_status.replace(new.clone()));
                context.events.changed(stored, &before.unwrap_or(old), &new).await;
            }
            return Err(error.into());
        }
        context.states.of(stored, |state| state.wrote_status(new.clone()));
        if context.events.changed(stored, &old, &new).await > 0 {
            context.metrics.wrote(Object::Event);
        }
        Ok(ready)
    }

    /// What leads to this business from others, and to others from it.
    fn linked(&self) -> Option<ConditionState> {
        let Self { stored, context } = *self;
        if stored.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let accepts = stored.accepts_from();
        let accepted_by: Vec<String> = context.acceptors(stored.business_type()).into_iter().collect();
        if accepts.is_empty() && accepted_by.is_empty() {
            return None;
        }
        let (known, missing): (Vec<String>, Vec<String>) = accepts.into_iter().partition(|from| context.runs(from));
        let both: Vec<String> = known.iter().filter(|from| accepted_by.contains(from)).cloned().collect();
        let part = |text: &str, names: &[String]| (!names.is_empty()).then(|| format!("{text} {}", summarize(names)));
        let parts = [
            part("no business is called", &missing),
            part("accepts messages of", &known),
            part("its messages are accepted by", &accepted_by),
            part("both ways with", &both),
        ];
        let text = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
        Some(if missing.is_empty() {
            ConditionState::met(Reason::Linked, text)
        } else {
            let text = format!("{text}; acceptFrom begins to work for a name as soon as that business is there");
            ConditionState::not_met(Reason::SenderNotFound, text)
        })
    }

    /// When a status that was not written must be checked again, if there is one; after `pause` at the latest.
    pub(super) fn status_due_within(&self, pause: Duration) -> Duration {
        self.context.states.of(self.stored, ResourceState::status_due).map_or(pause, |due| due.min(pause))
    }
}

/// Whether the difference is of the kind that often passes.
fn may_wait(old: &WsBusinessStatus, new: &WsBusinessStatus) -> bool {
    let rest = |status: &WsBusinessStatus| WsBusinessStatus {
        conditions: Vec::new(),
        edges: None,
        clients: None,
        ..status.clone()
    };
    let same_conditions = old.conditions.len() == new.conditions.len()
        && old.conditions.iter().zip(&new.conditions).all(|(was, is)| same_but_time(was, is));
    // The number of clients is counted seldom enough.
    if same_conditions && old.edges == new.edges && rest(old) == rest(new) {
        return false;
    }
    // All edges run it: an improvement, like a condition that becomes True.
    let all_run_it =
        |status: &WsBusinessStatus| status.edges.as_ref().is_none_or(|edges| edges.programmed == edges.total);
    rest(old) == rest(new)
        && (all_run_it(old) || !all_run_it(new))
        && ConditionType::ALL.into_iter().all(|kind| {
            let find = |status: &WsBusinessStatus| status.conditions.iter().find(|c| c.type_ == kind.as_str()).cloned();
            match (find(old), find(new)) {
                (None, None) => true,
                (Some(was), Some(is)) if same_but_time(&was, &is) => true,
                (Some(was), Some(is)) => !(is.status == "True" && was.status != "True") && is_passing(kind, &is),
                (None, Some(is)) => kind.is_abnormal() && is_passing(kind, &is),
                // What was reported only while it lasted has ended.
                (Some(_), None) => false,
            }
        })
}

/// Whether what a condition reports often passes. "Enough edges" counts: its message names the edges that lag.
fn is_passing(kind: ConditionType, condition: &Condition) -> bool {
    let reason = Reason::parse(&condition.reason);
    reason.is_some_and(Reason::may_pass) || (kind == ConditionType::Programmed && reason == Some(Reason::Programmed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(generation: i64, change: impl FnOnce(&mut Findings)) -> WsBusinessStatus {
        let mut findings = Findings {
            accepted: ConditionState::met(Reason::Accepted, "a"),
            provisioned: ConditionState::met(Reason::Provisioned, "b"),
            programmed: ConditionState::met(Reason::Programmed, "c"),
            facts: None,
            edges: Some((2, 2)),
            clients: None,
            policy: None,
            linked: None,
        };
        change(&mut findings);
        findings.status(generation, &WsBusinessStatus::default())
    }

    #[test]
    fn what_every_business_has_in_a_blip_may_wait_and_nothing_else() {
        let good = || status(1, |_| {});
        let away = |reason| status(1, |f| f.provisioned = ConditionState::unknown(reason, "x"));
        let silent = || status(1, |f| f.programmed = ConditionState::unknown(Reason::EdgesUnreachable, "x"));
        let behind = || status(1, |f| f.programmed = ConditionState::not_met(Reason::EdgesBehind, "x"));
        for (old, new) in [
            (good(), away(Reason::BrokerUnavailable)),
            (good(), away(Reason::BrokerRefused)),
            (good(), silent()),
            (silent(), behind()),
            (good(), status(1, |f| f.edges = Some((2, 3)))),
            (good(), status(1, |f| (f.edges, f.clients) = (Some((2, 3)), Some(7)))),
            (good(), status(1, |f| f.programmed = ConditionState::met(Reason::Programmed, "9 of 10"))),
        ] {
            assert!(may_wait(&old, &new), "{old:?}\n{new:?}");
        }
        for (old, new) in [
            // Improvements.
            (away(Reason::BrokerUnavailable), good()),
            (behind(), good()),
            (status(1, |f| f.edges = Some((1, 2))), good()),
            // A first report, and one of another generation.
            (WsBusinessStatus::default(), behind()),
            (good(), status(2, |f| f.programmed = ConditionState::not_met(Reason::EdgesBehind, "x"))),
            // Counted once a minute.
            (good(), status(1, |f| f.clients = Some(7))),
            // Of this business alone.
            (good(), status(1, |f| f.provisioned = ConditionState::not_met(Reason::NotAsDeclared, "x"))),
            (good(), status(1, |f| f.provisioned = ConditionState::not_met(Reason::Drifted, "x"))),
            (good(), status(1, |f| f.provisioned = ConditionState::met(Reason::Provisioned, "but a queue is kept"))),
            (good(), status(1, |f| f.accepted = ConditionState::not_met(Reason::QueueNotFound, "x"))),
        ] {
            assert!(!may_wait(&old, &new), "{old:?}\n{new:?}");
        }
    }
}
