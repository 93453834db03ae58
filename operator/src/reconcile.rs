//! One business: from its resource to the broker, the edges, its Secret, and back to its status. Level-based and repeatable: each run reads
//! what is, makes what is missing, and reports what it found.
//!
//! [`controller`] decides which resources are reconciled and when. A [`Reconcile`] is one run for one resource; its steps are
//! - [`accept`]: what the declaration compiles to, or why it is not accepted; [`reserved`]: whose the business type is;
//! - [`provision`]: the broker; [`program`]: the edges; [`secret`]: credentials;
//! - [`report`]: the status; [`finalize`]: the end of a resource.
//!
//! [`phase`] and [`waiting`] decide what of a change has to wait: for the edges, for the broker.
//!
//! [`leftover`] deals with what no reconcile comes for. [`state`] is what is remembered between two runs.

mod accept;
mod context;
pub mod controller;
mod finalize;
pub mod leftover;
mod phase;
mod program;
mod provision;
mod report;
mod reserved;
mod secret;
mod state;
mod waiting;

use std::{sync::Arc, time::Duration};

use kube::runtime::controller::Action;
use tokio::time::Instant;
use wirepost_core::{Compiled, contract::condition::Reason, destruction};
use wirepost_topology::{Problem, Report};

pub use context::{Context, Options};
pub use state::ResourceStates;

use crate::{
    access::AccessCredentials,
    broker::{Destroying, Ensured},
    conditions::{ConditionState, Findings},
    config_map,
    metrics::Outcome,
    stored::StoredBusiness,
    writer,
};
use accept::AcceptedDeclaration;
use state::ResourceState;
use waiting::Waiting;

/// Between two checks for a queue that its owner has yet to declare.
const QUEUE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Between two checks whether a change would destroy anything still: what it would may be gone by then.
const DESTRUCTIVE_CHECK_INTERVAL: Duration = Duration::from_mins(1);
/// Another write came between ours and what it was based on: the watch brings that any moment.
const CONFLICT_DELAY: Duration = Duration::from_millis(100);
/// Until the watch has caught up with a generation that the API server has.
const BEHIND_INTERVAL: Duration = Duration::from_secs(1);

/// Why a reconcile has to be repeated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error(transparent)]
    Write(#[from] writer::Error),
    /// The seed of all credentials.
    #[error("no credentials can be derived: {0:#}")]
    Seed(anyhow::Error),
}

/// What a reconcile comes to, and when the next one is due.
type Done = (Outcome, Action);

/// One run for one resource.
#[derive(Clone, Copy)]
struct Reconcile<'a> {
    stored: &'a StoredBusiness,
    context: &'a Context,
}

/// Reconciles one business.
///
/// # Errors
/// It has to be repeated.
pub async fn reconcile(stored: Arc<StoredBusiness>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let _running = context.metrics.running();
    if !context.ready().await {
        return Ok(Action::await_change());
    }
    let run = Reconcile { stored: &stored, context: &context };
    if context.writer.gate().is_err() {
        // A standby compiles, so that it can take over immediately.
        let _ = run.accept().await;
        return Ok(Action::await_change());
    }
    let result = if stored.metadata.deletion_timestamp.is_some() { run.finalize().await } else { run.apply().await };
    context.metrics.reconcile_seconds.observe(begun.elapsed().as_secs_f64());
    match &result {
        Ok((outcome, _)) => {
            context.metrics.reconciled(*outcome);
            if *outcome == Outcome::Ready {
                context.states.of(&stored, |state| state.backoff.reset());
            }
        }
        Err(_) => context.metrics.reconciled(Outcome::Error),
    }
    result.map(|(_, action)| action)
}

/// When to try again after an error.
#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
pub fn error_policy(stored: Arc<StoredBusiness>, error: &Error, context: Arc<Context>) -> Action {
    match error {
        // It is triggered again when this replica may write, or when the CustomResourceDefinition has changed.
        Error::Write(writer::Error::NotLeader | writer::Error::Outdated(_)) => Action::await_change(),
        Error::Write(writer::Error::Api { cause, .. }) if writer::is_conflict(cause) => Action::requeue(CONFLICT_DELAY),
        // Deleted meanwhile.
        Error::Write(writer::Error::Api { cause, .. }) if writer::is_not_found(cause) => Action::await_change(),
        Error::Write(_) | Error::Seed(_) => {
            tracing::warn!(business = stored.owner(), %error, "cannot reconcile the business; trying again");
            Reconcile { stored: &stored, context: &context }.retry().1
        }
    }
}

