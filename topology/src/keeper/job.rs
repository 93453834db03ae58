//! What is to be done for one business, and how much of its plan may be done now.

use std::sync::Arc;

use wirepost_core::{
    destruction::{Destruction, digest},
    names,
    topology::Policy,
};

use super::{
    Desired, Destroying, Mode,
    actor::Context,
    phase::{Phase, Phases},
};
use crate::{ApplyOptions, BusinessOwner, Error, Plan, Problem, Report, Snapshot, Step, apply_plan, plan::policies_of};

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

    pub(super) fn remove(business: String, owner: Option<BusinessOwner>, delete_messages: bool) -> Self {
        let desired = Arc::new(Desired { owner, ..Desired::default() });
        Self { business, desired, kind: Kind::Remove { delete_messages } }
    }

    pub(super) fn orphan(business: String) -> Self {
        Self { business, desired: Arc::default(), kind: Kind::Orphan }
    }

    /// Other businesses that messages are led to: the plan depends on whether they are there.
    pub(super) fn leads_to(&self) -> impl Iterator<Item = &str> {
        let to = self.desired.topology.links.iter().filter_map(|link| names::owner(&link.to));
        to.filter(|business| *business != self.business)
    }

    /// The permitted part of the plan, and what it needs.
    pub(super) fn plan(&self, snapshot: &Snapshot, mode: Mode) -> (Permitted, Needs) {
        let mut plan = self.desired.plan(&self.business, snapshot, mode);
        if !matches!(self.kind, Kind::Ensure { .. }) {
            self.leave_no_mark(&mut plan, snapshot);
        }
        let mut permitted = self.permitted(plan);
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
        let Permitted { plan, mut left, waits_for_edges, listeners, delete_streams } = permitted;
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
                delete_streams: delete_streams && context.mode == Mode::Cluster,
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
        let ensures = matches!(kind, Kind::Ensure { .. });
        let delete_streams = ensures && desired.allows(&plan.destroys);
        let mut left = Vec::new();
        if ensures && !delete_streams {
            if desired.destroying == Destroying::Refused && !plan.destroys.is_empty() {
                let problems = [held(&plan.destroys), plan.problems].concat();
                return Permitted::nothing(problems, plan.steps);
            }
            left = self.hold(&mut plan);
        }
        let obstacle = |problem: &Problem| match problem {
            Problem::MissingQueue { queue } | Problem::QueueNotOpen { queue, .. } => desired.required.contains(queue),
            _ => false,
        };
        if plan.problems.iter().any(obstacle) {
            return Permitted::nothing(plan.problems, [left, plan.steps].concat());
        }
        let Kind::Ensure { phase } = *kind else {
            return Permitted { plan, left, waits_for_edges: false, listeners: Vec::new(), delete_streams };
        };
        let mut phases = match phase {
            Phase::Grow => Phases::of(business, &desired.topology.intake, plan.steps),
            Phase::Shrink => Phases::while_in_use(business, &desired.in_use, plan.steps),
        };
        plan.problems.extend(phases.problems());
        plan.steps = std::mem::take(&mut phases.now);
        // What is in use then is declared again, or not used any more, by a later request.
        let waits_for_edges = phase == Phase::Grow && !phases.later.is_empty();
        left.append(&mut phases.later);
        Permitted { plan, waits_for_edges, left, listeners: Vec::new(), delete_streams }
    }

    /// Takes out of a plan, and reports, what destroys messages and is not allowed; returns these steps.
    fn hold(&self, plan: &mut Plan) -> Vec<Step> {
        // A stream that is not declared has its own way to stay: it may be empty.
        plan.destroys.retain(|(step, _)| !matches!(step, Step::DeleteStream(_)));
        if plan.destroys.is_empty() || self.desired.allows(&plan.destroys) {
            return Vec::new();
        }
        plan.problems.extend(held(&plan.destroys));
        let steps = std::mem::take(&mut plan.steps);
        let (left, steps) = steps.into_iter().partition(|step| plan.destroys.iter().any(|(held, _)| held == step));
        plan.steps = steps;
        if plan.steps.is_empty() && !plan.foreign_policies_may_win {
            // It may stay so for months: nothing is written, so nothing has to be verified at each sweep.
            plan.to_verify.clear();
        }
        let stays = |queue: &str| {
            left.iter().any(|step: &Step| matches!(step, Step::PutPolicy(Policy { name, .. }) | Step::DeletePolicy(name) if name == queue))
        };
        plan.to_verify.retain(|(queue, _)| !stays(queue));
        left
    }

    /// The record whose the business is goes with the last object of it; what listens to its events is left for its owner.
    fn leave_no_mark(&self, plan: &mut Plan, snapshot: &Snapshot) {
        let is_theirs = plan.problems.iter().any(|problem| matches!(problem, Problem::Reserved { .. }));
        let marked = snapshot.owner(&self.business).is_some();
        if marked && !is_theirs && snapshot.listeners(&self.business).is_empty() {
            plan.steps.push(Step::UnmarkBusiness(self.business.clone()));
        }
    }
}

