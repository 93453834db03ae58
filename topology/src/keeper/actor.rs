//! The actor itself: see [`super`].

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use wirepost_rabbitmq::{Connection, ManagementClient};

use super::{
    BrokerFailure, Businesses, Drifts, Ensured, Event, LazyConnection, Mode, Owner, Reply, Request, Settings, depths,
    drift::BusinessStates,
    job::{Job, JobResult, Kind},
    orphans::Orphans,
    snapshots::{Snapshots, Taken},
    unrouted::{self, FinishedMove, Unrouted},
};
use crate::{Snapshot, Step, depths::Depths};

/// Requests that are served together.
const BATCH: usize = 64;
/// Plans that are applied at the same time; each has a few calls in flight.
const PARALLEL_PLANS: usize = 8;

pub(super) struct Actor {
    pub(super) context: Arc<Context>,
    sweep: Duration,
    pub(super) orphan_grace: Duration,
    pub(super) businesses: BusinessStates,
    pub(super) snapshots: Snapshots,
    pub(super) orphans: Orphans,
    pub(super) unrouted: Unrouted,
    /// A count of depths is under way.
    pub(super) counting_depths: bool,
    pub(super) tasks: JoinSet<Finished>,
    /// Calls of the management API that were reported.
    calls: u64,
}

/// What the actor shares with its tasks.
pub(super) struct Context {
    pub(super) management: ManagementClient,
    pub(super) amqp: Arc<LazyConnection>,
    pub(super) mode: Mode,
    pub(super) owner: Arc<dyn Owner>,
    pub(super) drifts: Drifts,
}

impl Context {
    /// The broker is away: what was observed before says nothing about now.
    pub(super) fn forget_observations(&self) {
        self.drifts.lock().clear();
        self.amqp.discard();
        self.owner.report(Event::Depths(None));
        self.owner.report(Event::Strays(None));
    }
}

/// What a task of the actor found.
pub(super) enum Finished {
    /// Unrouted messages were counted.
    Counted(unrouted::Counted),
    /// Unrouted messages of one business were moved.
    Moved(FinishedMove),
    /// Depths were counted; `None` = they can't be.
    Depths(Option<Vec<(String, Depths)>>),
}

