//! The actor itself: see [`super`]. It only awaits requests and results: every call of the broker is a task of its own.

use std::{
    any::Any,
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use wirepost_rabbitmq::ManagementClient;

use super::{
    BrokerFailure, Businesses, Drifts, Ensured, Event, LazyConnection, Mode, Owner, Reply, Request, Settings, depths,
    drift::BusinessStates,
    edge_users::EdgeUsers,
    job::{Job, JobResult},
    orphans::Orphans,
    replicas::{Checked, Replicas, wanted},
    room::{RoomChecked, RoomChecks},
    snapshots::{Read, Snapshots},
    unrouted::{self, FinishedMove, Unrouted},
    work::Work,
};
use crate::{DesiredUser, Error, Looks, Report, Snapshot, depths::Depths};

/// Requests that are received together.
const BATCH: usize = 64;
/// How long missing nodes prevent the creation of queues and streams.
const NODES_WAIT: Duration = Duration::from_mins(5);
/// Time for running tasks once the process shuts down.
const CLOSING: Duration = Duration::from_secs(4);

pub(super) struct Actor {
    pub(super) context: Arc<Context>,
    pub(super) sweep: Duration,
    pub(super) orphan_grace: Duration,
    pub(super) businesses: BusinessStates,
    pub(super) snapshots: Snapshots,
    pub(super) work: Work,
    pub(super) orphans: Orphans,
    pub(super) unrouted: Unrouted,
    pub(super) replicas: Replicas,
    /// Nodes that the broker should have; `None` = as many as it has.
    pub(super) expected_nodes: Option<usize>,
    /// Since when it has too few nodes for new queues.
    too_few_nodes: Option<Instant>,
    /// The next snapshot is compared with everything that was ensured.
    sweep_due: bool,
    /// A count of depths is under way.
    pub(super) counting_depths: bool,
    pub(super) room: RoomChecks,
    pub(super) edge_users: EdgeUsers,
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
    /// Nothing is written any more: the process ends.
    stopped: CancellationToken,
    /// Queues that should be deleted and were found empty.
    pub(super) looks: Looks,
    /// The vhost was ours: a marker that is missing now was deleted by somebody.
    pub(super) was_ours: AtomicBool,
}

impl Context {
    /// The broker is away: what was observed before says nothing about now.
    pub(super) fn forget_observations(&self) {
        self.drifts.lock().clear();
        self.looks.clear();
        self.amqp.discard();
        self.owner.report(Event::Depths(None));
        self.owner.report(Event::Strays(None));
    }

    /// Asked before each write.
    pub(super) fn may_write(&self) -> bool {
        !self.stopped.is_cancelled() && self.owner.may_write()
    }

    /// A panic as an error, which is counted. `doing`: what panicked.
    fn panicked(&self, doing: &str, panic: &(dyn Any + Send)) -> Error {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let cause = text.unwrap_or("without a message").to_owned();
        self.owner.report(Event::Panicked(&cause));
        Error::Panicked { doing: doing.to_owned(), cause }
    }

    /// What `work` returns. It must not leave anything inconsistent when it panics.
    pub(super) fn caught<T>(&self, doing: &str, work: impl FnOnce() -> T) -> Result<T, Error> {
        catch_unwind(AssertUnwindSafe(work)).map_err(|panic| self.panicked(doing, &*panic))
    }

    /// The result of `work`, whose panic is an error. (A combinator: an `async` block would store `work` twice.)
    pub(super) fn contained<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> impl Future<Output = Result<T, Error>> {
        let caught = AssertUnwindSafe(work).catch_unwind();
        caught.map(move |result| result.unwrap_or_else(|panic| Err(self.panicked(doing, &*panic))))
    }

    /// The result of `work`, whose panic is an error. Ends calls that are under way as soon as nothing may be written any more: another
    /// operator may write soon after that, however long the time limit of the call is.
    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let stopped = || Err(Error::Stopped { doing: "a call of the broker".to_owned() });
        tokio::select! {
            biased;
            result = self.contained("a call of the broker", work) => result,
            () = self.stopped.cancelled() => stopped(),
            () = self.owner.until_it_may_not() => stopped(),
        }
    }
}

