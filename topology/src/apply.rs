//! Applies a plan and verifies that the policies are in force.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::{StreamExt, stream};
use lapin::Connection;
use wirepost_core::names;
use wirepost_core::topology::Topology;
use wirepost_rabbitmq::{CallError, ManagementClient, ManagementError};

use crate::actual::Actual;
use crate::depth::{KeepReason, LOOKS_APART, Looks, Permission, UnknownDepth, permission};
use crate::effective::{PARALLEL, ineffective_policies};
use crate::error::Error;
use crate::plan::{Plan, Scope, plan, policies_of};
use crate::report::{Problem, Report};
use crate::room;
use crate::step::Step;
use crate::write::{WriteError, Writer};

/// Times that [`apply()`] waits for a second check.
const WAITS: u32 = 2;
/// Steps that may fail before no more of their kind are tried. One unresponsive object must not delay the others, and an unresponsive broker
/// must not be waited for a hundred times.
const MAX_FAILURES: usize = 8;

/// How far [`apply()`] may go.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Whose objects are compared.
    pub scope: Scope<'a>,
    /// For counting the messages of queues that are no longer declared, in the same vhost. Without it they are only unbound.
    pub amqp: Option<&'a Connection>,
    /// Delete these queues even with messages and consumers, and delete streams. For a business that is removed on purpose.
    pub delete_messages: bool,
}

/// How far [`apply_plan()`] may go. The default deletes nothing that could contain messages.
#[derive(Clone, Copy, Default)]
pub struct ApplyOptions<'a> {
    /// For counting the messages of queues that are no longer declared, in the same vhost. Without it they are only unbound.
    pub amqp: Option<&'a Connection>,
    /// Which queues were found empty before: only these are deleted. Without it queues are only unbound.
    pub looks: Option<&'a Looks>,
    /// Delete these queues even with messages and consumers, and delete streams.
    pub delete_messages: bool,
    /// Delete streams that are no longer declared, with their history. For a business that became Transient: its queues stay while they contain
    /// messages, but a stream can't be emptied.
    pub delete_streams: bool,
    /// Delete streams that are no longer declared and contain no messages. For a business that has ended: its stream is unbound before.
    pub delete_empty_streams: bool,
    /// Asked right before every write; when it says no, nothing more is written and the answer is [`Error::Stopped`].
    pub gate: Option<&'a (dyn Fn() -> bool + Send + Sync)>,
}

/// Makes the vhost match `desired`, within `options.scope`, and reports what still differs.
///
/// May be repeated at any time: each run reads the vhost again (one call) and changes only what differs. An object that the broker refuses
/// does not stop the others. Not atomic; two at the same time in one scope do no harm, but may report each other's unfinished work. Takes
/// [`LOOKS_APART`] longer where an empty queue is to be deleted, and twice that where the broker has no statistics of it yet.
///
/// # Errors
/// The broker can't be reached or refuses everything; what was done until then stays.
pub async fn apply(management: &ManagementClient, desired: &Topology, options: Options<'_>) -> Result<Report, Error> {
    let looks = Looks::default();
    let mut changes = Vec::new();
    for _ in 0..WAITS {
        let report = apply_once(management, desired, options, &looks).await?;
        let settles = |because: &KeepReason| {
            matches!(because, KeepReason::Confirming | KeepReason::Unknown(UnknownDepth::NoStatistics))
        };
        let waits = |problem: &Problem| matches!(problem, Problem::Kept { because, .. } if settles(because));
        if !report.problems.iter().any(waits) {
            return Ok(Report { changes: [changes, report.changes].concat(), ..report });
        }
        changes.extend(report.changes);
        tokio::time::sleep(LOOKS_APART).await;
    }
    let report = apply_once(management, desired, options, &looks).await?;
    Ok(Report { changes: [changes, report.changes].concat(), ..report })
}

async fn apply_once(
    management: &ManagementClient,
    desired: &Topology,
    options: Options<'_>,
    looks: &Looks,
) -> Result<Report, Error> {
    let Options { scope, amqp, delete_messages } = options;
    let actual = Actual::read(management).await?;
    let mut plan = plan(desired, &actual, scope);
    // An export does not contain operator policies.
    let with_room = room::kept(desired, &actual.policies.iter().collect::<Vec<_>>());
    plan.to_verify = policies_of(with_room.as_ref().unwrap_or(desired));
    apply_plan(management, plan, ApplyOptions { amqp, looks: Some(looks), delete_messages, ..ApplyOptions::default() })
        .await
}

