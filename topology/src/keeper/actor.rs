//! The actor itself: see [`super`].

mod depths;
mod moves;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use lapin::Connection;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::{names, topology::Intake};
use wirepost_topology::actual::Policy;
use wirepost_topology::{ApplyOptions, Error, Management, Plan, Problem, Report, Snapshot, Step, apply_plan};

use super::{Answer, Desired, Request, Trouble, amqp::Link};
use crate::{leader::Leadership, metrics::Metrics, triggers::Triggers};

/// Requests that are served together.
const BATCH: usize = 64;
/// How long a snapshot serves for businesses to which nothing was done since. One of a thousand businesses takes 150 ms: those that come in
/// a row, when the operator starts or the broker was rebuilt, should not each have their own.
const FRESH: Duration = Duration::from_secs(1);
/// Plans that are carried out at once; each has a few calls in flight.
const SIDE_BY_SIDE: usize = 8;
/// How long requests are answered with the last failure before the broker is asked again.
const RESPITE: Duration = Duration::from_millis(500);
/// Between two looks at what `unrouted` holds.
const MOVE_PAUSE: Duration = Duration::from_secs(2);
/// In how many sweeps every business's `unrouted` is looked at once, whatever else happened.
const ROUNDS: usize = 3;
/// A policy of others is there at once, and in force on a busy broker seconds later.
const RIVAL_LOOKS: u32 = 3;
/// Attempts to take a snapshot while the vhost is made.
const VHOST_TRIES: u32 = 2;

pub(super) struct Parts {
    pub(super) management: Arc<Management>,
    pub(super) amqp: Link,
    pub(super) sweep: Duration,
    pub(super) orphan_grace: Duration,
    pub(super) leadership: Leadership,
    pub(super) triggers: Arc<Triggers>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) drifted: Arc<Mutex<HashMap<String, Vec<String>>>>,
}

pub(super) struct Keeper {
    parts: Parts,
    known: HashMap<String, Known>,
    /// Objects of ours that nobody claims, and since when.
    orphans: HashMap<String, Instant>,
    /// Policies of others at the last look: they may win over ours without any object of ours having changed.
    rivals: Vec<Policy>,
    /// Sweeps in which all is looked at again for their sake.
    rival_looks: u32,
    down: Option<(Instant, Trouble)>,
    last: Option<Look>,
    /// Businesses whose `unrouted` is to be looked at.
    unrouted: HashSet<String>,
    moving: JoinSet<moves::Walk>,
    moving_now: HashSet<String>,
    round: usize,
}

/// A business at its last look.
struct Known {
    desired: Arc<Desired>,
    report: Arc<Report>,
    /// Steps that were left undone with good reason, as the plan names them.
    left: HashSet<String>,
    /// Nothing that anybody knows of has changed since.
    current: bool,
    /// Messages in `unrouted` that no route takes. It holds as long as nothing was changed on the broker.
    strays: Option<Strays>,
}

/// See [`Known::strays`].
#[derive(Clone, Copy)]
struct Strays {
    count: u32,
    /// How many messages need no look, since when.
    walked: Option<(u32, Instant)>,
}