/// The part of a plan that may be carried out now.
pub(super) struct Permitted {
    plan: Plan,
    /// The other steps.
    left: Vec<Step>,
    /// Whether they wait for the edges.
    waits_for_edges: bool,
    /// Queues of a business to remove that its services declared to listen to events.
    listeners: Vec<String>,
    /// Whether streams that are not declared are deleted with their messages.
    delete_streams: bool,
}

impl Permitted {
    /// Of a plan with these steps.
    fn nothing(problems: Vec<Problem>, left: Vec<Step>) -> Self {
        let plan = Plan { problems, ..Plan::default() };
        Self { plan, left, waits_for_edges: false, listeners: Vec::new(), delete_streams: false }
    }
}

fn held(destroys: &[(Step, Destruction)]) -> Vec<Problem> {
    destroys.iter().map(|(_, what)| Problem::Held { destruction: what.clone(), shared: None }).collect()
}

impl Desired {
    /// Whether a person has allowed all of this.
    fn allows(&self, destroys: &[(Step, Destruction)]) -> bool {
        let named = |allowed: &String| {
            let all: Vec<Destruction> = destroys.iter().map(|(_, what)| what.clone()).collect();
            *allowed == digest(&all, self.used.as_deref())
        };
        self.destroying == Destroying::Allowed || self.allowed.as_ref().is_some_and(named)
    }

    /// The plan that makes the vhost have it.
    pub(super) fn plan(&self, business: &str, snapshot: &Snapshot, mode: Mode) -> Plan {
        match mode {
            Mode::Cluster => {
                let mut plan = snapshot.plan(business, &self.topology, Some(&self.users));
                let Some(owner) = &self.owner else { return plan };
                match owner.mark(business, snapshot.owner(business), snapshot.has_left(business)) {
                    // Of one that is to be removed it goes, too.
                    Ok(mark) if !self.topology.exchanges.is_empty() => {
                        plan.steps.splice(0..0, mark);
                        plan
                    }
                    Ok(_) => plan,
                    Err(reserved) => Plan { problems: vec![reserved], ..Plan::default() },
                }
            }
            Mode::Development => {
                let mut plan = snapshot.plan(business, &self.topology, None);
                // The operator policies are not known.
                let with_room = snapshot.with_kept_room(business, &self.topology);
                plan.to_verify = policies_of(with_room.as_ref().unwrap_or(&self.topology));
                plan
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn a_business_of_which_only_a_cut_is_held_costs_no_call() {
        let policy = |name: &str| Policy {
            name: name.to_owned(),
            pattern: String::new(),
            apply_to: "streams",
            priority: 0,
            definition: Map::from_iter([("max-age".to_owned(), json!("60s"))]),
        };
        let stream = "wirepost.pay.stream";
        let cut = Destruction::Cut { stream: stream.to_owned(), key: "max-age", from: None, to: "60s".to_owned() };
        let put = Step::PutPolicy(policy(stream));
        let plan = |more: Vec<Step>, foreign_policies_may_win| Plan {
            steps: [vec![put.clone()], more].concat(),
            destroys: vec![(put.clone(), cut.clone())],
            foreign_policies_may_win,
            to_verify: [stream, "wirepost.pay.dead"].map(|queue| (queue.to_owned(), policy(queue))).into(),
            ..Plan::default()
        };
        let permit_after = |plan, allowed, used| {
            let desired = Desired { allowed, used, ..Desired::default() };
            let permitted = Job::ensure("pay".to_owned(), Arc::new(desired), Phase::Grow).permitted(plan);
            (permitted.plan.steps.len(), permitted.plan.to_verify.len(), permitted.left.len())
        };
        let permit = |plan, allowed| permit_after(plan, allowed, None);
        assert_eq!(permit(plan(vec![], false), None), (0, 0, 1));
        assert_eq!(permit(plan(vec![], true), None), (0, 1, 1));
        assert_eq!(permit(plan(vec![Step::PutPolicy(policy("wirepost.pay.dead"))], false), None), (1, 1, 1));
        let allowed = || Some(digest(std::slice::from_ref(&cut), None));
        assert_eq!(permit(plan(vec![], false), allowed()), (1, 2, 0));
        assert_eq!(permit_after(plan(vec![], false), allowed(), Some("3-x".to_owned())), (0, 0, 1), "it is used up");
    }
}
