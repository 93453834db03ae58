//! The broker's part of a reconcile.

use std::sync::Arc;

use wirepost_core::{
    Compiled,
    business::RetentionStatus,
    contract::condition::Reason,
    destruction::Destruction,
    names,
    topology::{Policy, QueueKind},
    validate,
};
use wirepost_topology::{Problem, Report, Step};

use super::{Done, Error, Reconcile, accept::AcceptedDeclaration, waiting::Waiting};
use crate::{
    access::AccessCredentials,
    broker::{BrokerFailure, Desired, Destroying, Ensured, FailureKind},
    classes::user_limits,
    conditions::{ConditionState, Facts, Findings, summarize},
};

/// A broker that can't be asked or written to.
const BROKER_FAILURES: [Reason; 3] = [Reason::BrokerUnavailable, Reason::BrokerRefused, Reason::VhostNotOurs];

impl Reconcile<'_> {
    /// Makes the broker match the declaration, as far as edges with a former configuration allow, and reports a repair. `required`: see
    /// [`Desired`], and so for `destroying`.
    pub(super) async fn provision(
        &self,
        declaration: &AcceptedDeclaration,
        credentials: &AccessCredentials,
        required: &[String],
        destroying: Destroying,
    ) -> Result<Ensured, BrokerFailure> {
        let Self { stored, context } = *self;
        let compiled = &declaration.compiled;
        let mut topology = compiled.topology.clone();
        context.options.open_queues.mark(&stored.owner(), &mut topology);
        let limits = user_limits(declaration.terms.as_deref(), context.options.user_limits);
        let users = credentials.users.iter().map(|user| user.clone().with_limits(limits)).collect();
        // By what should be written for the edges, not by what was: they may all run the output of an older operator.
        let (phase, in_use) = self.phase(&compiled.business, &credentials.edge_config(compiled).hash());
        let declared = |queue: &String| {
            topology.queues.iter().any(|own| own.name == *queue) || topology.existing_queues.contains(queue)
        };
        let in_use = in_use.into_iter().filter(|queue| !declared(queue)).collect();
        let desired = Arc::new(Desired {
            topology,
            users,
            required: required.to_vec(),
            in_use,
            destroying,
            allowed: stored.allowed().map(str::to_owned),
            used: self.used_allowance(),
            owner: Some(self.owner()),
        });
        let ensured = context.broker.ensure(&compiled.business, desired, phase).await?;
        if ensured.repaired {
            context.events.repaired(stored, &summarize(&ensured.report.changes)).await;
        }
        Ok(ensured)
    }

    /// Reports what others have changed, before it is repaired.
    pub(super) async fn report_drift(&self, compiled: &Compiled, findings: &mut Findings) -> Result<(), Error> {
        let conditions = self.stored.status().conditions;
        // Not between two failures to repair it, where each would be news to the other.
        let failing = |text: &str| Reason::parse(text).is_some_and(|reason| BROKER_FAILURES.contains(&reason));
        if conditions.iter().any(|condition| failing(&condition.reason)) {
            return Ok(());
        }
        // Nor while the report of such a failure is delayed: it would never be written.
        if self.context.states.of(self.stored, |state| state.holds_status()) {
            return Ok(());
        }
        let Some(drift) = self.context.broker.drift(&compiled.business) else { return Ok(()) };
        let text = format!("changed by others and about to be repaired: {}", summarize(&drift));
        findings.provisioned = ConditionState::not_met(Reason::Drifted, text);
        let progress = self.progress(&compiled.business);
        let now = Findings { programmed: progress.condition(), ..findings.clone() };
        self.report(&now).await.map(drop)
    }

    /// What runs keeps running; the status reports the broker's failure.
    pub(super) async fn report_broker_failure(
        &self,
        mut findings: Findings,
        compiled: &Compiled,
        failure: &BrokerFailure,
    ) -> Result<Done, Error> {
        let reason = match failure.kind {
            FailureKind::Unavailable => Reason::BrokerUnavailable,
            FailureKind::Refused => Reason::BrokerRefused,
            FailureKind::NotOurs => Reason::VhostNotOurs,
        };
        let text = format!("{failure}; clients stay connected, and it is tried again");
        findings.provisioned = match failure.kind {
            FailureKind::NotOurs => ConditionState::not_met(reason, text),
            // The state of the broker is unknown: it may have everything.
            FailureKind::Unavailable | FailureKind::Refused => ConditionState::unknown(reason, text),
        };
        findings.set_progress(&self.progress(&compiled.business));
        self.report(&findings).await?;
        Ok(self.retry())
    }

    /// Adds which routes wait until the problems are solved.
    pub(super) fn name_held_back(
        &self,
        waiting: &Waiting,
        compiled: &Compiled,
        credentials: &AccessCredentials,
        findings: &mut Findings,
    ) {
        let config = credentials.edge_config(compiled);
        let permitted = waiting.permitted(&config, self.present_config(&compiled.business).as_ref());
        let routes: Vec<String> = waiting.held_back(&config, &permitted).into_iter().map(str::to_owned).collect();
        if routes.is_empty() {
            return;
        }
        let state = if findings.accepted.is_met() { &mut findings.provisioned } else { &mut findings.accepted };
        let text = "; until then these routes are as they were before, or left out where they are new";
        state.message = format!("{}{text}: {}", state.message, summarize(&routes));
    }

    /// What the business's people need to know.
    pub(super) fn facts(&self, declaration: &AcceptedDeclaration) -> Facts {
        let compiled = &declaration.compiled;
        let business = compiled.business.clone();
        let consumed = |name: &&String| {
            name.starts_with(&names::route_queue(&business, "")) || **name == names::dead_queue(&business)
        };
        let own = compiled.topology.queues.iter().map(|queue| &queue.name).filter(consumed);
        let endpoint = self.context.options.endpoints.endpoint.as_ref();
        let terms = declaration.terms.as_deref().and_then(|terms| serde_json::from_str(terms).ok());
        let has_stream = compiled.topology.queues.iter().any(|queue| queue.kind == QueueKind::Stream);
        let known = self.stored.status();
        Facts {
            token_url: endpoint.map(|url| format!("{url}/{business}/websocket/token")),
            queues: own.chain(&compiled.topology.existing_queues).cloned().collect(),
            // As long as nothing else is known.
            secret: known.binding.map(|binding| binding.name),
            retention: known.retention.filter(|_| has_stream),
            terms: terms.and_then(|terms| serde_json::to_value(validate::class::given(&terms)).ok()),
            business,
        }
    }
}