/// A snapshot that may serve again.
struct Look {
    snapshot: Arc<Snapshot>,
    /// When it was asked for.
    at: Instant,
    /// Businesses that it no longer tells the truth about, by our own doing.
    touched: HashSet<String>,
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            known: HashMap::new(),
            orphans: HashMap::new(),
            rivals: Vec::new(),
            rival_looks: 0,
            down: None,
            last: None,
            unrouted: HashSet::new(),
            moving: JoinSet::new(),
            moving_now: HashSet::new(),
            round: 0,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Request>, cancel: CancellationToken) {
        let mut sweep = Instant::now() + self.parts.sweep;
        let mut look = Instant::now() + MOVE_PAUSE;
        let mut count = Instant::now() + MOVE_PAUSE;
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                request = inbox.recv() => {
                    let Some(first) = request else { break };
                    let mut batch = vec![first];
                    while batch.len() < BATCH
                        && let Ok(next) = inbox.try_recv()
                    {
                        batch.push(next);
                    }
                    self.serve(batch).await;
                }
                () = sleep_until(sweep) => {
                    if self.parts.leadership.holds() {
                        self.sweep().await;
                    }
                    sweep = Instant::now() + self.parts.sweep;
                }
                () = sleep_until(look) => {
                    if self.parts.leadership.holds() && self.down.is_none() {
                        self.look_at_unrouted().await;
                    }
                    look = Instant::now() + MOVE_PAUSE;
                    // Not kept in memory for nothing.
                    self.last.take_if(|last| last.at.elapsed() >= FRESH);
                }
                () = sleep_until(count) => {
                    self.count_depths().await;
                    count = Instant::now() + depths::PAUSE;
                }
                Some(moved) = self.moving.join_next() => {
                    if let Ok(walk) = moved {
                        self.moved(walk);
                    }
                }
            }
            let (calls, counted) = (self.parts.management.calls(), self.parts.metrics.broker_calls.get());
            self.parts.metrics.broker_calls.inc_by(calls.saturating_sub(counted));
        }
        self.moving.shutdown().await;
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        let mut work = Vec::new();
        for request in batch {
            match request {
                Request::Ensure { business, desired, edges_behind, reply } => {
                    let known = self.known.get(&business).filter(|known| known.current && known.desired == desired);
                    match known {
                        // Nobody waits for the answer any more if this fails.
                        Some(known) => drop(reply.send(Ok(Arc::clone(&known.report)))),
                        None => work.push((Job { edges_behind, ..Job::ensure(business, desired) }, reply)),
                    }
                }
                Request::Remove { business, delete_messages, reply } => {
                    work.push((Job::remove(business, delete_messages), reply));
                }
            }
        }
        if work.is_empty() {
            return;
        }
        let snapshot = match self.recent(work.iter().map(|(job, _)| job)).await {
            Ok(snapshot) => snapshot,
            Err(trouble) => {
                for (_, reply) in work {
                    let _ = reply.send(Err(trouble.clone()));
                }
                return;
            }
        };
        let connection = self.connection_for(&snapshot, work.iter().map(|(job, _)| job)).await;
        let mut working = self.carry_out(&snapshot, work, connection.as_ref());
        // Whoever is done goes on at once: with the API server while others are still with the broker.
        while let Some((done, reply)) = working.next().await {
            let _ = reply.send(self.note(done));
        }
    }

    /// Each job with what came with it, as they get done.
    fn carry_out<T>(
        &self,
        snapshot: &Arc<Snapshot>,
        jobs: Vec<(Job, T)>,
        connection: Option<&Arc<Connection>>,
    ) -> impl Stream<Item = (Done, T)> + Unpin + use<T> {
        let (management, leadership) = (Arc::clone(&self.parts.management), self.parts.leadership.clone());
        let (snapshot, connection) = (Arc::clone(snapshot), connection.cloned());
        let work = stream::iter(jobs).map(move |(job, with)| {
            let (management, leadership) = (Arc::clone(&management), leadership.clone());
            let (snapshot, connection) = (Arc::clone(&snapshot), connection.clone());
            async move {
                let plan = snapshot.plan(&job.business, &job.desired.topology, Some(&job.desired.users));
                let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
                let plan = job.permitted(plan);
                let options = ApplyOptions {
                    amqp: connection.as_deref(),
                    delete_messages: job.delete_messages,
                    delete_streams: job.delete_streams,
                    gate: Some(&|| leadership.holds()),
                };
                let result = apply_plan(&management, plan, options).await;
                (Done { job, steps, result }, with)
            }
        });
        Box::pin(work.buffer_unordered(SIDE_BY_SIDE))
    }

    fn note(&mut self, done: Done) -> Answer {
        let Done { job, steps, result } = done;
        match &mut self.last {
            Some(last) if result.is_ok() => {
                if !steps.is_empty() {
                    last.touched.insert(job.business.clone());
                }
            }
            last => *last = None,
        }
        let report = match result {
            Ok(report) => Arc::new(report),
            Err(error) => {
                if let Some(known) = self.known.get_mut(&job.business) {
                    known.current = false;
                }
                // Whether the broker is away is for the next look to say: one object that does not answer is one business's trouble.
                return Err(Trouble::from(&error));
            }
        };
        let made: HashSet<&String> = report.changes.iter().collect();
        self.parts.metrics.broker_changes.inc_by(made.len() as u64);
        let drifted = self.parts.drifted.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.business);
        if drifted.is_some() {
            self.parts.metrics.drift_repairs.inc_by(made.len() as u64);
        }
        if job.removes {
            self.known.remove(&job.business);
            self.unrouted.remove(&job.business);
            return Ok(report);
        }
        if !self.known.contains_key(&job.business) || !made.is_empty() {
            self.unrouted.insert(job.business.clone());
        }
        let left = steps.iter().filter(|step| !made.contains(step)).cloned().collect();
        let same = self.known.get(&job.business).filter(|known| known.desired == job.desired && made.is_empty());
        let strays = same.and_then(|known| known.strays);
        let known = Known { desired: job.desired, report: Arc::clone(&report), left, current: true, strays };
        self.known.insert(job.business, known);
        Ok(report)
    }

    /// A snapshot that tells the truth about the businesses of these jobs.
    async fn recent(&mut self, mut jobs: impl Iterator<Item = &Job>) -> Result<Arc<Snapshot>, Trouble> {
        match &self.last {
            Some(last) if last.at.elapsed() < FRESH && !jobs.any(|job| last.touched.contains(&job.business)) => {
                Ok(Arc::clone(&last.snapshot))
            }
            _ => self.look().await,
        }
    }

    /// A snapshot, with the vhost made where it is missing: a broker that was rebuilt from nothing has none.
    async fn look(&mut self) -> Result<Arc<Snapshot>, Trouble> {
        self.last = None;
        if let Some((since, trouble)) = &self.down
            && since.elapsed() < RESPITE
        {
            return Err(trouble.clone());
        }
        let begun = Instant::now();
        let mut tries = VHOST_TRIES;
        let result = loop {
            match self.parts.management.snapshot().await {
                Err(Error::NoVhost { .. }) if tries > 0 && self.parts.leadership.holds() => {
                    tries -= 1;
                    if let Err(error) = self.parts.management.create_vhost().await {
                        break Err(error);
                    }
                    tracing::info!(vhost = self.parts.management.vhost(), "made the vhost");
                }
                result => break result,
            }
        };
        let result = match result {
            Ok(snapshot) => self.share(&snapshot).await.map(|()| snapshot),
            Err(error) => Err(error),
        };
        match result {
            Ok(snapshot) => {
                self.parts.metrics.snapshot_seconds.observe(begun.elapsed().as_secs_f64());
                if snapshot.foreign_policies() != self.rivals {
                    self.rivals = snapshot.foreign_policies().to_vec();
                    self.rival_looks = RIVAL_LOOKS;
                    self.look_at_all_again();
                }
                if self.down.take().is_some() {
                    tracing::info!("the broker answers again");
                    // Whoever waits out a backoff need not wait any longer.
                    self.parts.triggers.all();
                }
                let snapshot = Arc::new(snapshot);
                self.last = Some(Look { snapshot: Arc::clone(&snapshot), at: begun, touched: HashSet::new() });
                Ok(snapshot)
            }
            Err(error) => {
                self.parts.metrics.broker_failures.inc();
                let trouble = Trouble::from(&error);
                self.is_down(trouble.clone());
                self.count_strays();
                Err(trouble)
            }
        }
    }

    /// Makes true what all businesses share, before anything of one is made: a queue should find its limits.
    async fn share(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let (plan, leadership) = (snapshot.plan_shared(), &self.parts.leadership);
        if plan.is_empty() || !leadership.holds() {
            return Ok(());
        }
        let options = ApplyOptions { gate: Some(&|| leadership.holds()), ..ApplyOptions::default() };
        let report = apply_plan(&self.parts.management, plan, options).await?;
        self.parts.metrics.broker_changes.inc_by(report.changes.len() as u64);
        for problem in &report.problems {
            tracing::warn!(%problem, "what all businesses share is not as it should be");
        }
        Ok(())
    }

    fn is_down(&mut self, trouble: Trouble) {
        let first = self.down.is_none();
        if first {
            tracing::warn!(reason = %trouble, "the broker can't be asked");
        }
        self.down = Some((Instant::now(), trouble));
        self.last = None;
        // Found again when it is back.
        self.parts.drifted.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.parts.amqp.drop();
        self.parts.metrics.depths(None);
        if first {
            // So that every status tells.
            self.look_at_all_again();
        }
    }

    fn look_at_all_again(&mut self) {
        for known in self.known.values_mut() {
            known.current = false;
        }
        self.parts.triggers.all();
    }

    async fn sweep(&mut self) {
        let Ok(snapshot) = self.look().await else { return };
        if self.rival_looks > 0 {
            self.rival_looks -= 1;
            self.look_at_all_again();
        }
        self.compare(&snapshot);
        self.orphans(&snapshot).await;
        self.round += 1;
        let turn = self.round % ROUNDS;
        let names = self.known.keys().enumerate().filter(|(i, _)| i % ROUNDS == turn).map(|(_, name)| name.clone());
        self.unrouted.extend(names.collect::<Vec<_>>());
    }

    /// Finds what others have changed, and has it repaired. Returns the businesses whose messages find their way.
    fn compare(&mut self, snapshot: &Snapshot) -> HashSet<String> {
        let mut differ = HashSet::new();
        let mut drifts = HashMap::new();
        let mut sound = HashSet::new();
        for (business, known) in &mut self.known {
            let plan = snapshot.plan(business, &known.desired.topology, Some(&known.desired.users));
            let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
            let news: Vec<String> = steps.iter().filter(|step| !known.left.contains(*step)).cloned().collect();
            // What a plan already tells; the rest shows only when it is carried out.
            let lasting = |problem: &&Problem| {
                matches!(
                    problem,
                    Problem::Differs { .. }
                        | Problem::MissingQueue { .. }
                        | Problem::QueueNotOpen { .. }
                        | Problem::LeadsBack { .. }
                        | Problem::UserTaken { .. }
                )
            };
            let same_problems = plan.problems.iter().filter(lasting).eq(known.report.problems.iter().filter(lasting));
            if !steps.is_empty() || !same_problems || !known.report.is_clean() {
                known.current = false;
                differ.insert(business.clone());
            }
            if news.is_empty() {
                if routes(&plan.problems) && routes(&known.report.problems) {
                    sound.insert(business.clone());
                }
            } else {
                drifts.insert(business.clone(), news);
            }
        }
        if !drifts.is_empty() {
            tracing::warn!(businesses = drifts.len(), "objects on the broker were changed by others; repairing");
            self.parts.drifted.lock().unwrap_or_else(PoisonError::into_inner).extend(drifts);
        }
        self.parts.triggers.businesses(&differ);
        sound
    }

    /// Removes what nobody claims any more, once that has been so for a while. Queues with messages and streams stay.
    async fn orphans(&mut self, snapshot: &Arc<Snapshot>) {
        let Some(claimed) = self.parts.triggers.claimed() else {
            // Nobody knows yet what is claimed.
            self.orphans.clear();
            return;
        };
        let now: HashSet<String> =
            snapshot.businesses().filter(|business| !claimed.contains(*business)).map(str::to_owned).collect();
        self.known.retain(|business, _| claimed.contains(business));
        self.orphans.retain(|business, _| now.contains(business));
        for business in now {
            self.orphans.entry(business).or_insert_with(Instant::now);
        }
        let grace = self.parts.orphan_grace;
        let ripe = self.orphans.iter().filter(|(_, since)| since.elapsed() >= grace);
        let jobs: Vec<(Job, ())> = ripe.map(|(business, _)| (Job::orphan(business.clone()), ())).collect();
        if jobs.is_empty() {
            return;
        }
        let connection = self.parts.amqp.get().await.ok();
        // Nothing is told of them from here on.
        self.last = None;
        let mut working = self.carry_out(snapshot, jobs, connection.as_ref());
        while let Some((Done { job, result, .. }, ())) = working.next().await {
            match result {
                Ok(report) if !report.changes.is_empty() => {
                    tracing::info!(business = job.business, changes = ?report.changes, "removed objects that no resource claims");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(business = job.business, %error, "objects that no resource claims stay"),
            }
        }
    }

    async fn connection_for(
        &mut self,
        snapshot: &Snapshot,
        jobs: impl Iterator<Item = &Job>,
    ) -> Option<Arc<Connection>> {
        let mut jobs = jobs;
        let counts = jobs.any(|job| {
            let plan = snapshot.plan(&job.business, &job.desired.topology, Some(&job.desired.users));
            plan.steps.iter().any(|step| matches!(step, Step::DeleteQueue(_)))
        });
        if !counts {
            return None;
        }
        match self.parts.amqp.get().await {
            Ok(connection) => Some(connection),
            Err(reason) => {
                tracing::warn!(reason, "queues that go can't be counted, so they stay for now");
                None
            }
        }
    }
}

