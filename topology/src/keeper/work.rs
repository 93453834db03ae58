//! Jobs that wait and jobs that run. Each runs as a task of its own, so that none waits for a slow call of another: those that set policies
//! take turns among themselves (the broker needs up to 30 s for one), all others have room of their own.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{
    BrokerFailure, CAPACITY, Ensured, Event, Reply,
    actor::{Actor, Context, Finished},
    job::{Job, JobResult, Kind, Needs},
};
use crate::{ApplyOptions, Error, Plan, Report, apply_plan};

/// Jobs without policies that run at the same time; each has a few calls in flight.
const PARALLEL: usize = 8;

/// See the module.
#[derive(Default)]
pub(super) struct Work {
    waiting: VecDeque<Waiting>,
    /// By business: two jobs of one business never run at the same time.
    running: HashMap<String, Needs>,
    shared: Shared,
}

struct Waiting {
    job: Job,
    /// `None`: nobody waits for an orphan.
    reply: Option<oneshot::Sender<Reply>>,
    /// As far as it was planned.
    needs: Option<Needs>,
}

/// The policies that all businesses share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shared {
    /// As declared, when last seen.
    #[default]
    Right,
    /// They are not, and nothing was done yet.
    Wrong,
    /// They are being set.
    Setting,
}

impl Work {
    /// Whether more jobs may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < CAPACITY
    }

    pub(super) fn add(&mut self, job: Job, reply: Option<oneshot::Sender<Reply>>) {
        self.waiting.push_back(Waiting { job, reply, needs: None });
    }

    /// Whether a job of this business waits or runs.
    pub(super) fn has(&self, business: &str) -> bool {
        self.running.contains_key(business) || self.waiting.iter().any(|waiting| waiting.job.business == business)
    }

    /// Businesses of which a job runs.
    pub(super) fn running(&self) -> impl Iterator<Item = &String> {
        self.running.keys()
    }

    /// A queue should find its limits when it is created, so the shared policies come first.
    fn may_start(&self, needs: Needs) -> bool {
        if needs.shared_policies && self.shared != Shared::Right {
            return false;
        }
        let same_kind = self.running.values().filter(|running| running.policies == needs.policies).count();
        if needs.policies { same_kind == 0 && self.shared != Shared::Setting } else { same_kind < PARALLEL }
    }

    /// Answers everything that waits, or of that only what waits for the shared policies.
    pub(super) fn fail(&mut self, failure: &BrokerFailure, only_for_shared: bool) {
        let waits_for_shared = |waiting: &Waiting| waiting.needs.is_some_and(|needs| needs.shared_policies);
        self.waiting.retain_mut(|waiting| {
            if only_for_shared && !waits_for_shared(waiting) {
                return true;
            }
            if let Some(reply) = waiting.reply.take() {
                // It fails only when the caller does not wait any more.
                let _ = reply.send(Err(failure.clone()));
            }
            false
        });
    }
}

impl Actor {
    /// Starts every job that may start. Takes a snapshot if one needs a newer one.
    pub(super) fn start_jobs(&mut self) {
        let mut needs_snapshot = false;
        let mut kept: HashSet<String> = HashSet::new();
        for waiting in std::mem::take(&mut self.work.waiting) {
            let Waiting { job, reply, needs } = waiting;
            let business = job.business.clone();
            // Those of one business keep their order.
            let must_wait = kept.contains(&business)
                || self.work.running.contains_key(&business)
                || needs.is_some_and(|needs| !self.work.may_start(needs));
            if must_wait {
                kept.insert(business);
                self.work.waiting.push_back(Waiting { job, reply, needs });
                continue;
            }
            let Some(snapshot) = self.snapshots.usable(&business) else {
                needs_snapshot = true;
                kept.insert(business);
                self.work.waiting.push_back(Waiting { job, reply, needs });
                continue;
            };
            let (permitted, needs) = job.plan(&snapshot, self.context.mode);
            if !self.work.may_start(needs) {
                kept.insert(business);
                self.work.waiting.push_back(Waiting { job, reply, needs: Some(needs) });
                continue;
            }
            if needs.shared_policies
                && let Some(failure) = self.waits_for_nodes()
            {
                if let Some(reply) = reply {
                    let _ = reply.send(Err(failure));
                }
                continue;
            }
            self.snapshots.started(&business);
            self.work.running.insert(business, needs);
            let context = Arc::clone(&self.context);
            self.tasks.spawn(async move { Finished::Job(Box::new(job.run(permitted, &context).await), reply) });
        }
        if needs_snapshot {
            self.want_snapshot();
        }
    }

