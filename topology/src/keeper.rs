//! Keeps a vhost as many businesses declare it. The operator runs one, and so does `wirepost dev --amqp`.
//!
//! **Flow.** [`Keeper::ensure`] and [`Keeper::remove`] are requests to one actor. Requests that wait are served together: one snapshot of
//! the vhost for all of them (and for those of the next second), a plan for each from its part of it, the plans applied side by side.
//! Every [`Settings::sweep`] a snapshot is compared with what was ensured; the [`Owner`] hears which businesses differ, and ensures them
//! again. Messages in `unrouted` are moved back once a business's bindings are right.
//!
//! **Bounds.** At most 256 requests wait. While the broker is away each is answered immediately with the failure. The actor makes no call
//! itself: snapshots, plans, counts and moves are tasks, so that a slow one (setting a policy takes up to 30 s) delays only its own
//! business, and others that set policies. A panic of one fails only that task. Two plans of one business never run at the same
//! time.
//!
//! **Guarantees.** Nothing is written unless [`Owner::may_write`], which is asked before each call; a call that is under way ends when that
//! ends ([`Owner::until_it_may_not`]). Nor is anything written to a vhost that may be another installation's ([`crate::ownership`]). A queue
//! is deleted only after two looks that found it empty ([`crate::depth`]).

mod actor;
mod connection;
mod depths;
mod drift;
mod edge_users;
mod job;
mod orphans;
mod phase;
mod replicas;
mod room;
mod snapshots;
mod unrouted;
mod work;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use wirepost_core::topology::Topology;
use wirepost_rabbitmq::ManagementClient;

use crate::{
    BusinessOwner, DesiredUser, Error, Problem, Report, Step, depths::Depths, ownership::Installation, unrouted::Moved,
};

use edge_users::EdgeUsersReply;

pub use connection::LazyConnection;
pub use phase::Phase;

/// Requests that may wait.
const CAPACITY: usize = 256;

/// Which vhost is kept, and how.
pub struct Settings {
    /// Its management API.
    pub management: ManagementClient,
    /// For counting and moving messages.
    pub amqp: LazyConnection,
    /// How much of it is kept.
    pub mode: Mode,
    /// Nodes that the broker should have; `None` = as many as it has. See [`Mode::Cluster`].
    pub nodes: Option<usize>,
    /// Between two comparisons of everything.
    pub sweep: Duration,
    /// How long objects of ours that are unclaimed are left alone.
    pub orphan_grace: Duration,
}

/// How much of a vhost is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything: the vhost itself, users of services, operator policies are seen. The user of the management API needs the tag
    /// `administrator`.
    Cluster,
    /// The objects of a vhost that exists. A stream stays, whatever is declared.
    Development,
}

/// What a business should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Its objects.
    pub topology: Topology,
    /// Users of its services. They are left alone with [`Mode::Development`].
    pub users: Vec<DesiredUser>,
    /// Queues of the team's own that must exist: while one of them is missing or not open, nothing is changed. Each is one of
    /// [`Topology::existing_queues`].
    pub required: Vec<String>,
    /// Queues, and the stream, that edges use though they are not part of the topology: of routes that wait for something. They stay as they
    /// are in [`Phase::Shrink`], too.
    pub in_use: BTreeSet<String>,
    /// What becomes of a change that destroys messages at once.
    pub destroying: Destroying,
    /// What is destroyed whatever [`Self::destroying`] says, since a person has allowed exactly this: a
    /// [`digest`](wirepost_core::destruction::digest).
    pub allowed: Option<String>,
    /// What was allowed before and is done: the same once more needs another word.
    pub used: Option<String>,
    /// Whose it is. `None`: nobody asks, and the broker keeps no record of it.
    pub owner: Option<BusinessOwner>,
}

/// What becomes of a change that destroys messages at once: a stream that is not part of the topology, a smaller retention of one that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destroying {
    /// It is done: a person has allowed it.
    Allowed,
    /// It is left out and reported, and everything else is done.
    #[default]
    Held,
    /// Nothing at all is done: something else runs, and goes on.
    Refused,
}