/// What a task of the actor found.
pub(super) enum Finished {
    /// A snapshot was taken.
    Snapshot(Box<Read>),
    /// The policies that all businesses share were set.
    Shared(Result<Report, Error>),
    /// A job of a business was done, for its caller.
    Job(Box<JobResult>, Option<oneshot::Sender<Reply>>),
    /// Replicas were checked.
    Replicas(Checked),
    /// Queues with more room were looked at.
    Room(Result<RoomChecked, Error>),
    /// Unrouted messages were counted.
    Counted(unrouted::Counted),
    /// Unrouted messages of one business were moved.
    Moved(FinishedMove),
    /// Depths were counted; `None` = they can't be.
    Depths(Option<Vec<(String, Depths)>>),
    /// These users of the edges were made.
    EdgeUsers(Arc<[DesiredUser]>, Result<Report, Error>),
}

impl Actor {
    pub(super) fn new(settings: Settings, owner: Arc<dyn Owner>, drifts: Drifts) -> Self {
        let Settings { management, amqp, mode, nodes, sweep, orphan_grace } = settings;
        let stopped = CancellationToken::new();
        Self {
            context: Arc::new(Context {
                management,
                amqp: Arc::new(amqp),
                mode,
                owner,
                drifts,
                stopped,
                looks: Looks::default(),
                was_ours: AtomicBool::new(false),
            }),
            sweep,
            orphan_grace,
            businesses: BusinessStates::default(),
            snapshots: Snapshots::default(),
            work: Work::default(),
            orphans: Orphans::default(),
            unrouted: Unrouted::default(),
            replicas: Replicas::default(),
            expected_nodes: nodes,
            too_few_nodes: None,
            sweep_due: false,
            counting_depths: false,
            room: RoomChecks::default(),
            edge_users: EdgeUsers::default(),
            tasks: JoinSet::new(),
            calls: 0,
        }
    }