/// Whether messages find their way. A queue that waits to be emptied, or a foreign policy, is in nobody's way.
fn routes(problems: &[Problem]) -> bool {
    use Problem::{Differs, MissingQueue, QueueNotOpen, Refused};
    let astray = |p: &Problem| {
        matches!(p, Differs { .. } | MissingQueue { .. } | QueueNotOpen { bound: false, .. } | Refused { .. })
    };
    !problems.iter().any(astray)
}

/// What is to be done for one business.
#[expect(clippy::struct_excessive_bools, reason = "each is an independent decision of the caller")]
struct Job {
    business: String,
    desired: Arc<Desired>,
    removes: bool,
    delete_messages: bool,
    delete_streams: bool,
    /// See [`super::Broker::ensure`].
    edges_behind: bool,
}

impl Job {
    /// The stream of a business that has become Transient goes with what it keeps: nobody can read it any more.
    fn ensure(business: String, desired: Arc<Desired>) -> Self {
        Self { business, desired, removes: false, delete_messages: false, delete_streams: true, edges_behind: false }
    }

    fn remove(business: String, delete_messages: bool) -> Self {
        Self {
            business,
            desired: Arc::default(),
            removes: true,
            delete_messages,
            delete_streams: true,
            edges_behind: false,
        }
    }