impl Actor {
    pub(super) fn new(settings: Settings, owner: Arc<dyn Owner>, drifts: Drifts) -> Self {
        let Settings { management, amqp, mode, sweep, orphan_grace } = settings;
        Self {
            context: Arc::new(Context { management, amqp: Arc::new(amqp), mode, owner, drifts }),
            sweep,
            orphan_grace,
            businesses: BusinessStates::default(),
            snapshots: Snapshots::default(),
            orphans: Orphans::default(),
            unrouted: Unrouted::default(),
            counting_depths: false,
            tasks: JoinSet::new(),
            calls: 0,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Request>, cancel: CancellationToken) {
        let mut sweep = Instant::now() + self.sweep;
        let mut check = Instant::now() + unrouted::INTERVAL;
        let mut count = Instant::now() + unrouted::INTERVAL;
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
                    if self.context.owner.may_write() {
                        self.sweep().await;
                    }
                    sweep = Instant::now() + self.sweep;
                }
                () = sleep_until(check) => {
                    self.check_unrouted();
                    self.snapshots.discard_old();
                    check = Instant::now() + unrouted::INTERVAL;
                }
                () = sleep_until(count) => {
                    self.count_depths();
                    count = Instant::now() + depths::INTERVAL;
                }
                Some(finished) = self.tasks.join_next() => match finished {
                    Ok(Finished::Counted(counted)) => self.unrouted_counted(counted).await,
                    Ok(Finished::Moved(finished)) => self.moved(finished),
                    Ok(Finished::Depths(counted)) => self.depths_counted(counted),
                    // They are not cancelled, so it panicked: the actor panics too, and its owner learns of it.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
            let calls = self.context.management.calls();
            self.context.owner.report(Event::Calls(calls - std::mem::replace(&mut self.calls, calls)));
        }
        self.tasks.shutdown().await;
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        let mut work: Vec<(Job, oneshot::Sender<Reply>)> = Vec::new();
        for request in batch {
            match request {
                Request::Ensure { business, desired, phase, reply } => {
                    match self.businesses.current_report(&business, &desired, phase) {
                        // It fails only when the caller does not wait any more.
                        Some(known) => drop(reply.send(Ok(known))),
                        None => work.push((Job::ensure(business, desired, phase), reply)),
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
        let jobs = work.iter().map(|(job, _)| job);
        let snapshot = match self.snapshots.cached(jobs.map(|job| job.business.as_str())) {
            Some(snapshot) => Ok(snapshot),
            None => self.take_snapshot().await,
        };
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(failure) => {
                for (_, reply) in work {
                    let _ = reply.send(Err(failure.clone()));
                }
                return;
            }
        };
        let connection = self.connection_for(&snapshot, work.iter().map(|(job, _)| job)).await;
        let mut working = self.carry_out(&snapshot, work, connection);
        // Each is answered as soon as it is done: its caller continues with the API server while others still wait for the broker.
        while let Some((done, reply)) = working.next().await {
            let _ = reply.send(self.record(done));
        }
    }

    /// Each job's result with what came with it, in the order in which they end.
    pub(super) fn carry_out<T>(
        &self,
        snapshot: &Arc<Snapshot>,
        jobs: Vec<(Job, T)>,
        connection: Option<Arc<Connection>>,
    ) -> impl Stream<Item = (JobResult, T)> + Unpin + use<T> {
        let (context, snapshot) = (Arc::clone(&self.context), Arc::clone(snapshot));
        let work = stream::iter(jobs).map(move |(job, with)| {
            let (context, snapshot, connection) = (Arc::clone(&context), Arc::clone(&snapshot), connection.clone());
            async move { (job.run(&context, &snapshot, connection.as_deref()).await, with) }
        });
        Box::pin(work.buffer_unordered(PARALLEL_PLANS))
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
            self.unrouted.check_soon(job.business);
        }
        Ok(Ensured { repaired: repaired && !report.changes.is_empty(), report, waits_for_edges })
    }

    /// A new snapshot; everything is ensured again where it shows a need for that.
    pub(super) async fn take_snapshot(&mut self) -> Result<Arc<Snapshot>, BrokerFailure> {
        let Taken { snapshot, recheck } = self.snapshots.take(&self.context).await;
        if recheck {
            self.recheck_all();
        }
        snapshot
    }

    fn recheck_all(&mut self) {
        self.businesses.recheck_all();
        self.context.owner.ensure_again(Businesses::All);
    }

    async fn sweep(&mut self) {
        let Ok(snapshot) = self.take_snapshot().await else { return };
        if self.snapshots.policy_sweep() {
            self.recheck_all();
        }
        self.find_drift(&snapshot);
        self.remove_orphans(&snapshot).await;
        self.unrouted.begin_sweep(self.businesses.names());
    }

    /// Finds what others have changed, and has it repaired. Returns the businesses whose messages are routed as declared.
    pub(super) fn find_drift(&mut self, snapshot: &Snapshot) -> HashSet<String> {
        let found = self.businesses.compare(snapshot, self.context.mode);
        if !found.drifts.is_empty() {
            tracing::warn!(businesses = found.drifts.len(), "objects on the broker were changed by others; repairing");
            self.context.drifts.lock().extend(found.drifts);
        }
        if !found.differ.is_empty() {
            self.context.owner.ensure_again(Businesses::Only(&found.differ));
        }
        found.intact
    }

    /// An AMQP connection, if one of the jobs deletes a queue.
    async fn connection_for(
        &self,
        snapshot: &Snapshot,
        mut jobs: impl Iterator<Item = &Job>,
    ) -> Option<Arc<Connection>> {
        let deletes = jobs.any(|job| {
            let plan = job.desired.plan(&job.business, snapshot, self.context.mode);
            plan.steps.iter().any(|step| matches!(step, Step::DeleteQueue(_)))
        });
        if !deletes {
            return None;
        }
        let connected = self.context.amqp.get().await;
        if let Err(error) = &connected {
            tracing::warn!(%error, "queues that should be deleted can't be counted, so they stay for now");
        }
        connected.ok()
    }
}