    /// Until `cancel`. After `closing` what runs has [`CLOSING`] to end, then nothing is written any more and every request is refused.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Request>,
        closing: CancellationToken,
        cancel: CancellationToken,
    ) {
        let mut sweep = Instant::now() + self.sweep;
        let mut check = Instant::now() + unrouted::INTERVAL;
        let mut count = Instant::now() + unrouted::INTERVAL;
        let mut end: Option<Instant> = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = closing.cancelled(), if end.is_none() => end = Some(Instant::now() + CLOSING),
                () = sleep_until(end.unwrap_or(sweep)), if end.is_some() && !self.context.stopped.is_cancelled() => {
                    self.context.stopped.cancel();
                    self.work.fail(&BrokerFailure::stopped(), false);
                }
                request = inbox.recv(), if self.work.has_room() => {
                    let Some(first) = request else { break };
                    let mut batch = vec![first];
                    while batch.len() < BATCH
                        && let Ok(next) = inbox.try_recv()
                    {
                        batch.push(next);
                    }
                    self.receive(batch);
                }
                () = sleep_until(sweep) => {
                    if self.context.may_write() {
                        self.sweep_due = true;
                        self.want_snapshot();
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
                    Ok(finished) => self.finished(finished),
                    // Nothing caught its panic (tasks are not cancelled): the actor panics too, so that its owner learns of it.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
            let calls = self.context.management.calls();
            self.context.owner.report(Event::Calls(calls - std::mem::replace(&mut self.calls, calls)));
        }
        self.context.stopped.cancel();
        self.tasks.shutdown().await;
    }

    fn finished(&mut self, finished: Finished) {
        match finished {
            Finished::Snapshot(read) => self.snapshot_read(*read),
            Finished::Shared(result) => self.shared_policies_set(result),
            Finished::Job(done, reply) => self.job_finished(*done, reply),
            Finished::Replicas(checked) => self.replicas_checked(checked),
            Finished::Room(taken) => self.room_checked(taken),
            Finished::Counted(counted) => self.unrouted_counted(counted),
            Finished::Moved(finished) => self.moved(finished),
            Finished::Depths(counted) => self.depths_counted(counted),
            Finished::EdgeUsers(users, result) => self.edge_users_made(&users, result),
        }
    }

    fn receive(&mut self, batch: Vec<Request>) {
        for request in batch {
            let (job, reply) = match request {
                Request::Ensure { business, desired, phase, reply } => {
                    if let Some(known) = self.businesses.current_report(&business, &desired, phase)
                        && !self.work.has(&business)
                    {
                        // It fails only when the caller does not wait any more.
                        let report = self.replicas.complete(&business, &known.report);
                        let _ = reply.send(Ok(Ensured { report, ..known }));
                        continue;
                    }
                    (Job::ensure(business, desired, phase), reply)
                }
                Request::Remove { business, owner, delete_messages, reply } => {
                    (Job::remove(business, owner, delete_messages), reply)
                }
                Request::EdgeUsers { users, reply } => {
                    self.want_edge_users(users, reply);
                    continue;
                }
            };
            self.work.add(job, Some(reply));
        }
        if self.context.stopped.is_cancelled() {
            self.work.fail(&BrokerFailure::stopped(), false);
        }
        self.start_jobs();
    }

    /// Begins to take a snapshot, unless one is being taken. While the broker is away, what waits is answered with the failure at once.
    pub(super) fn want_snapshot(&mut self) {
        if let Some(failure) = self.snapshots.recent_failure() {
            let failure = failure.clone();
            self.no_snapshot(&failure);
            return;
        }
        if self.snapshots.begin(self.work.running()) {
            let context = Arc::clone(&self.context);
            self.tasks.spawn(async move { Finished::Snapshot(Box::new(context.read().await)) });
        }
    }

    fn snapshot_read(&mut self, read: Read) {
        let taken = self.snapshots.arrived(read, &self.context);
        if taken.recheck {
            self.recheck_all();
        }
        let snapshot = match taken.snapshot {
            Ok(snapshot) => snapshot,
            Err(failure) => return self.no_snapshot(&failure),
        };
        // Objects of these were written while they were read.
        let unsettled = taken.unsettled;
        self.make_edge_users(&snapshot);
        self.count_nodes(snapshot.nodes().len());
        self.set_shared_policies(&snapshot);
        self.check_replicas(snapshot.nodes());
        if std::mem::take(&mut self.sweep_due) {
            if self.snapshots.policy_sweep() {
                self.recheck_all();
            }
            self.check_room(&snapshot);
            self.find_drift(&snapshot, &unsettled);
            self.remove_orphans(&snapshot, &unsettled);
            self.unrouted.begin_sweep(self.businesses.names());
        }
        self.move_intact(&snapshot, &unsettled, taken.begun);
        self.start_jobs();
    }

    /// Queues created while nodes are missing would have too few replicas, and no API adds replicas to a stream.
    fn count_nodes(&mut self, nodes: usize) {
        let enough = self.expected_nodes.is_none_or(|expected| nodes >= wanted(expected));
        if enough {
            self.too_few_nodes = None;
        } else if self.too_few_nodes.is_none() {
            tracing::warn!(
                nodes,
                expected = self.expected_nodes,
                "the broker has too few nodes; creating queues waits for them"
            );
            self.too_few_nodes = Some(Instant::now());
        }
    }

    /// Why no queue or stream is created now.
    pub(super) fn waits_for_nodes(&self) -> Option<BrokerFailure> {
        let left = NODES_WAIT.checked_sub(self.too_few_nodes?.elapsed()).filter(|left| !left.is_zero())?;
        Some(BrokerFailure::too_few_nodes(self.expected_nodes.map_or(0, wanted), left))
    }

    fn no_snapshot(&mut self, failure: &BrokerFailure) {
        self.sweep_due = false;
        self.unrouted.nothing_is_known();
        self.work.fail(failure, false);
        self.edge_users.answer(&Err(failure.clone()));
    }

    fn recheck_all(&mut self) {
        self.businesses.recheck_all();
        self.context.owner.ensure_again(Businesses::All);
    }

    /// Finds what others have changed, and has it repaired. Returns the businesses whose messages are routed as declared.
    pub(super) fn find_drift(&mut self, snapshot: &Snapshot, unsettled: &HashSet<String>) -> HashSet<String> {
        let found = self.businesses.compare(snapshot, &self.context, unsettled);
        if !found.drifts.is_empty() {
            tracing::warn!(businesses = found.drifts.len(), "objects on the broker were changed by others; repairing");
            self.context.drifts.lock().extend(found.drifts);
        }
        if !found.differ.is_empty() {
            self.context.owner.ensure_again(Businesses::Only(&found.differ));
        }
        found.intact
    }
}