    fn orphan(business: String) -> Self {
        Self {
            business,
            desired: Arc::default(),
            removes: true,
            delete_messages: false,
            delete_streams: false,
            edges_behind: false,
        }
    }

    /// What of a plan may be done.
    fn permitted(&self, mut plan: Plan) -> Plan {
        if self.edges_behind {
            plan.steps.retain(|step| !self.is_of_older_edges(step));
        }
        let unusable = |p: &Problem| matches!(p, Problem::MissingQueue { .. } | Problem::QueueNotOpen { .. });
        if !self.desired.whole || !plan.problems.iter().any(unusable) {
            return plan;
        }
        let mut nothing = Plan::default();
        nothing.problems = plan.problems;
        nothing
    }
}

impl Job {
    /// Removes a binding by a route's pattern, which older edges rely on: without it their messages would make the detour over `unrouted`.
    fn is_of_older_edges(&self, step: &Step) -> bool {
        let Step::Unbind(binding) = step else { return false };
        let by_route = |intake: &Intake| binding.routing_key == intake.pattern && binding.destination == intake.queue;
        binding.source == names::receive_exchange(&self.business) && self.desired.topology.intake.iter().any(by_route)
    }
}

struct Done {
    job: Job,
    steps: Vec<String>,
    result: Result<Report, Error>,
}
