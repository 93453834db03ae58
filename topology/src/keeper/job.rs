//! What is to be done for one business, and how much of its plan may be done now.

use std::sync::Arc;

use wirepost_core::{names, topology::Intake};
use wirepost_rabbitmq::Connection;

use super::{Desired, Mode, actor::Context};
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
    Ensure { edges_behind: bool },
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
    pub(super) result: Result<Report, Error>,
}

impl Job {
    pub(super) fn ensure(business: String, desired: Arc<Desired>, edges_behind: bool) -> Self {
        Self { business, desired, kind: Kind::Ensure { edges_behind } }
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
        let (plan, mut left) = self.permitted(plan);
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
        JobResult { job: self, differed, left, result }
    }

    /// What of a plan may be done now, and the steps that may not.
    fn permitted(&self, mut plan: Plan) -> (Plan, Vec<Step>) {
        let mut left = Vec::new();
        if self.kind == (Kind::Ensure { edges_behind: true }) {
            let (late, now) = plan.steps.into_iter().partition(|step| self.is_for_older_edges(step));
            (plan.steps, left) = (now, late);
        }
        let unusable = |p: &Problem| matches!(p, Problem::MissingQueue { .. } | Problem::QueueNotOpen { .. });
        if self.desired.whole && plan.problems.iter().any(unusable) {
            left.append(&mut plan.steps);
            return (Plan { problems: plan.problems, ..Plan::default() }, left);
        }
        (plan, left)
    }

    /// Whether it removes a binding by a route's pattern, which older edges rely on: without it their messages would make the detour over
    /// `unrouted`.
    fn is_for_older_edges(&self, step: &Step) -> bool {
        let Step::Unbind(binding) = step else { return false };
        let by_route = |intake: &Intake| binding.routing_key == intake.pattern && binding.destination == intake.queue;
        binding.source == names::receive_exchange(&self.business) && self.desired.topology.intake.iter().any(by_route)
    }
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
