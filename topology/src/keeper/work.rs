//! Jobs that wait and jobs that run. Each runs as a task of its own, so that none waits for a slow call of another: those that set policies
//! take turns among themselves (the broker needs up to 30 s for one), all others have room of their own.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    BrokerFailure, CAPACITY, Ensured, Event, Reply,
    actor::{Actor, Context, Finished},
    job::{Job, JobResult, Kind, Needs},
};
use crate::{ApplyOptions, Error, Plan, Report, Snapshot, Step, apply_plan, room::default_bytes};

/// Jobs without policies that run at the same time; each has a few calls in flight.
const PARALLEL: usize = 8;
/// How long a job waits for a snapshot that shows all businesses to which messages are led as they are now. Some may come and
/// go all the time: then it is planned with those that are there, and the next sweep finds the others.
const LEADS_WAIT: Duration = Duration::from_secs(10);
/// Before another attempt to set the shared policies.
const SHARED_RETRY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Work {
    waiting: VecDeque<Waiting>,
    /// By business: two jobs of one business never run at the same time.
    running: HashMap<String, Needs>,
    shared: Shared,
    /// When the last attempt to set them failed, and why, until they are set.
    shared_failure: Option<(Instant, BrokerFailure)>,
    /// When something was last missing of what edges tell each other by, and was to be created.
    control_tried: Option<Instant>,
}

struct Waiting {
    job: Job,
    /// `None`: nobody waits for an orphan.
    reply: Option<oneshot::Sender<Reply>>,
    /// As far as it was planned.
    needs: Option<Needs>,
    /// Since when nothing but others that it leads messages to keeps it.
    since: Option<Instant>,
}

impl Waiting {
    /// The businesses whose last change a snapshot must show.
    fn leads_to(&self) -> impl Iterator<Item = &str> {
        self.job.leads_to().take_while(|_| self.since.is_none_or(|since| since.elapsed() < LEADS_WAIT))
    }
}

/// The policies that all businesses share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shared {
    /// As declared, when last seen.
    #[default]
    Right,
    /// They are not set, and there was no attempt yet.
    Wrong,
    /// They are being set.
    Setting,
}