/// What a keeper works for: it decides whether anything may be written, and hears what was found.
pub trait Owner: Send + Sync + 'static {
    /// Whether anything may be written now. Asked before each write.
    fn may_write(&self) -> bool;

    /// Returns once that ends for good. Writes that are under way are then given up.
    fn until_it_may_not(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    /// The vhost differs from what was ensured of these businesses, or may differ: ensure them again.
    fn ensure_again(&self, businesses: Businesses<'_>);

    /// Business types that are declared. `None` = not known, and then nothing counts as an orphan.
    fn claimed(&self) -> Option<BTreeSet<String>>;

    /// Which installation this is; `None` = not known yet, and then nothing is done. Not asked with [`Mode::Development`], which works in
    /// every vhost that no installation has marked.
    fn installation(&self) -> Option<Installation> {
        None
    }

    /// Whether the owner's own records show that it created what is in the vhost, which has no marker. `live`: businesses that receive;
    /// `left`: all with objects.
    fn made(&self, _live: &[&str], _left: &[&str]) -> bool {
        false
    }

    /// Whether these businesses, which are no longer declared, may end at the same time, while all others in the vhost go on. `false`:
    /// nothing of them is removed, and the next sweep asks again.
    fn may_end(&self, _ending: &BTreeSet<String>, _others: &BTreeSet<String>) -> bool {
        true
    }

    /// Something that metrics count, or that a person may want to know.
    fn report(&self, event: Event<'_>);
}

/// Some or all businesses.
#[derive(Clone, Copy, Debug)]
pub enum Businesses<'a> {
    /// Every one that the owner knows.
    All,
    /// These; never none.
    Only(&'a HashSet<String>),
}

/// See [`Owner::report`].
#[derive(Debug)]
pub enum Event<'a> {
    /// A snapshot was taken, in this time.
    Snapshot(Duration),
    /// No snapshot could be taken.
    SnapshotFailed,
    /// Whether the vhost is this installation's.
    VhostOwned(bool),
    /// Businesses with any object, as of a sweep.
    Present(BTreeSet<String>),
    /// Calls of the management API since the last such event.
    Calls(u64),
    /// So many objects were changed. `repair`: it put back what others had changed.
    Changed {
        /// Objects.
        count: usize,
        /// Whether it was a repair.
        repair: bool,
    },
    /// The unrouted messages of a business were gone through.
    Unrouted {
        /// The business type.
        business: &'a str,
        /// What became of the messages.
        moved: &'a Moved,
    },
    /// Unrouted messages that no route takes, of all businesses; `None` = not known.
    Strays(Option<u64>),
    /// Whether the broker has just answered by AMQP.
    Amqp(bool),
    /// A task panicked: a bug, with this cause. Only what it did has failed.
    Panicked(&'a str),
    /// Messages that need a person, of each business; `None` = not known.
    Depths(Option<Vec<(String, Depths)>>),
}

/// The broker can't be reached, or it refuses everything.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct BrokerFailure {
    text: String,
    /// What an administrator has to do, if anything.
    pub kind: FailureKind,
    /// Not a failure of the broker: this process may no longer write, since it ends or another one leads.
    pub stopped: bool,
}

impl BrokerFailure {
    fn too_few_nodes(wanted: usize, left: Duration) -> Self {
        let minutes = left.as_secs().div_ceil(60);
        let text = format!(
            "the broker has fewer than {wanted} nodes, and what is created now would have too few copies: waiting for the others, {minutes} min at the most"
        );
        Self { text, kind: FailureKind::Unavailable, stopped: false }
    }

    /// Why the policies that all businesses share are not all set; `None` = they are.
    fn shared_policies(report: &Report) -> Option<Self> {
        // What edges tell each other by is for no queue to wait for.
        report.left.iter().find(|step| matches!(step, Step::PutPolicy(_)))?;
        let passes = report.problems.iter().any(Problem::may_pass);
        let problems: Vec<String> = report.problems.iter().map(Problem::to_string).collect();
        let text = format!(
            "no queue is created, since policies that it needs are not set ({}); it is tried again",
            problems.join("; ")
        );
        let kind = if passes { FailureKind::Unavailable } else { FailureKind::Refused };
        Some(Self { text, kind, stopped: false })
    }

    /// Why the edges' users are not as they should be; `None` = they are.
    fn edge_users(report: &Report) -> Option<Self> {
        report.problems.first()?;
        let kind =
            if report.problems.iter().any(Problem::may_pass) { FailureKind::Unavailable } else { FailureKind::Refused };
        let problems: Vec<String> = report.problems.iter().map(Problem::to_string).collect();
        Some(Self { text: problems.join("; "), kind, stopped: false })
    }

    fn stopped() -> Self {
        Self { text: "this process is ending".to_owned(), kind: FailureKind::Unavailable, stopped: true }
    }
}

/// What a [`BrokerFailure`] needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// A retry may help.
    Unavailable,
    /// An administrator must act first.
    Refused,
    /// The vhost belongs to another installation, or may: an administrator decides.
    NotOurs,
}