    /// Records what a job came to, and answers who waits for it: its caller continues with the API server while others still wait for the
    /// broker.
    pub(super) fn job_finished(&mut self, done: JobResult, reply: Option<oneshot::Sender<Reply>>) {
        let needed = self.work.running.remove(&done.job.business);
        if needed.is_some_and(|needed| needed.shared_policies) {
            // Queues were created.
            self.replicas.check_soon();
        }
        if done.job.kind == Kind::Orphan {
            self.orphan_removed(done);
        } else {
            let result = self.record(done);
            if let Some(reply) = reply {
                let _ = reply.send(result);
            }
        }
        self.start_jobs();
    }

    fn record(&mut self, done: JobResult) -> Reply {
        let JobResult { job, differed, left, waits_for_edges, result } = done;
        let report = match result {
            Ok(report) => Arc::new(report),
            Err(error) => {
                self.snapshots.discard();
                self.businesses.failed(&job.business);
                // Whether the broker is away is for the next snapshot to say: one object that does not answer concerns one business.
                return Err(BrokerFailure::from(&error));
            }
        };
        if differed {
            self.snapshots.changed(&job.business);
        }
        let repaired = self.context.drifts.lock().remove(&job.business).is_some();
        self.context.owner.report(Event::Changed { count: report.changes.len(), repair: repaired });
        if !matches!(job.kind, Kind::Ensure { .. }) {
            self.businesses.remove(&job.business);
            self.unrouted.forget(&job.business);
        } else if self.businesses.ensured(job.business.clone(), job.desired, &report, left, waits_for_edges) {
            self.unrouted.check_soon(job.business.clone());
        }
        let repaired = repaired && !report.changes.is_empty();
        Ok(Ensured { repaired, waits_for_edges, report: self.replicas.complete(&job.business, &report) })
    }

    /// Begins to set the policies that all businesses share, where a snapshot shows that they are not as declared.
    pub(super) fn set_shared_policies(&mut self, plan: Plan) {
        if self.work.shared == Shared::Setting {
            return;
        }
        self.work.shared = if plan.is_empty() { Shared::Right } else { Shared::Wrong };
        if plan.is_empty() || !self.context.may_write() {
            return;
        }
        self.work.shared = Shared::Setting;
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move { Finished::Shared(context.apply_shared(plan).await) });
    }

    pub(super) fn shared_policies_set(&mut self, result: Result<Report, Error>) {
        match result {
            Ok(report) => {
                self.work.shared = Shared::Right;
                // One that is under way may have been read before.
                self.snapshots.discard();
                self.context.owner.report(Event::Changed { count: report.changes.len(), repair: false });
                for problem in &report.problems {
                    tracing::warn!(%problem, "what all businesses share is not as it should be");
                }
            }
            Err(error) => {
                self.work.shared = Shared::Wrong;
                tracing::warn!(%error, "the policies that all businesses share are not set; trying again");
                self.work.fail(&BrokerFailure::from(&error), true);
            }
        }
        self.start_jobs();
    }
}

impl Context {
    async fn apply_shared(&self, plan: Plan) -> Result<Report, Error> {
        let gate = || self.may_write();
        let options = ApplyOptions { gate: Some(&gate), ..ApplyOptions::default() };
        self.unless_stopped(apply_plan(&self.management, plan, options)).await
    }
}
