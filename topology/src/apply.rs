//! Carries a plan out and checks that the policies are in force.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, stream};
use lapin::Connection;
use wirepost_core::names;
use wirepost_core::topology::Topology;
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::actual::Actual;
use crate::count::{dead_letters_wait, in_use};
use crate::in_force::not_in_force;
use crate::plan::{Plan, Scope, plan, policies_of};
use crate::report::{Error, KeptBecause, Problem, Report};
use crate::step::Step;
use crate::write::{WriteError, Writer};

/// Calls under way at once.
pub(crate) const PARALLEL: usize = 8;

/// How far [`apply()`] may go.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Whose objects are looked at.
    pub scope: Scope<'a>,
    /// For counting the messages of queues that nothing declares any more, in the same vhost. Without it they are only unbound.
    pub amqp: Option<&'a Connection>,
    /// Delete those queues also with messages and consumers, and streams. For a business that is removed on purpose.
    pub delete_messages: bool,
}

/// How far [`apply_plan()`] may go. The default deletes nothing that could hold messages.
#[derive(Clone, Copy, Default)]
pub struct ApplyOptions<'a> {
    /// For counting the messages of queues that nothing declares any more, in the same vhost. Without it they are only unbound.
    pub amqp: Option<&'a Connection>,
    /// Delete those queues also with messages and consumers, and streams.
    pub delete_messages: bool,
    /// Delete streams that nothing declares any more, with their history. For a business that is removed or became Transient: its queues
    /// stay as long as they hold messages, but nobody can empty a stream.
    pub delete_streams: bool,
    /// Asked right before every write; when it says no, nothing more is written and the answer is [`Error::Stopped`].
    pub gate: Option<&'a (dyn Fn() -> bool + Send + Sync)>,
}

/// Makes the vhost have `desired`, within `options.scope`, and reports what it could not make true.
///
/// May be repeated at any time: each run reads the vhost anew (one call) and makes only what is missing. An object that the broker refuses
/// does not stop the others. Not atomic; two at once in one scope do no harm, but may report each other's half-done work.
///
/// Errors when the broker can't be asked or refuses us altogether; what was done until then stays.
pub async fn apply(management: &ManagementClient, desired: &Topology, options: Options<'_>) -> Result<Report, Error> {
    let Options { scope, amqp, delete_messages } = options;
    let actual = Actual::read(management).await?;
    let mut plan = plan(desired, &actual, scope);
    // An export does not tell of operator policies.
    plan.unproven = policies_of(desired);
    apply_plan(management, plan, ApplyOptions { amqp, delete_messages, ..ApplyOptions::default() }).await
}