impl From<&Error> for BrokerFailure {
    fn from(error: &Error) -> Self {
        let stopped = matches!(error, Error::Stopped { .. });
        let kind = match error {
            Error::NotOurs(_) => FailureKind::NotOurs,
            error if error.is_retryable() => FailureKind::Unavailable,
            _ => FailureKind::Refused,
        };
        Self { text: error.to_string(), kind, stopped }
    }
}

/// What [`Keeper::ensure`] came to.
#[derive(Clone, Debug)]
pub struct Ensured {
    /// What was done and what is not as desired: the former report again where nothing had to be done.
    pub report: Arc<Report>,
    /// Whether this request put back what others had changed.
    pub repaired: bool,
    /// Whether something waits for [`Phase::Shrink`].
    pub waits_for_edges: bool,
}

type Reply = Result<Ensured, BrokerFailure>;

enum Request {
    Ensure { business: String, desired: Arc<Desired>, phase: Phase, reply: oneshot::Sender<Reply> },
    Remove { business: String, owner: Option<BusinessOwner>, delete_messages: bool, reply: oneshot::Sender<Reply> },
    EdgeUsers { users: Vec<DesiredUser>, reply: oneshot::Sender<EdgeUsersReply> },
}

/// A handle to the actor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper {
    requests: mpsc::Sender<Request>,
    drifts: Drifts,
    closing: CancellationToken,
}

/// What the last sweep found changed by others, by business, until it is repaired.
#[derive(Clone, Debug, Default)]
struct Drifts(Arc<Mutex<HashMap<String, Vec<String>>>>);

impl Drifts {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// The handle, and the actor: it runs until the token is cancelled or no handle is left.
    pub fn new(
        settings: Settings,
        owner: Arc<dyn Owner>,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (requests, inbox) = mpsc::channel(CAPACITY);
        let drifts = Drifts::default();
        let closing = CancellationToken::new();
        let actor = actor::Actor::new(settings, owner, drifts.clone());
        (Self { requests, drifts, closing: closing.clone() }, actor.run(inbox, closing, cancel))
    }

    /// The process is going to end: what is under way has a few seconds, then it is given up and every request is refused, so that whoever
    /// waits for one can end too.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Makes the vhost have what a business should have, and includes it in the sweeps. Cheap when nothing has changed since the last time.
    /// `phase`: how much of it may be done, see there.
    ///
    /// # Errors
    /// The broker is away or refuses; what was done until then stays.
    pub async fn ensure(&self, business: &str, desired: Arc<Desired>, phase: Phase) -> Result<Ensured, BrokerFailure> {
        self.request(|reply| Request::Ensure { business: business.to_owned(), desired, phase, reply }).await
    }

    /// Removes everything of a business, unless it may be another owner's ([`Problem::Reserved`]). Queues with messages and a stream that may have some stay, and the report names them, unless
    /// `delete_messages`; with queues stays a user who can empty them.
    ///
    /// # Errors
    /// The broker is away or refuses; what was done until then stays.
    pub async fn remove(
        &self,
        business: &str,
        owner: Option<BusinessOwner>,
        delete_messages: bool,
    ) -> Result<Arc<Report>, BrokerFailure> {
        let request = |reply| Request::Remove { business: business.to_owned(), owner, delete_messages, reply };
        self.request(request).await.map(|done| done.report)
    }

    /// Makes these the users of the edges, and keeps them so from now on: others of this vhost's edges are deleted. Returns once they exist with
    /// all their rights; cheap when nothing has changed since the last time.
    ///
    /// # Errors
    /// The broker is away or refuses; it is tried again with each sweep.
    pub async fn keep_edge_users(&self, users: Vec<DesiredUser>) -> Result<(), BrokerFailure> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::EdgeUsers { users, reply }).await.map_err(|_| BrokerFailure::stopped())?;
        answer.await.map_err(|_| BrokerFailure::stopped())?
    }

    /// What the last sweep found changed by others, until it is repaired.
    pub fn drift(&self, business: &str) -> Option<Vec<String>> {
        self.drifts.lock().get(business).cloned()
    }

    async fn request(&self, request: impl FnOnce(oneshot::Sender<Reply>) -> Request) -> Reply {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| BrokerFailure::stopped())?;
        answer.await.map_err(|_| BrokerFailure::stopped())?
    }
}
