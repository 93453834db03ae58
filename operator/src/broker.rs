//! The broker: a [`Keeper`] of the vhost, which all businesses share. This gives it what it has to know of this process: whether it leads,
//! which businesses are declared, whom to trigger, what to count.

use std::{
    collections::BTreeSet,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use wirepost_rabbitmq::{Address, Credentials, ManagementClient, ManagementError, ManagementSettings, TlsFiles};
use wirepost_topology::{
    BusinessOwner, DesiredUser, Report,
    keeper::{Businesses, Event, Keeper, LazyConnection, Mode, Owner, Phase, Settings as KeeperSettings},
    ownership::Installation,
};

pub use wirepost_topology::keeper::{BrokerFailure, Desired, Destroying, Ensured, FailureKind};

use crate::{
    brake::Brake,
    fresh::Fresh,
    installation,
    metrics::{BROKER_JOB, Metrics},
    triggers::Triggers,
};

/// Of one call. A call that is under way when this replica may no longer write is given up ([`Leadership::lost`]), so this is independent of
/// the lease.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// In the broker's list of connections.
const NAME: &str = "wirepost-operator";

/// Where the broker is.
// No Debug of the management address: it may contain a password.
pub struct Settings {
    /// For counting and moving messages.
    pub amqp: Address,
    /// The management API, with or without `user:password@`.
    pub management: String,
    /// Instead of those in the addresses; read at each use.
    pub credentials: Option<Credentials>,
    /// Certificates, where the addresses say TLS.
    pub tls: TlsFiles,
    /// Nodes that it should have; `None` = as many as it has.
    pub nodes: Option<usize>,
    /// Between two comparisons of everything.
    pub sweep: Duration,
    /// How long objects of ours that no resource claims are left alone.
    pub orphan_grace: Duration,
    /// The installation whose vhost an administrator lets us take over.
    pub adopt: Option<String>,
}

/// What the keeper has to know of this process.
pub struct Replica {
    /// Whether it may write.
    pub fresh: Fresh,
    /// Knows what is declared, and triggers reconciles.
    pub triggers: Arc<Triggers>,
    /// Whether many businesses may end at the same time.
    pub brake: Arc<Brake>,
    /// Which installation it belongs to.
    pub installation: installation::Id,
    /// The namespace that it is in.
    pub namespace: String,
    /// The metrics to update.
    pub metrics: Arc<Metrics>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { amqp, management: _, credentials, tls, nodes, sweep, orphan_grace, adopt } = self;
        f.debug_struct("Settings")
            .field("amqp", amqp)
            .field("credentials", credentials)
            .field("tls", tls)
            .field("nodes", nodes)
            .field("sweep", sweep)
            .field("orphan_grace", orphan_grace)
            .field("adopt", adopt)
            .finish_non_exhaustive()
    }
}

/// A handle to the keeper. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    keeper: Keeper,
    metrics: Arc<Metrics>,
    present: Present,
}

/// Businesses with any object in the last sweep; `None` = not known.
type Present = Arc<Mutex<Option<BTreeSet<String>>>>;

impl Broker {
    /// The handle, and the keeper: it runs until the token is cancelled.
    ///
    /// # Errors
    /// An address can't be used.
    pub fn new(
        settings: Settings,
        replica: Replica,
        cancel: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send), ManagementError> {
        let Settings { amqp, management, credentials, tls, nodes, sweep, orphan_grace, adopt } = settings;
        let management = ManagementClient::new(ManagementSettings {
            url: management,
            vhost: amqp.vhost().to_owned(),
            credentials: credentials.clone(),
            tls: tls.clone(),
            timeout: Some(CALL_TIMEOUT),
        })?;
        let amqp = LazyConnection::new(amqp, credentials, tls, NAME);
        let settings = KeeperSettings { management, amqp, mode: Mode::Cluster, nodes, sweep, orphan_grace };
        let metrics = Arc::clone(&replica.metrics);
        let present = Present::default();
        let owner = Arc::new(KeeperOwner { replica, adopt, present: Arc::clone(&present) });
        let (keeper, run) = Keeper::new(settings, owner, cancel);
        Ok((Self { keeper, metrics, present }, run))
    }

