//! The end of a business: the edges first, then what it has on the broker, then its Secret and configuration, at last the resource itself.
//!
//! Works even if nothing was ever applied. Ends within the deadline, once the brake lets it begin: what can't be removed by then stays on
//! the broker, is named in an event, and is removed later as an orphan (queues only when they are empty). A deletion that the brake holds
//! has no deadline: it waits for an administrator, and the business is maintained.

use std::time::Duration;

use kube::runtime::controller::Action;
use wirepost_core::contract::condition::Reason;
use wirepost_runtime::clock::now_ms;
use wirepost_topology::{Problem, Report, depth::LOOKS_APART};

use super::{Done, Error, Reconcile, provision};
use crate::{
    AUDIT,
    brake::{self, Verdict},
    conditions::{ConditionState, Findings, summarize},
    config_map,
    metrics::Outcome,
    stored::{DELETE_QUEUES, SHARED_FINALIZER, StoredBusiness},
};

/// How long edges may take to let a business's clients go; only an edge that is cut off from the API server takes longer.
pub(super) const EDGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts to clean the broker.
const BROKER_INTERVAL: Duration = Duration::from_secs(5);
/// Between two checks whether another installation has removed the formerly shared finalizer.
const SHARED_INTERVAL: Duration = Duration::from_secs(30);
/// So that the second check is not slightly too early.
const CONFIRM_SLACK: Duration = Duration::from_millis(200);
/// Between two checks whether edges still run it.
const EDGE_INTERVAL: Duration = Duration::from_millis(500);