/// Applies a plan, as [`apply()`] does: of the steps that do not depend on each other, eight at the same time. A step that the broker
/// fails at is reported, and so are at most seven more; what depends on it is not tried.
///
/// Then verifies that the plan's policies are in force, if anything was changed or a foreign policy could win over them.
///
/// # Errors
/// The broker can't be reached or refuses everything, or [`Error::Stopped`]; what was done until then stays, and calls in flight are
/// awaited.
///
/// # Cancel safety
/// Dropping the future leaves calls in flight undecided; the next snapshot shows what they did.
pub async fn apply_plan(management: &ManagementClient, plan: Plan, options: ApplyOptions<'_>) -> Result<Report, Error> {
    let Plan { steps, problems, destroys: _, foreign_policies_may_win: _, to_verify } = plan;
    let mut report = Report { problems, ..Report::default() };
    // Queues that are no longer declared and stay all the same, and their businesses.
    let (mut kept_queues, mut kept) = (HashSet::<String>::new(), HashSet::<String>::new());
    // Steps that failed, and those that were not tried because of them.
    let mut undone: Vec<Step> = Vec::new();
    let failures = AtomicUsize::new(0);
    let mut steps = steps.into_iter().peekable();
    while let Some(rank) = steps.peek().map(Step::rank) {
        let mut same_rank = Vec::new();
        while let Some(step) = steps.next_if(|step| step.rank() == rank) {
            let waits = step.waits_for_queues_of().is_some_and(|business| kept.contains(business));
            // A queue keeps its limits as long as it lives.
            let limits = matches!(&step, Step::DeletePolicy(name) if kept_queues.iter().any(|queue| names::is_policy_of(name, queue)));
            // It goes last.
            let mark = matches!(&step, Step::UnmarkBusiness(_)) && !report.left.is_empty();
            let lacks = |need| undone.iter().any(|undone| undone.provides() == Some(need));
            if step.needs().any(lacks) {
                stays(&step, &mut kept_queues, &mut kept);
                undone.push(step.clone());
                report.left.push(step);
            } else if waits || limits || mark {
                // Its first check; otherwise it would cost a wait of its own once the others are gone.
                if let Step::DeleteQueue(name) = &step {
                    permission(management, options.amqp, options.looks, name).await?;
                }
                report.left.push(step);
            } else {
                same_rank.push(step);
            }
        }
        let failed = AtomicBool::new(false);
        let outcomes: Vec<_> = stream::iter(same_rank)
            .map(|step| carry_out(management, step, options, &failed, &failures))
            .buffered(PARALLEL)
            .collect()
            .await;
        let mut fatal = None;
        for (step, outcome) in outcomes {
            if matches!(step, Step::MarkBusiness { .. })
                && let Some(error) = unmarked(&step, &outcome)
            {
                return Err(error);
            }
            match outcome {
                Ok(Outcome::Done(change)) => report.changes.push(change),
                Ok(Outcome::Problem(problem)) => {
                    if let Problem::Kept { queue, because } = &problem {
                        // A stream can't be emptied, and it dead-letters nothing: neither a user nor a policy has to wait for it.
                        if *because != KeepReason::Stream {
                            kept.extend(names::owner(queue).map(str::to_owned));
                        }
                        kept_queues.insert(queue.clone());
                    }
                    report.problems.push(problem);
                    report.left.push(step);
                }
                Ok(Outcome::Failed(error)) => {
                    let reason = error.to_string();
                    report.problems.push(Problem::Failed { step: Box::new(step.clone()), reason });
                    stays(&step, &mut kept_queues, &mut kept);
                    undone.push(step.clone());
                    // Only removals wait: everything declared exists.
                    if failures.load(Ordering::Relaxed) >= MAX_FAILURES && !step.removes() {
                        fatal = Some(error.into());
                    }
                    report.left.push(step);
                }
                Ok(Outcome::NotTried) => {
                    stays(&step, &mut kept_queues, &mut kept);
                    undone.push(step.clone());
                    report.left.push(step);
                }
                Err(e) => fatal = fatal.or(Some(e)),
            }
        }
        if let Some(error) = fatal {
            return Err(error);
        }
    }
    if !to_verify.is_empty() {
        report.problems.extend(ineffective_policies(management, &to_verify).await?);
    }
    for problem in &report.problems {
        // Only at debug: the caller knows whether it has reported this before.
        tracing::debug!(vhost = management.vhost(), "{problem}");
    }
    Ok(report)
}