/// Why a declaration with such a queue of the team's own can't be accepted: the queue is missing, or not open.
pub(super) fn queue_problem(done: &Report, which: impl Fn(&String) -> bool) -> Option<ConditionState> {
    let missing = problem_texts(done, |problem| matches!(problem, Problem::MissingQueue { queue } if which(queue)));
    if !missing.is_empty() {
        return Some(ConditionState::not_met(Reason::QueueNotFound, summarize(&missing)));
    }
    let closed = problem_texts(done, |problem| matches!(problem, Problem::QueueNotOpen { queue, .. } if which(queue)));
    (!closed.is_empty()).then(|| ConditionState::not_met(Reason::QueueNotOpen, summarize(&closed)))
}

/// Sets Accepted and Provisioned to what the broker's report means. `allow`: how a person allows what destroys messages.
pub(super) fn conditions(done: &Report, findings: &mut Findings, allow: &str) {
    if let Some(rejected) = queue_problem(done, |_| true) {
        (findings.accepted, findings.provisioned) = (rejected, ConditionState::partly_in_force());
        return;
    }
    let wrong = problem_texts(done, |problem| !problem.is_notice());
    let kept = problem_texts(done, Problem::is_notice);
    let passing = done.problems.iter().all(|problem| problem.may_pass() || problem.is_notice());
    findings.provisioned = match (wrong.is_empty(), kept.is_empty()) {
        (false, _) if passing => ConditionState::unknown(Reason::BrokerUnavailable, summarize(&wrong)),
        (false, _) => {
            let few = |problem: &Problem| problem.is_notice() || matches!(problem, Problem::TooFewReplicas { .. });
            let held = |problem: &Problem| problem.is_held() || few(problem);
            let reason = if done.problems.iter().all(few) {
                Reason::TooFewReplicas
            } else if done.problems.iter().all(held) {
                Reason::Destructive
            } else {
                Reason::NotAsDeclared
            };
            let own = |problem: &Problem| matches!(problem, Problem::Held { shared: None, .. });
            let allow = if done.problems.iter().any(own) { format!("; to allow it: {allow}") } else { String::new() };
            ConditionState::not_met(reason, summarize(&wrong) + &allow)
        }
        (true, false) => {
            let text = format!("the broker has the topology; {}", summarize(&kept));
            ConditionState::met(Reason::Provisioned, text)
        }
        (true, true) => ConditionState::met(Reason::Provisioned, "the broker has exactly the topology"),
    };
}

/// What is in force on the stream; `None`: there is none, or it is not known.
pub(super) fn retention(compiled: &Compiled, done: &Report) -> Option<RetentionStatus> {
    let stream = names::stream(&compiled.business);
    let policy = compiled.topology.queues.iter().find(|queue| queue.name == stream);
    let policy = policy.and_then(|stream| compiled.topology.policy_of(&stream.name))?;
    let unknown = |problem: &Problem| match problem {
        Problem::Refused { step, .. } | Problem::Failed { step, .. } => {
            matches!(&**step, Step::PutPolicy(Policy { name, .. }) | Step::DeletePolicy(name) if *name == stream)
        }
        _ => false,
    };
    if done.problems.iter().any(unknown) {
        return None;
    }
    let held = |problem: &Problem| match problem {
        Problem::Held { destruction, .. } => Some(destruction.clone()),
        _ => None,
    };
    let held: Vec<Destruction> = done.problems.iter().filter_map(held).collect();
    Some(RetentionStatus::of(&policy.definition, &held))
}

/// What was not done because it destroys messages, and a person can allow.
pub(super) fn destructions(done: &Report) -> Vec<Destruction> {
    let held = |problem: &Problem| match problem {
        Problem::Held { destruction, shared: None } => Some(destruction.clone()),
        _ => None,
    };
    done.problems.iter().filter_map(held).collect()
}

/// Whether nothing is left undone that a person may have allowed: a stream may still wait for the edges.
pub(super) fn is_carried_out(business: &str, done: &Report) -> bool {
    let stream = names::stream(business);
    let undone = |problem: &Problem| match problem {
        Problem::Kept { queue, .. } => *queue == stream,
        Problem::Held { .. } | Problem::Refused { .. } | Problem::Failed { .. } => true,
        _ => false,
    };
    !done.problems.iter().any(undone)
}

/// The namespace that something of the business type belongs to which is left on the broker, if that is not this resource's; empty: nothing
/// says whose it is.
pub(super) fn reserved(done: &Report) -> Option<&str> {
    done.problems.iter().find_map(|problem| match problem {
        Problem::Reserved { namespace, .. } => Some(namespace.as_deref().unwrap_or_default()),
        _ => None,
    })
}

fn problem_texts(done: &Report, which: impl Fn(&Problem) -> bool) -> Vec<String> {
    done.problems.iter().filter(|problem| which(problem)).map(ToString::to_string).collect()
}
