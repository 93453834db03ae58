//! What is to be done for one business, and how much of its plan may be done now.

use std::sync::Arc;

use super::{
    Desired, Mode,
    actor::Context,
    phase::{Phase, Phases},
};
use crate::{ApplyOptions, Error, Plan, Problem, Report, Snapshot, Step, apply_plan, plan::policies_of};

/// See the module.
pub(super) struct Job {
    pub(super) business: String,
    pub(super) desired: Arc<Desired>,
    pub(super) kind: Kind,
}

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The business should have what is desired. See [`super::Keeper::ensure`].
    Ensure { phase: Phase },
    /// Nothing of it should be left. See [`super::Keeper::remove`].
    Remove { delete_messages: bool },
    /// It is not declared: what contains messages stays.
    Orphan,
}

/// What a job has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// It sets or deletes policies.
    pub(super) policies: bool,
    /// It creates queues, which should find the shared policies.
    pub(super) shared_policies: bool,
}

/// A job that was carried out.
pub(super) struct JobResult {
    pub(super) job: Job,
    /// Whether the plan had any step.
    pub(super) differed: bool,
    /// Steps of the plan that were left undone with good reason.
    pub(super) left: Vec<Step>,
    /// Whether some of them wait for the edges.
    pub(super) waits_for_edges: bool,
    pub(super) result: Result<Report, Error>,
}

impl Job {
    pub(super) fn ensure(business: String, desired: Arc<Desired>, phase: Phase) -> Self {
        Self { business, desired, kind: Kind::Ensure { phase } }
    }

    pub(super) fn remove(business: String, delete_messages: bool) -> Self {
        Self { business, desired: Arc::default(), kind: Kind::Remove { delete_messages } }
    }

    pub(super) fn orphan(business: String) -> Self {
        Self { business, desired: Arc::default(), kind: Kind::Orphan }
    }

    /// What has to be done, and what that needs.
    pub(super) fn plan(&self, snapshot: &Snapshot, mode: Mode) -> (Permitted, Needs) {
        let mut permitted = self.permitted(self.desired.plan(&self.business, snapshot, mode));
        if matches!(self.kind, Kind::Remove { .. }) {
            permitted.listeners = snapshot.listeners(&self.business);
        }
        let steps = &permitted.plan.steps;
        let is_policy = |step: &Step| matches!(step, Step::PutPolicy(_) | Step::DeletePolicy(_));
        let needs = Needs {
            policies: steps.iter().any(is_policy),
            shared_policies: steps.iter().any(|step| matches!(step, Step::PutQueue(_))),
        };
        (permitted, needs)
    }

    /// Carries the plan out.
    pub(super) async fn run(self, permitted: Permitted, context: &Context) -> JobResult {
        let Permitted { plan, mut left, waits_for_edges, listeners } = permitted;
        let differed = !plan.steps.is_empty() || !left.is_empty();
        let deletes = plan.steps.iter().any(|step| step.queue_to_delete().is_some());
        let applying = async {
            // For counting the messages of queues that should be deleted; without it they stay.
            let connection = if deletes { context.connection().await.ok() } else { None };
            let gate = || context.may_write();
            let options = ApplyOptions {
                amqp: connection.as_deref().map(|connection| &**connection),
                delete_messages: matches!(self.kind, Kind::Remove { delete_messages: true }),
                looks: Some(&context.looks),
                delete_streams: matches!(self.kind, Kind::Ensure { .. }) && self.desired.delete_stream,
                delete_empty_streams: !matches!(self.kind, Kind::Ensure { .. }) && context.mode == Mode::Cluster,
                gate: Some(&gate),
            };
            apply_plan(&context.management, plan, options).await
        };
        let mut result = context.unless_stopped(applying).await;
        if let Ok(report) = &mut result {
            left.extend(report.left.iter().cloned());
            report.listeners = listeners;
        }
        JobResult { job: self, differed, left, waits_for_edges, result }
    }

    fn permitted(&self, mut plan: Plan) -> Permitted {
        let Self { business, desired, kind } = self;
        let obstacle = |problem: &Problem| match problem {
            Problem::MissingQueue { queue } | Problem::QueueNotOpen { queue, .. } => desired.required.contains(queue),
            _ => false,
        };
        if plan.problems.iter().any(obstacle) {
            let nothing = Plan { problems: plan.problems, ..Plan::default() };
            return Permitted { plan: nothing, left: plan.steps, waits_for_edges: false, listeners: Vec::new() };
        }
        if *kind != (Kind::Ensure { phase: Phase::Grow }) {
            return Permitted { plan, left: Vec::new(), waits_for_edges: false, listeners: Vec::new() };
        }
        let mut phases = Phases::of(business, &desired.topology.intake, plan.steps);
        plan.problems.extend(phases.problems());
        plan.steps = std::mem::take(&mut phases.now);
        Permitted { plan, waits_for_edges: !phases.later.is_empty(), left: phases.later, listeners: Vec::new() }
    }
}

/// What of a plan may be done now.
pub(super) struct Permitted {
    plan: Plan,
    /// Steps that may not.
    left: Vec<Step>,
    /// Whether they wait for the edges.
    waits_for_edges: bool,
    /// Queues of a business to remove that its services declared to listen to events.
    listeners: Vec<String>,
}

impl Desired {
    /// The plan that makes the vhost have it.
    pub(super) fn plan(&self, business: &str, snapshot: &Snapshot, mode: Mode) -> Plan {
        match mode {
            Mode::Cluster => snapshot.plan(business, &self.topology, Some(&self.users)),
            Mode::Development => {
                let mut plan = snapshot.plan(business, &self.topology, None);
                // The operator policies are not known.
                plan.to_verify = policies_of(&self.topology);
                plan
            }
        }
    }
}
