//! The broker, as all businesses share it: one actor that asks the management API.
//!
//! **Flow.** Requests that wait are served together: one snapshot of the vhost for all of them (and for those of the next second), a plan for each from its part of it, the
//! plans carried out side by side. Every [`Settings::sweep`] a snapshot is compared with what every business should have; those that
//! differ are triggered, and repaired by their own reconcile. Messages in `unrouted` are moved back once a business's bindings are right.
//! **Bounds.** As many requests wait as reconciles run at once. While the broker is away requests are answered at once with the reason.
//! **Guarantees.** Nothing is written by a replica that does not lead: asked before each call.

mod amqp;
mod keeper;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use wirepost_core::topology::Topology;
use wirepost_topology::{Credentials, DesiredUser, Management, Report};

pub use amqp::{Address, BadAddress};

use crate::{leader::Leadership, metrics::Metrics, triggers::Triggers};

/// Requests that may wait; reconciles that run at once are fewer.
const CAPACITY: usize = 256;
/// Of one call: it must have ended before another replica may lead.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// Where the broker is.
// No Debug of the management address: it may hold a password.
pub struct Settings {
    /// For counting and moving messages.
    pub amqp: Address,
    /// The management API, with or without `user:password@`.
    pub management: String,
    /// In the place of those in the addresses; read at each use.
    pub credentials: Option<Credentials>,
    /// PEM file of the only authority that is trusted.
    pub ca_file: Option<PathBuf>,
    /// Between two looks at everything.
    pub sweep: Duration,
    /// How long objects of ours that no resource claims are left alone.
    pub orphan_grace: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { amqp, management: _, credentials, ca_file, sweep, orphan_grace } = self;
        f.debug_struct("Settings")
            .field("amqp", amqp)
            .field("credentials", credentials)
            .field("ca_file", ca_file)
            .field("sweep", sweep)
            .field("orphan_grace", orphan_grace)
            .finish_non_exhaustive()
    }
}

/// What a business should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Its objects.
    pub topology: Topology,
    /// Users of its services.
    pub users: Vec<DesiredUser>,
    /// All or nothing: while a queue of the team's own is missing, nothing is done, so that whatever was there before goes on.
    pub whole: bool,
}

/// The broker could not be asked, or refused altogether.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Trouble {
    text: String,
    /// Whether a repeat may help without anybody's doing.
    pub retryable: bool,
}

type Answer = Result<Arc<Report>, Trouble>;

enum Request {
    Ensure { business: String, desired: Arc<Desired>, edges_behind: bool, reply: oneshot::Sender<Answer> },
    Remove { business: String, delete_messages: bool, reply: oneshot::Sender<Answer> },
}

/// A handle to the actor.
#[derive(Clone, Debug)]
pub struct Broker {
    requests: mpsc::Sender<Request>,
    drifted: Arc<Mutex<HashMap<String, Vec<String>>>>,
    metrics: Arc<Metrics>,
}

impl Broker {
    /// The handle, and what runs the actor until the token is cancelled.
    ///
    /// # Errors
    /// An address can't be used.
    pub fn start(
        settings: Settings,
        leadership: Leadership,
        triggers: Arc<Triggers>,
        metrics: Arc<Metrics>,
        cancel: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send), wirepost_topology::Error> {
        let management = Management::new(wirepost_topology::Settings {
            url: settings.management,
            vhost: settings.amqp.vhost().to_owned(),
            credentials: settings.credentials.clone(),
            ca_file: settings.ca_file.clone(),
            timeout: Some(CALL_TIMEOUT),
        })?;
        let (requests, inbox) = mpsc::channel(CAPACITY);
        let drifted = Arc::<Mutex<HashMap<_, _>>>::default();
        let keeper = keeper::Keeper::new(keeper::Parts {
            management: Arc::new(management),
            amqp: amqp::Link::new(settings.amqp, settings.credentials, settings.ca_file),
            sweep: settings.sweep,
            orphan_grace: settings.orphan_grace,
            leadership,
            triggers,
            metrics: Arc::clone(&metrics),
            drifted: Arc::clone(&drifted),
        });
        Ok((Self { requests, drifted, metrics }, keeper.run(inbox, cancel)))
    }

    /// Makes the broker have what a business should have; also keeps it in mind for the sweeps. Cheap when nothing has changed since the
    /// last look. `edges_behind`: an edge of an older version may still publish what is routed by the patterns of routes, so bindings by these
    /// stay for now.
    ///
    /// # Errors
    /// The broker is away or refuses; what was done until then stays.
    pub async fn ensure(&self, business: &str, desired: Arc<Desired>, edges_behind: bool) -> Answer {
        self.ask(|reply| Request::Ensure { business: business.to_owned(), desired, edges_behind, reply }).await
    }

    /// Makes nothing of a business be left. Queues with messages stay, and the report names them, unless `delete_messages`; with them stays
    /// a user who can empty them.
    ///
    /// # Errors
    /// The broker is away or refuses; what was done until then stays.
    pub async fn remove(&self, business: &str, delete_messages: bool) -> Answer {
        self.ask(|reply| Request::Remove { business: business.to_owned(), delete_messages, reply }).await
    }

    /// What the last sweep found changed by others, until it is repaired.
    pub fn drift(&self, business: &str) -> Option<Vec<String>> {
        self.drifted.lock().unwrap_or_else(PoisonError::into_inner).get(business).cloned()
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<Answer>) -> Request) -> Answer {
        let gone = || Trouble { text: "the operator is ending".to_owned(), retryable: true };
        let (reply, answer) = oneshot::channel();
        self.metrics.broker_queue.inc();
        let sent = self.requests.send(request(reply)).await;
        let answer = if sent.is_ok() { answer.await.map_err(|_| gone()) } else { Err(gone()) };
        self.metrics.broker_queue.dec();
        answer?
    }
}

impl From<&wirepost_topology::Error> for Trouble {
    fn from(error: &wirepost_topology::Error) -> Self {
        Self { text: error.to_string(), retryable: error.is_retryable() }
    }
}