    /// See [`Keeper::ensure`].
    ///
    /// # Errors
    /// See there.
    pub async fn ensure(&self, business: &str, desired: Arc<Desired>, phase: Phase) -> Result<Ensured, BrokerFailure> {
        let _waiting = self.metrics.waiting_for_broker();
        self.keeper.ensure(business, desired, phase).await
    }

    /// See [`Keeper::remove`].
    ///
    /// # Errors
    /// See there.
    pub async fn remove(
        &self,
        business: &str,
        owner: BusinessOwner,
        delete_messages: bool,
    ) -> Result<Arc<Report>, BrokerFailure> {
        let _waiting = self.metrics.waiting_for_broker();
        self.keeper.remove(business, Some(owner), delete_messages).await
    }

    /// See [`Keeper::keep_edge_users`].
    ///
    /// # Errors
    /// See there.
    pub async fn keep_edge_users(&self, users: Vec<DesiredUser>) -> Result<(), BrokerFailure> {
        self.keeper.keep_edge_users(users).await
    }

    /// See [`Keeper::close`].
    pub fn close(&self) {
        self.keeper.close();
    }

    /// Whether a business had any object on the broker in the last sweep; `None` = not known.
    pub fn is_present(&self, business: &str) -> Option<bool> {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        present.as_ref().map(|present| present.contains(business))
    }

    /// See [`Keeper::drift`].
    pub fn drift(&self, business: &str) -> Option<Vec<String>> {
        self.keeper.drift(business)
    }
}

/// This process, as the keeper knows it.
struct KeeperOwner {
    replica: Replica,
    adopt: Option<String>,
    present: Present,
}

impl KeeperOwner {
    fn set_present(&self, present: Option<BTreeSet<String>>) {
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = present;
    }
}

impl Owner for KeeperOwner {
    fn may_write(&self) -> bool {
        self.replica.fresh.may_write()
    }

    /// Not before everything is listed: only then is it known what this installation created.
    fn installation(&self) -> Option<Installation> {
        self.replica.triggers.claimed()?;
        let id = self.replica.installation.borrow().clone()?;
        Some(Installation { id, place: self.replica.namespace.clone(), adopt: self.adopt.clone() })
    }

    fn made(&self, live: &[&str], left: &[&str]) -> bool {
        self.replica.triggers.made(live, left)
    }

    fn may_end(&self, ending: &BTreeSet<String>, others: &BTreeSet<String>) -> bool {
        self.replica.brake.may_orphans_end(ending, others)
    }

    fn until_it_may_not(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.replica.fresh.lost())
    }

    fn ensure_again(&self, businesses: Businesses<'_>) {
        match businesses {
            Businesses::All => self.replica.triggers.trigger_all(),
            Businesses::Only(names) => self.replica.triggers.trigger_businesses(names),
        }
    }

    fn claimed(&self) -> Option<BTreeSet<String>> {
        self.replica.triggers.claimed()
    }

    fn report(&self, event: Event<'_>) {
        let metrics = &self.replica.metrics;
        match event {
            Event::Snapshot(duration) => metrics.snapshot_seconds.observe(duration.as_secs_f64()),
            Event::Present(present) => self.set_present(Some(present)),
            Event::SnapshotFailed => {
                self.set_present(None);
                metrics.broker_failures.inc();
            }
            Event::VhostOwned(owned) => {
                metrics.vhost_owned.set(f64::from(u8::from(owned)));
            }
            Event::Calls(calls) => {
                metrics.broker_calls.inc_by(calls);
            }
            Event::Changed { count, repair } => {
                metrics.broker_changes.inc_by(count as u64);
                if repair {
                    metrics.drift_repairs.inc_by(count as u64);
                }
            }
            Event::Unrouted { business: _, moved } => {
                metrics.moved_back.inc_by(moved.moved.into());
                metrics.set_aside.inc_by(moved.set_aside.into());
            }
            #[expect(clippy::cast_precision_loss, reason = "a number of messages, far below 2^53")]
            Event::Strays(count) => {
                metrics.strays.set(count.map_or(f64::NAN, |count| count as f64));
            }
            Event::Amqp(answers) => {
                metrics.amqp_up.set(if answers { 1.0 } else { 0.0 });
            }
            Event::Depths(counted) => metrics.depths(counted),
            Event::Panicked(cause) => metrics.tasks.panicked(BROKER_JOB, cause),
        }
    }
}