/// Why nothing of a business may be created: whose it is could not be recorded.
fn unmarked(step: &Step, outcome: &Result<Outcome, Error>) -> Option<Error> {
    let cause = match outcome {
        Ok(Outcome::Done(_)) | Err(_) => return None,
        Ok(Outcome::Problem(problem)) => problem.to_string(),
        Ok(Outcome::Failed(error)) => error.to_string(),
        Ok(Outcome::NotTried) => "not tried, since other calls failed".to_owned(),
    };
    Some(Error::Unmarked { doing: step.to_string(), cause })
}

/// A queue that could not be deleted keeps its policy, and its business what is deleted last.
fn stays(step: &Step, kept_queues: &mut HashSet<String>, kept: &mut HashSet<String>) {
    if let Step::DeleteQueue(name) | Step::DeleteStream(name) = step {
        kept.extend(names::owner(name).map(str::to_owned));
        kept_queues.insert(name.clone());
    }
}

enum Outcome {
    Done(String),
    Problem(Problem),
    /// This one failed.
    Failed(ManagementError),
    /// It was not tried: others failed before in a way that would have failed it too.
    NotTried,
}

async fn carry_out(
    management: &ManagementClient,
    step: Step,
    options: ApplyOptions<'_>,
    failed: &AtomicBool,
    failures: &AtomicUsize,
) -> (Step, Result<Outcome, Error>) {
    if failed.load(Ordering::Relaxed) || failures.load(Ordering::Relaxed) >= MAX_FAILURES {
        return (step, Ok(Outcome::NotTried));
    }
    let outcome = try_step(management, &step, options).await;
    match &outcome {
        Ok(Outcome::Failed(_)) => drop(failures.fetch_add(1, Ordering::Relaxed)),
        Ok(_) => {}
        Err(_) => failed.store(true, Ordering::Relaxed),
    }
    (step, outcome)
}

async fn try_step(management: &ManagementClient, step: &Step, options: ApplyOptions<'_>) -> Result<Outcome, Error> {
    let guard = match permission_for(management, step, options).await? {
        Permission::Keep(because) => {
            let queue = step.queue_to_delete().unwrap_or_default().to_owned();
            return Ok(Outcome::Problem(Problem::Kept { queue, because }));
        }
        Permission::Delete { guard } => guard,
    };
    let doing = step.to_string();
    match (Writer { management, gate: options.gate, guard }).carry_out(&doing, step).await {
        Ok(()) => {
            tracing::info!(vhost = management.vhost(), "{doing}");
            Ok(Outcome::Done(doing))
        }
        Err(WriteError::Call(CallError::Object(reason) | CallError::NotFound(reason))) => {
            Ok(Outcome::Problem(Problem::Refused { step: Box::new(step.clone()), reason }))
        }
        Err(WriteError::Call(CallError::Failed(e))) => Ok(Outcome::Failed(e)),
        Err(WriteError::Call(CallError::Fatal(e))) => Err(e.into()),
        Err(WriteError::Stopped) => Err(Error::Stopped { doing }),
    }
}

/// Whether the step may be carried out: a queue or stream may only be deleted under certain conditions.
async fn permission_for(
    management: &ManagementClient,
    step: &Step,
    options: ApplyOptions<'_>,
) -> Result<Permission, Error> {
    let ApplyOptions { amqp, looks, delete_messages, delete_streams, delete_empty_streams, gate: _ } = options;
    match step {
        _ if delete_messages => Ok(Permission::Delete { guard: false }),
        Step::DeleteStream(_) if delete_streams => Ok(Permission::Delete { guard: false }),
        // Copies of events, which the business has had.
        Step::DeleteStream(name) if names::is_receipts_stream(name) => Ok(Permission::Delete { guard: false }),
        Step::DeleteStream(name) if delete_empty_streams => {
            Ok(match permission(management, amqp, looks, name).await? {
                Permission::Keep(because) if because != KeepReason::Confirming => Permission::Keep(KeepReason::Stream),
                permission => permission,
            })
        }
        Step::DeleteStream(_) => Ok(Permission::Keep(KeepReason::Stream)),
        Step::DeleteQueue(name) => permission(management, amqp, looks, name).await,
        _ => Ok(Permission::Delete { guard: false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_may_apply() {
        fn is_send<T: Send>(_: &T) {}
        let management = ManagementClient::new(wirepost_rabbitmq::ManagementSettings {
            url: "http://guest:guest@localhost".to_owned(),
            vhost: "/".to_owned(),
            credentials: None,
            tls: wirepost_rabbitmq::TlsFiles::default(),
            timeout: None,
        })
        .unwrap();
        is_send(&apply_plan(&management, Plan::default(), ApplyOptions::default()));
        is_send(&crate::Snapshot::read(&management));
    }
}
