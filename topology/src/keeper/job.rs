//! What is to be done for one business, and how much of its plan may be done now.

use std::sync::Arc;

use wirepost_rabbitmq::Connection;

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
    /// It is not declared: what can contain messages stays.
    Orphan,
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

    /// Carries it out. `connection`: for counting the messages of queues that should be deleted; without it they stay.
    pub(super) async fn run(
        self,
        context: &Context,
        snapshot: &Snapshot,
        connection: Option<&Connection>,
    ) -> JobResult {
        let plan = self.desired.plan(&self.business, snapshot, context.mode);
        let differed = !plan.steps.is_empty();
        let Permitted { plan, mut left, waits_for_edges } = self.permitted(plan);
        let options = ApplyOptions {
            amqp: connection.map(|connection| &**connection),
            delete_messages: matches!(self.kind, Kind::Remove { delete_messages: true }),
            // The stream of a business that has become Transient is deleted with its messages: no client can read it any more.
            delete_streams: self.kind != Kind::Orphan && context.mode == Mode::Cluster,
            gate: Some(&|| context.owner.may_write()),
        };
        let mut result = apply_plan(&context.management, plan, options).await;
        if let Ok(report) = &mut result {
            left.append(&mut report.left);
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
            return Permitted { plan: nothing, left: plan.steps, waits_for_edges: false };
        }
        if *kind != (Kind::Ensure { phase: Phase::Grow }) {
            return Permitted { plan, left: Vec::new(), waits_for_edges: false };
        }
        let mut phases = Phases::of(business, &desired.topology.intake, plan.steps);
        plan.problems.extend(phases.problems());
        plan.steps = std::mem::take(&mut phases.now);
        Permitted { plan, waits_for_edges: !phases.later.is_empty(), left: phases.later }
    }
}

/// What of a plan may be done now.
struct Permitted {
    plan: Plan,
    /// Steps that may not.
    left: Vec<Step>,
    /// Whether they wait for the edges.
    waits_for_edges: bool,
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