impl Reconcile<'_> {
    async fn apply(&self) -> Result<Done, Error> {
        if self.is_behind().await? {
            return Ok((Outcome::Waiting, Action::requeue(BEHIND_INTERVAL)));
        }
        let declaration = match self.accept().await {
            Ok(declaration) => declaration,
            Err(rejected) => return self.reject(rejected, None).await,
        };
        self.set_finalizer().await?;
        let compiled = &declaration.compiled;
        let credentials = self.credentials(&declaration).await?;
        let mut findings = Findings::accepted(self.facts(&declaration));
        self.report_drift(compiled, &mut findings).await?;
        let new_queues = self.new_existing_queues(compiled);
        let destroying = self.destroying(compiled);
        let Ensured { report: done, repaired, waits_for_edges } =
            match self.provision(&declaration, &credentials, &new_queues, destroying).await {
                Ok(done) => done,
                Err(failure) if failure.stopped => return Ok(self.retry()),
                Err(failure) => return self.report_broker_failure(findings, compiled, &failure).await,
            };
        if let Some(namespace) = provision::reserved(&done) {
            return self.reserve(namespace).await;
        }
        if destroying == Destroying::Refused
            && let destroyed = provision::destructions(&done)
            && !destroyed.is_empty()
        {
            return self.reject(self.destructive(&destroyed), Some(DESTRUCTIVE_CHECK_INTERVAL)).await;
        }
        if let Some(rejected) = provision::queue_problem(&done, |queue| new_queues.contains(queue)) {
            return self.reject(rejected, Some(QUEUE_CHECK_INTERVAL)).await;
        }
        provision::conditions(&done, &mut findings, &self.allow_destructive(&provision::destructions(&done)));
        findings.set_retention(provision::retention(compiled, &done));
        let waiting = Waiting::new(&compiled.business, &done);
        self.name_held_back(&waiting, compiled, &credentials, &mut findings);
        let used = self.stored.allowed().filter(|_| provision::is_carried_out(&compiled.business, &done));
        let used = used.and_then(|_| self.stored.annotation(destruction::ALLOW).map(str::to_owned));
        self.context.states.of(self.stored, |state| {
            state.accepted = Some(declaration.clone());
            state.is_anothers = false;
            state.used_allowance = used.or_else(|| state.used_allowance.take());
        });
        let mut refused = false;
        match self.deliver(&declaration, credentials.clone(), repaired, &waiting).await {
            Ok(secret) => {
                findings.set_secret(secret.name);
                findings.provisioned = secret.obstacle.unwrap_or(findings.provisioned);
            }
            // A quota, an admission policy, an immutable object: an administrator must know.
            Err(Error::Write(error)) if error.is_refusal() => {
                refused = true;
                let text = format!("{error}; it is tried again");
                findings.provisioned = ConditionState::not_met(Reason::WriteRefused, text);
            }
            Err(error) => return Err(error),
        }
        findings.set_progress(&self.progress(&compiled.business));
        findings.clients = self.context.edges.clients(&compiled.business);
        let ready = self.report(&findings).await?;
        if refused {
            return Ok(self.retry());
        }
        let outcome = if ready { Outcome::Ready } else { Outcome::Waiting };
        let next = self.next_attempt(compiled, &credentials, &done, waits_for_edges);
        Ok((outcome, self.at_next_check(&declaration, &credentials, next)))
    }

    /// One event for each generation that an older CustomResourceDefinition blocks. A generation that runs already needs none.
    async fn tell_held_back(&self, why: &str) {
        let Self { stored, context } = *self;
        let generation = stored.generation();
        let map = context.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored));
        let runs = map.and_then(|map| config_map::generation(&map)) == Some(generation);
        if !runs && context.states.of(stored, |state| state.held_back.replace(generation)) != Some(generation) {
            context.events.held_back(stored, why).await;
        }
    }

    /// Whether a newer generation of the resource was programmed already: this one must not be written over it. A generation that exists
    /// nowhere but in the edge configuration, such as after a restored backup, does not count.
    async fn is_behind(&self) -> Result<bool, Error> {
        let Self { stored, context } = *self;
        let map = context.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored));
        let programmed = map.and_then(|map| config_map::generation(&map));
        if programmed.is_none_or(|programmed| programmed <= stored.generation()) {
            return Ok(false);
        }
        let newest = context.writer.stored_generation(stored).await?;
        let behind = newest.is_some_and(|newest| newest > stored.generation());
        if behind {
            tracing::warn!(
                resource = stored.owner(),
                generation = stored.generation(),
                ?newest,
                "the watch of resources is behind; waiting for it"
            );
        }
        Ok(behind)
    }

    /// When the broker must be compared again: something failed there, or waits for the edges.
    fn next_attempt(
        &self,
        compiled: &Compiled,
        credentials: &AccessCredentials,
        done: &Report,
        waits_for_edges: bool,
    ) -> Option<Duration> {
        let failed = done.problems.iter().any(Problem::may_pass);
        let retry = failed.then(|| self.context.states.of(self.stored, |state| state.backoff.next_pause()));
        let hash = || credentials.edge_config(compiled).hash();
        let settled = waits_for_edges.then(|| self.until_settled(&compiled.business, &hash())).flatten();
        retry.into_iter().chain(settled).min()
    }

    /// Keeps the resource until its objects are gone; replaces the finalizer that all installations used to share.
    async fn set_finalizer(&self) -> Result<(), Error> {
        let Self { stored, context } = *self;
        let own = context.finalizer();
        let set = context.own_finalizers(stored);
        if set == [own.as_str()] {
            return Ok(());
        }
        let former: Vec<&str> = set.iter().map(String::as_str).filter(|finalizer| *finalizer != own).collect();
        Ok(context.writer.finalizers(stored, Some(&own), &former).await?)
    }

    /// Reports why a generation is not accepted. The last accepted one keeps running and is maintained: what others changed on the broker is
    /// repaired, a lost Secret is restored, former credentials end. `check`: when to try again, where no change of the resource will tell.
    async fn reject(&self, rejected: ConditionState, check: Option<Duration>) -> Result<Done, Error> {
        let outdated = rejected.reason == Reason::CustomResourceDefinitionOutdated;
        if outdated {
            // No status can be written, so none is due.
            self.context.states.of(self.stored, ResourceState::release_status);
            self.tell_held_back(&rejected.message).await;
        } else {
            self.report(&Findings::rejected(rejected)).await?;
        }
        self.maintain(outdated, check).await
    }

    /// Maintains what was last accepted. `outdated`, `check`: see [`Self::last_accepted`], [`Self::reject`].
    async fn maintain(&self, outdated: bool, check: Option<Duration>) -> Result<Done, Error> {
        let Some(declaration) = self.last_accepted(outdated) else {
            let action = check.map_or_else(Action::await_change, Action::requeue);
            return Ok((Outcome::Waiting, action));
        };
        let credentials = self.credentials(&declaration).await?;
        let compiled = &declaration.compiled;
        let maintained = self.provision(&declaration, &credentials, &[], Destroying::Held).await;
        let Ok(Ensured { report: done, repaired, waits_for_edges }) = maintained else { return Ok(self.retry()) };
        if provision::reserved(&done).is_some() {
            return Ok(self.retry());
        }
        let waiting = Waiting::new(&compiled.business, &done);
        self.deliver(&declaration, credentials.clone(), repaired, &waiting).await?;
        let next = self.next_attempt(compiled, &credentials, &done, waits_for_edges);
        let next = next.into_iter().chain(check).min();
        Ok((Outcome::Waiting, self.at_next_check(&declaration, &credentials, next)))
    }

    /// After a failure.
    fn retry(&self) -> Done {
        let pause = self.context.states.of(self.stored, |state| state.backoff.next_pause());
        (Outcome::Error, Action::requeue(self.status_due_within(pause)))
    }
}