impl Reconcile<'_> {
    pub(super) async fn finalize(&self) -> Result<Done, Error> {
        let Self { stored, context } = *self;
        if context.own_finalizers(stored).is_empty() {
            self.forget();
            if stored.has_finalizer(SHARED_FINALIZER) {
                return Ok((Outcome::Waiting, Action::requeue(SHARED_INTERVAL)));
            }
            return Ok((Outcome::Ready, Action::await_change()));
        }
        if context.other_claimant(stored).is_some() || self.other_owners_config().is_some() {
            // It never had anything: everything belongs to another resource.
            return self.release(false).await;
        }
        match context.deletion(stored) {
            Verdict::Go => {}
            Verdict::Wait(pause) => return Ok((Outcome::Waiting, Action::requeue(pause))),
            Verdict::Held { ending, all } => return self.hold(ending, all).await,
        }
        let age = deletion_age(stored);
        let running = self.mark_removed().await?;
        if !running.is_empty() && age < EDGE_TIMEOUT.min(context.options.deletion_deadline) {
            let edges = summarize(&running);
            let text = format!("waiting for {} edges to let its clients go: {edges}", running.len());
            return self.wait(&text, EDGE_INTERVAL).await;
        }
        let mut rest = false;
        let obstacle = match context
            .broker
            .remove(stored.business_type(), self.owner(), stored.deletes_messages(context.deletion_default(stored)))
            .await
        {
            // It never had anything: what is there belongs to another namespace, or may.
            Ok(report) if provision::reserved(&report).is_some() => None,
            Ok(report) if report.is_clean() => {
                rest = !report.listeners.is_empty();
                None
            }
            // It can't be emptied, so nobody waits for it.
            Ok(report) if report.problems.iter().all(Problem::is_kept_stream) => {
                rest = true;
                None
            }
            Ok(report) if report.problems.iter().all(|it| it.is_confirming() || it.is_kept_stream()) => {
                Some((problems(&report), LOOKS_APART + CONFIRM_SLACK))
            }
            Ok(report) => {
                let text = format!(
                    "{}; to delete its queues and stream with their messages: kubectl -n {} annotate wsb {} {DELETE_QUEUES}=now",
                    problems(&report),
                    stored.metadata.namespace.as_deref().unwrap_or("default"),
                    stored.metadata.name.as_deref().unwrap_or_default(),
                );
                Some((text, BROKER_INTERVAL))
            }
            Err(failure) if failure.stopped => return Ok(self.retry()),
            Err(failure) => Some((format!("the broker can't be cleaned: {failure}"), BROKER_INTERVAL)),
        };
        if let Some((obstacle, interval)) = obstacle {
            let left = context.options.deletion_deadline.saturating_sub(age);
            if !left.is_zero() {
                let text = format!("{obstacle}; the resource is deleted in {} s at the latest", whole_minutes(left));
                return self.wait(&text, interval.min(left)).await;
            }
            context.events.not_cleaned(stored, &obstacle).await;
            rest = true;
        }
        self.release(rest).await
    }

    /// Tells the edges that the business ends, by its tombstone. The edges that still run it.
    async fn mark_removed(&self) -> Result<Vec<String>, Error> {
        let Self { stored, context } = *self;
        let business = stored.business_type();
        let map = context.config_map(business).filter(|map| config_map::owner(map) == stored.owner());
        let Some(map) = map else { return Ok(Vec::new()) };
        if !config_map::is_of(&map, stored) {
            // It was written for a resource of the same name: one before this, or one after it that is not seen yet. This changes nothing, and
            // fails if this one is gone.
            context.writer.finalizers(stored, None, &[]).await?;
        }
        if !config_map::is_tombstone(&map) {
            context.writer.config_map(&config_map::tombstone(&map)).await?;
        }
        Ok(context.edges.running(business))
    }

    async fn wait(&self, text: &str, interval: Duration) -> Result<Done, Error> {
        let findings = Findings {
            accepted: ConditionState::met(Reason::Accepted, "the resource is being deleted"),
            provisioned: ConditionState::not_met(Reason::Deleting, text),
            programmed: ConditionState::not_met(Reason::Deleting, "the edges accept no more clients of it"),
            facts: None,
            edges: None,
            clients: None,
            policy: None,
            linked: None,
        };
        self.report(&findings).await?;
        Ok((Outcome::Waiting, Action::requeue(interval)))
    }

    /// Nothing ends until an administrator confirms it: clients stay connected, and the broker keeps everything.
    async fn hold(&self, ending: usize, all: usize) -> Result<Done, Error> {
        let Self { stored, context } = *self;
        let text = format!(
            "{ending} of {all} businesses would end at the same time, so none does: its clients stay, and everything on the broker. If it is meant: {}. If not: take the finalizer off and apply the resource again; it goes on without a break",
            brake::release(&context.options.namespace, &context.options.lease)
        );
        let mut findings = Findings {
            accepted: ConditionState::met(Reason::Accepted, "the resource is being deleted"),
            provisioned: ConditionState::not_met(Reason::MassDeletion, text),
            programmed: ConditionState::pending("an administrator"),
            facts: None,
            edges: None,
            clients: None,
            policy: None,
            linked: None,
        };
        findings.set_progress(&self.progress(stored.business_type()));
        self.report(&findings).await?;
        match self.maintain(context.crd.known().is_err(), Some(BROKER_INTERVAL)).await {
            // For example a Secret in a namespace that is being deleted.
            Err(Error::Write(error)) if error.is_refusal() => {
                tracing::warn!(resource = stored.owner(), %error, "cannot write everything of a business whose deletion is on hold; trying again");
                Ok((Outcome::Waiting, Action::requeue(BROKER_INTERVAL)))
            }
            done => done,
        }
    }

    /// `rest`: something is left on the broker, so the business type is reserved for its namespace.
    async fn release(&self, rest: bool) -> Result<Done, Error> {
        let Self { stored, context } = *self;
        let business = stored.business_type();
        if let Some(binding) = stored.status().binding
            && let Err(error) = context.writer.delete_secret(stored, &binding.name).await
        {
            // Such as in a namespace that is itself being deleted. It has an owner reference, so it is deleted with the resource.
            tracing::warn!(business, secret = binding.name, %error, "cannot delete the Secret; the garbage collector deletes it with its resource");
        }
        let map = context.config_map(business).filter(|map| config_map::owner(map) == stored.owner());
        match map.filter(|map| config_map::reserved_for(map).is_none()) {
            Some(map) if rest => drop(context.writer.config_map(&config_map::reservation(&map)).await?),
            Some(_) => context.writer.delete_config_map(&config_map::name(business), None).await?,
            None => {}
        }
        let own = context.own_finalizers(stored);
        context.writer.finalizers(stored, None, &own.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        self.forget();
        context.brake.ended(business, stored.uid());
        tracing::info!(target: AUDIT, action = "remove_business", outcome = "done", business, resource = stored.owner(), "the business is removed");
        Ok((Outcome::Ready, Action::await_change()))
    }

    fn forget(&self) {
        let owns = self.context.other_claimant(self.stored).is_none();
        self.context.states.forget(self.stored, owns.then_some(self.stored.business_type()));
    }
}

/// Since the deletion was asked for.
pub(super) fn deletion_age(stored: &StoredBusiness) -> Duration {
    let asked = stored.metadata.deletion_timestamp.as_ref().map_or_else(now_ms, |time| time.0.as_millisecond());
    Duration::from_millis(u64::try_from(now_ms() - asked).unwrap_or_default())
}

/// What is not as it should be.
pub(super) fn problems(report: &Report) -> String {
    summarize(&report.problems.iter().map(Problem::to_string).collect::<Vec<_>>())
}

/// In seconds, rounded up to a minute, so that the status does not change with every attempt.
fn whole_minutes(left: Duration) -> u64 {
    left.as_secs().div_ceil(60) * 60
}