impl Work {
    /// Whether more requests may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() - self.orphans() < CAPACITY
    }

    /// Orphans that wait; never more than a few.
    pub(super) fn orphans(&self) -> usize {
        self.waiting.iter().filter(|waiting| waiting.reply.is_none()).count()
    }

    /// Adds a request before the orphans that wait, and instead of an orphan of the same business.
    pub(super) fn add(&mut self, job: Job, reply: Option<oneshot::Sender<Reply>>) {
        let is_orphan = |waiting: &Waiting| waiting.reply.is_none();
        let requested = reply.is_some();
        if requested {
            self.waiting.retain(|waiting| !is_orphan(waiting) || waiting.job.business != job.business);
        }
        let place = self.waiting.iter().position(is_orphan).filter(|_| requested).unwrap_or(self.waiting.len());
        self.waiting.insert(place, Waiting { job, reply, needs: None, since: None });
    }

    /// Whether a job of this business waits or runs.
    pub(super) fn has(&self, business: &str) -> bool {
        self.running.contains_key(business) || self.waiting.iter().any(|waiting| waiting.job.business == business)
    }

    /// Businesses of which a job runs.
    pub(super) fn running(&self) -> impl Iterator<Item = &String> {
        self.running.keys()
    }

    /// A queue must find its limits when it is created, so the shared policies come first.
    fn may_start(&self, needs: Needs) -> bool {
        if needs.shared_policies && self.shared != Shared::Right {
            return false;
        }
        let same_kind = self.running.values().filter(|running| running.policies == needs.policies).count();
        if needs.policies { same_kind == 0 && self.shared != Shared::Setting } else { same_kind < PARALLEL }
    }

    /// A snapshot shows whether the shared policies are right. Whether an attempt to set them is due.
    fn shared_seen(&mut self, right: bool) -> bool {
        if self.shared == Shared::Setting {
            return false;
        }
        if right {
            self.shared = Shared::Right;
            self.shared_failure = None;
            return false;
        }
        self.shared = Shared::Wrong;
        self.shared_failure.as_ref().is_none_or(|(since, _)| since.elapsed() >= SHARED_RETRY)
    }

    /// Whether what edges tell each other by may be created again: a broker that refuses it is not asked all the time.
    fn control_due(&self) -> bool {
        self.control_tried.is_none_or(|since| since.elapsed() >= SHARED_RETRY)
    }

    /// An attempt to set the shared policies ended. If they are not all set, the requests that wait for them fail.
    fn shared_attempted(&mut self, result: &Result<Report, Error>) {
        let failure = match result {
            Ok(report) => BrokerFailure::shared_policies(report),
            Err(error) => Some(BrokerFailure::from(error)),
        };
        self.shared = if failure.is_none() { Shared::Right } else { Shared::Wrong };
        if let Some(failure) = &failure {
            self.fail(failure, true);
        }
        self.shared_failure = failure.map(|failure| (Instant::now(), failure));
    }

    /// Why queues can't be created: the shared policies could not be set, and it is not tried at this moment.
    fn shared_failure(&self) -> Option<&BrokerFailure> {
        let (_, failure) = self.shared_failure.as_ref().filter(|_| self.shared == Shared::Wrong)?;
        Some(failure)
    }

    /// Fails all requests that wait, or only those that wait for the shared policies.
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
        for mut waiting in std::mem::take(&mut self.work.waiting) {
            let business = waiting.job.business.clone();
            // Those of one business keep their order.
            let must_wait = kept.contains(&business)
                || self.work.running.contains_key(&business)
                || waiting.needs.is_some_and(|needs| !self.work.may_start(needs));
            if must_wait {
                kept.insert(business);
                self.work.waiting.push_back(waiting);
                continue;
            }
            let Some(snapshot) = self.snapshots.usable(&business, waiting.leads_to()) else {
                if self.snapshots.usable(&business, std::iter::empty()).is_some() {
                    waiting.since.get_or_insert_with(Instant::now);
                }
                needs_snapshot = true;
                kept.insert(business);
                self.work.waiting.push_back(waiting);
                continue;
            };
            let Waiting { job, reply, since, .. } = waiting;
            let planned =
                self.context.caught("comparing a business with the broker", || job.plan(&snapshot, self.context.mode));
            let (permitted, needs) = match planned {
                Ok(planned) => planned,
                Err(error) => {
                    self.businesses.failed(&business);
                    if let Some(reply) = reply {
                        let _ = reply.send(Err(BrokerFailure::from(&error)));
                    }
                    continue;
                }
            };
            if needs.shared_policies
                && let Some(failure) = self.work.shared_failure()
            {
                if let Some(reply) = reply {
                    let _ = reply.send(Err(failure.clone()));
                }
                continue;
            }
            if !self.work.may_start(needs) {
                kept.insert(business);
                self.work.waiting.push_back(Waiting { job, reply, needs: Some(needs), since });
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

    /// Records the result of a job, and answers its caller, which continues with the API server while others still wait for the broker.
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
        let removes = !matches!(job.kind, Kind::Ensure { .. });
        let report = match result {
            Ok(report) => Arc::new(report),
            Err(error) => {
                self.snapshots.changed(&job.business, removes);
                self.snapshots.discard();
                self.businesses.failed(&job.business);
                // The next snapshot shows whether the broker is away: one unresponsive object concerns one business.
                return Err(BrokerFailure::from(&error));
            }
        };
        if differed {
            self.snapshots.changed(&job.business, removes);
        }
        let repaired = self.context.drifts.lock().remove(&job.business).is_some();
        self.context.owner.report(Event::Changed { count: report.changes.len(), repair: repaired });
        if removes {
            self.businesses.remove(&job.business);
            self.unrouted.forget(&job.business);
        } else if self.businesses.ensured(job.business.clone(), job.desired, &report, left, waits_for_edges) {
            self.unrouted.check_soon(job.business.clone());
        }
        let repaired = repaired && !report.changes.is_empty();
        Ok(Ensured { repaired, waits_for_edges, report: self.replicas.complete(&job.business, &report) })
    }

    /// Begins to set the policies that all businesses share, where a snapshot shows that they are not as declared, and to create the control
    /// stream. Without enough nodes that one waits: it would have too few replicas.
    pub(super) fn set_shared_policies(&mut self, snapshot: &Arc<Snapshot>) {
        let mut plan = snapshot.plan_shared();
        if self.waits_for_nodes().is_some() {
            plan.steps.retain(|step| matches!(step, Step::PutPolicy(_)));
        }
        let is_policy = |step: &Step| matches!(step, Step::PutPolicy(_));
        if plan.steps.iter().all(|step| !is_policy(step)) && !self.work.control_due() {
            plan.steps.clear();
        }
        // One that would cut streams is left alone, and each of their businesses says so.
        if !self.work.shared_seen(plan.steps.is_empty()) || !self.context.may_write() {
            return;
        }
        self.work.shared = Shared::Setting;
        if !plan.steps.iter().all(is_policy) {
            self.work.control_tried = Some(Instant::now());
        }
        let (context, snapshot) = (Arc::clone(&self.context), Arc::clone(snapshot));
        self.tasks.spawn(async move { Finished::Shared(context.apply_shared(plan, &snapshot).await) });
    }

    pub(super) fn shared_policies_set(&mut self, result: Result<Report, Error>) {
        self.work.shared_attempted(&result);
        match result {
            Ok(report) => {
                // One that is under way may have been read before.
                self.snapshots.discard();
                self.context.owner.report(Event::Changed { count: report.changes.len(), repair: false });
                for problem in &report.problems {
                    tracing::warn!(%problem, "what all businesses share is not as it should be");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the policies that all businesses share are not set; trying again");
            }
        }
        self.start_jobs();
    }
}

impl Context {
    async fn apply_shared(&self, plan: Plan, snapshot: &Snapshot) -> Result<Report, Error> {
        let gate = || self.may_write();
        let options = ApplyOptions { gate: Some(&gate), ..ApplyOptions::default() };
        let applying = async {
            if snapshot.is_without_bytes() {
                snapshot.leave_room(&self.management, default_bytes(), options.gate).await?;
            }
            apply_plan(&self.management, plan, options).await
        };
        self.unless_stopped(applying).await
    }
}

#[cfg(test)]
mod tests {
    use wirepost_core::{
        names,
        topology::{Link, Topology},
    };

    use super::*;
    use crate::{
        Problem,
        control::Control,
        keeper::{Desired, Phase},
    };

    const QUEUES: Needs = Needs { policies: false, shared_policies: true };

    fn waiting(work: &mut Work, business: &str) -> oneshot::Receiver<Reply> {
        let (reply, answer) = oneshot::channel();
        let job = Job::remove(business.to_owned(), None, false);
        work.waiting.push_back(Waiting { job, reply: Some(reply), needs: Some(QUEUES), since: None });
        answer
    }

    #[test]
    fn orphans_take_no_room_of_requests_and_no_business_that_is_declared_again() {
        let mut work = Work::default();
        for i in 0..CAPACITY {
            work.add(Job::orphan(format!("b{i}")), None);
        }
        assert!(work.has_room());
        let (reply, _answer) = oneshot::channel();
        work.add(Job::ensure("b7".to_owned(), Arc::default(), Phase::Grow), Some(reply));
        assert_eq!(work.orphans(), CAPACITY - 1);
        assert!(work.waiting.front().is_some_and(|first| first.job.business == "b7" && first.reply.is_some()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_waits_a_while_for_those_that_it_leads_messages_to() {
        let link = |to: &str| Link {
            from: names::share_exchange("pay"),
            to: names::push_exchange(to),
            header: "to".to_owned(),
            value: to.to_owned(),
        };
        let topology = Topology { links: vec![link("chat"), link("pay"), link("crm")], ..Topology::default() };
        let desired = Arc::new(Desired { topology, ..Desired::default() });
        let mut work = Work::default();
        work.add(Job::ensure("pay".to_owned(), desired, Phase::Grow), None);
        tokio::time::advance(LEADS_WAIT).await;
        let waiting = work.waiting.front_mut().unwrap();
        assert_eq!(waiting.leads_to().collect::<Vec<_>>(), ["chat", "crm"], "it has waited for other things");
        waiting.since = Some(Instant::now());
        assert_eq!(waiting.leads_to().count(), 2);
        tokio::time::advance(LEADS_WAIT).await;
        assert_eq!(waiting.leads_to().count(), 0, "however often they change");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shared_policy_that_is_refused_fails_what_needs_it_and_is_tried_again_later() {
        let mut work = Work::default();
        assert!(work.shared_seen(false), "the first attempt is due at once");
        work.shared = Shared::Setting;
        let mut answer = waiting(&mut work, "pay");
        assert!(answer.try_recv().is_err(), "it waits for the attempt");
        let step = Step::PutPolicy(wirepost_core::topology::shared_policies()[0].clone());
        let refused = Problem::Refused { step: Box::new(step.clone()), reason: "no".to_owned() };
        let report = Report { problems: vec![refused], left: vec![step], ..Report::default() };
        work.shared_attempted(&Ok(report));
        assert!(answer.try_recv().is_ok_and(|answer| answer.is_err()), "it is answered");
        assert!(!work.may_start(QUEUES) && work.shared_failure().is_some(), "and so is what comes next");
        assert!(!work.shared_seen(false), "another attempt is not due at once");
        tokio::time::advance(SHARED_RETRY).await;
        assert!(work.shared_seen(false), "but later");
        work.shared = Shared::Setting;
        assert!(work.shared_failure().is_none(), "what comes now waits for it");
        work.shared_attempted(&Ok(Report::default()));
        assert!(work.may_start(QUEUES) && !work.shared_seen(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_stream_that_is_refused_keeps_no_business_from_its_queues() {
        let mut work = Work { shared: Shared::Setting, ..Work::default() };
        let mut answer = waiting(&mut work, "pay");
        let step = Control::default().missing().next().unwrap();
        let refused = Problem::Refused { step: Box::new(step.clone()), reason: "no streams here".to_owned() };
        let report = Report { problems: vec![refused], left: vec![step], ..Report::default() };
        work.shared_attempted(&Ok(report));
        assert!(answer.try_recv().is_err() && work.may_start(QUEUES) && work.shared_failure().is_none());
    }
}