/// Carries out a plan, as [`apply()`] does: steps that do not depend on each other at once, eight at a time.
///
/// Then looks whether the plan's policies are in force, if anything was done or others' policies could stand in their way.
///
/// Errors when the broker can't be asked or refuses us altogether, or with [`Error::Stopped`]; what was done until then stays, and calls
/// under way at that moment are awaited. Dropping the future leaves calls under way in doubt; the next snapshot tells.
pub async fn apply_plan(management: &ManagementClient, plan: Plan, options: ApplyOptions<'_>) -> Result<Report, Error> {
    let Plan { steps, problems, rival_policies: _, unproven } = plan;
    let mut report = Report { problems, ..Report::default() };
    // Queues which nothing declares and that stay all the same, and their businesses.
    let (mut kept_queues, mut kept) = (HashSet::<String>::new(), HashSet::<String>::new());
    let mut steps = steps.into_iter().peekable();
    while let Some(rank) = steps.peek().map(Step::rank) {
        let mut same_rank = Vec::new();
        while let Some(step) = steps.next_if(|step| step.rank() == rank) {
            let waits = step.waits_for_queues_of().is_some_and(|business| kept.contains(business));
            // A queue keeps its limits as long as it lives.
            let limits = matches!(&step, Step::DeletePolicy(name) if kept_queues.contains(name));
            if waits || limits {
                report.left.push(step);
            } else {
                same_rank.push(step);
            }
        }
        let failed = AtomicBool::new(false);
        let outcomes: Vec<_> = stream::iter(same_rank)
            .map(|step| carry_out(management, step, options, &failed))
            .buffered(PARALLEL)
            .collect()
            .await;
        let mut error = None;
        for (step, outcome) in outcomes {
            match outcome {
                Ok(Outcome::Done(change)) => report.changes.push(change),
                Ok(Outcome::Not(problem)) => {
                    if let Problem::Kept { queue, because } = &problem {
                        // Nobody can empty a stream, and it gives nothing to `dead`: no user and no keeper waits for it.
                        if *because != KeptBecause::Stream {
                            kept.extend(names::owner(queue).map(str::to_owned));
                        }
                        kept_queues.insert(queue.clone());
                    }
                    report.problems.push(problem);
                    report.left.push(step);
                }
                Ok(Outcome::NotTried) => report.left.push(step),
                Err(e) => error = error.or(Some(e)),
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
    }
    if !unproven.is_empty() {
        report.problems.extend(not_in_force(management, &unproven).await?);
    }
    for problem in &report.problems {
        // The caller knows whether it said so before.
        tracing::debug!(vhost = management.vhost(), "{problem}");
    }
    Ok(report)
}

enum Outcome {
    Done(String),
    Not(Problem),
    /// Another one failed before, in a way that this one would share.
    NotTried,
}

async fn carry_out(
    management: &ManagementClient,
    step: Step,
    options: ApplyOptions<'_>,
    failed: &AtomicBool,
) -> (Step, Result<Outcome, Error>) {
    if failed.load(Ordering::Relaxed) {
        return (step, Ok(Outcome::NotTried));
    }
    let outcome = try_step(management, &step, options).await;
    if outcome.is_err() {
        failed.store(true, Ordering::Relaxed);
    }
    (step, outcome)
}

async fn try_step(management: &ManagementClient, step: &Step, options: ApplyOptions<'_>) -> Result<Outcome, Error> {
    if let Some((queue, because)) = must_stay(management, step, options).await? {
        return Ok(Outcome::Not(Problem::Kept { queue: queue.to_owned(), because }));
    }
    let doing = step.to_string();
    match (Writer { management, gate: options.gate }).carry_out(&doing, step).await {
        Ok(()) => {
            tracing::info!(vhost = management.vhost(), "{doing}");
            Ok(Outcome::Done(doing))
        }
        Err(WriteError::Call(CallError::Object(reason) | CallError::NotFound(reason))) => {
            Ok(Outcome::Not(Problem::Refused { doing, reason }))
        }
        Err(WriteError::Call(CallError::Fatal(e))) => Err(e.into()),
        Err(WriteError::Stopped) => Err(Error::Stopped { doing }),
    }
}

/// The queue that the step would delete, and why it must not.
async fn must_stay<'s>(
    management: &ManagementClient,
    step: &'s Step,
    options: ApplyOptions<'_>,
) -> Result<Option<(&'s str, KeptBecause)>, Error> {
    let ApplyOptions { amqp, delete_messages, delete_streams, gate: _ } = options;
    Ok(match (step, amqp) {
        _ if delete_messages => None,
        (Step::DeleteStream(_), _) if delete_streams => None,
        (Step::DeleteStream(name), _) => Some((name.as_str(), KeptBecause::Stream)),
        (Step::DeleteQueue(name), None) => Some((name.as_str(), KeptBecause::Unknown)),
        (Step::DeleteQueue(name), Some(connection)) => match in_use(connection, name).await? {
            None => dead_letters_wait(management, name).await?.map(|why| (name.as_str(), why)),
            Some(why) => Some((name.as_str(), why)),
        },
        _ => None,
    })
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
            ca_file: None,
            timeout: None,
        })
        .unwrap();
        is_send(&apply_plan(&management, Plan::default(), ApplyOptions::default()));
        is_send(&crate::Snapshot::read(&management));
    }
}
