//! Snapshots of the vhost: taken when they are needed, used again for a second; and whether the broker answers at all.
//!
//! Jobs run while a snapshot is read. It shows their businesses neither before nor after the job, so it is not used for them.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;
use wirepost_rabbitmq::ManagementError;

use super::{BrokerFailure, Event, Mode, actor::Context};
use crate::{
    Error, Snapshot,
    actual::{Actual, Policy},
    ownership::{Claim, Marker, NotOurs, claim, mark},
};

/// How long a snapshot serves for businesses to which nothing was done since. One of a thousand businesses takes 150 ms: those that come in
/// a row, when the operator starts or the broker was rebuilt, should not each have their own.
const MAX_AGE: Duration = Duration::from_secs(1);
/// The same for one that took longer than that to read.
const MIN_USE: Duration = Duration::from_millis(200);
/// How long requests are answered with the last failure before the broker is tried again.
const DOWN_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Sweeps in which everything is checked after a foreign policy changed: it exists immediately, and is in force on a busy broker seconds
/// later.
const FOREIGN_POLICY_SWEEPS: u32 = 3;
/// Attempts to take a snapshot while the vhost is created.
const VHOST_ATTEMPTS: u32 = 2;

/// See the module.
#[derive(Default)]
pub(super) struct Snapshots {
    cached: Option<CachedSnapshot>,
    /// One is being read.
    reading: Option<Reading>,
    down: Option<(Instant, BrokerFailure)>,
    /// As last seen: one may win over ours without any object of ours having changed.
    foreign_policies: Vec<Policy>,
    policy_sweeps: u32,
}

/// What happened since a snapshot was begun.
#[derive(Default)]
struct Reading {
    /// Businesses of which a job ran.
    unsettled: HashSet<String>,
    /// Those that a job has changed that has ended.
    changed: HashSet<String>,
    /// Those of them that it has removed, or may have.
    removed: HashSet<String>,
}

struct CachedSnapshot {
    snapshot: Arc<Snapshot>,
    usable_until: Instant,
    since: Reading,
}

/// The result of [`Context::read`].
pub(super) struct Read {
    begun: Instant,
    result: Result<Snapshot, Error>,
}

/// See [`Snapshots::arrived`].
pub(super) struct Taken {
    pub(super) snapshot: Result<Arc<Snapshot>, BrokerFailure>,
    /// When it was begun.
    pub(super) begun: Instant,
    /// Businesses for which it is not reliable: a job of theirs ran meanwhile.
    pub(super) unsettled: HashSet<String>,
    /// Whether every business has to be ensured again: the broker was lost or is back, or foreign policies changed.
    pub(super) recheck: bool,
}

impl Snapshots {
    /// The last snapshot, if it is recent, no job of this business has run since, and none has changed a business that it leads messages to.
    pub(super) fn usable<'b>(
        &self,
        business: &str,
        mut leads_to: impl Iterator<Item = &'b str>,
    ) -> Option<Arc<Snapshot>> {
        let CachedSnapshot { snapshot, usable_until, since } = self.cached.as_ref()?;
        let usable = Instant::now() < *usable_until
            && !since.unsettled.contains(business)
            // Not `unsettled`: a slow job of another business holds up nobody. Nor does a change of one that was there already.
            && !leads_to.any(|other| {
                since.removed.contains(other) || (since.changed.contains(other) && !snapshot.takes_pushes(other))
            });
        usable.then(|| Arc::clone(snapshot))
    }

    /// Whether a snapshot has to be read now: `false` while one is. `running`: businesses of which a job runs.
    pub(super) fn begin<'a>(&mut self, running: impl Iterator<Item = &'a String>) -> bool {
        let begins = self.reading.is_none();
        if begins {
            self.reading = Some(Reading { unsettled: running.cloned().collect(), ..Reading::default() });
        }
        begins
    }

    /// A snapshot was read, or could not be.
    pub(super) fn arrived(&mut self, read: Read, context: &Context) -> Taken {
        let Read { begun, result } = read;
        let since = self.reading.take().unwrap_or_default();
        let unsettled = since.unsettled.clone();
        match result {
            Ok(snapshot) => {
                context.owner.report(Event::Snapshot(begun.elapsed()));
                let mut recheck = self.down.take().is_some();
                if recheck {
                    tracing::info!("the broker answers again");
                }
                if snapshot.foreign_policies() != self.foreign_policies {
                    self.foreign_policies = snapshot.foreign_policies().to_vec();
                    self.policy_sweeps = FOREIGN_POLICY_SWEEPS;
                    recheck = true;
                }
                let snapshot = Arc::new(snapshot);
                let usable_until = (begun + MAX_AGE).max(Instant::now() + MIN_USE);
                self.cached = Some(CachedSnapshot { snapshot: Arc::clone(&snapshot), usable_until, since });
                Taken { snapshot: Ok(snapshot), begun, unsettled, recheck }
            }
            Err(error) => {
                context.owner.report(Event::SnapshotFailed);
                self.cached = None;
                let failure = BrokerFailure::from(&error);
                let recheck = self.down.is_none();
                if recheck {
                    tracing::warn!(%error, "the broker can't be asked");
                }
                self.down = Some((Instant::now(), failure.clone()));
                context.forget_observations();
                Taken { snapshot: Err(failure), begun, unsettled, recheck }
            }
        }
    }

    /// Why the last attempt failed, if it is not yet time for another.
    pub(super) fn recent_failure(&self) -> Option<&BrokerFailure> {
        let (_, failure) = self.down.as_ref().filter(|(since, _)| since.elapsed() < DOWN_RETRY_DELAY)?;
        Some(failure)
    }

    /// Whether the last attempt failed.
    pub(super) fn is_down(&self) -> bool {
        self.down.is_some()
    }

    /// A job of this business begins.
    pub(super) fn started(&mut self, business: &str) {
        if let Some(reading) = &mut self.reading {
            reading.unsettled.insert(business.to_owned());
        }
    }

    /// Something of this business was changed, or may have been, by a job that has ended.
    pub(super) fn changed(&mut self, business: &str, removed: bool) {
        let cached = self.cached.as_mut().map(|cached| &mut cached.since);
        for since in cached.into_iter().chain(&mut self.reading) {
            since.unsettled.insert(business.to_owned());
            since.changed.insert(business.to_owned());
            if removed {
                since.removed.insert(business.to_owned());
            }
        }
    }

    /// The last snapshot describes nothing any more.
    pub(super) fn discard(&mut self) {
        self.cached = None;
    }

    /// Frees the memory of a snapshot that is too old to be used.
    pub(super) fn discard_old(&mut self) {
        self.cached.take_if(|cached| Instant::now() >= cached.usable_until);
    }

    /// Whether everything has to be checked in this sweep for the sake of foreign policies.
    pub(super) fn policy_sweep(&mut self) -> bool {
        let due = self.policy_sweeps > 0;
        self.policy_sweeps = self.policy_sweeps.saturating_sub(1);
        due
    }
}

impl Context {
    /// Creates the vhost where it is missing, and marks it.
    pub(super) async fn read(&self) -> Read {
        let begun = Instant::now();
        let result = self.unless_stopped(self.read_ours()).await;
        Read { begun, result }
    }

    async fn read_ours(&self) -> Result<Snapshot, Error> {
        let mut attempts = VHOST_ATTEMPTS;
        let snapshot = loop {
            match self.read_once().await {
                Err(ManagementError::NoVhost { .. })
                    if attempts > 0 && self.mode == Mode::Cluster && self.may_write() =>
                {
                    attempts -= 1;
                    self.management.create_vhost().await?;
                    tracing::info!(vhost = self.management.vhost(), "created the vhost");
                }
                result => break result?,
            }
        };
        self.check_ownership(&snapshot).await?;
        Ok(snapshot)
    }

    async fn check_ownership(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let checked = self.own(snapshot).await;
        match &checked {
            Ok(()) => self.owner.report(Event::VhostOwned(true)),
            Err(Error::NotOurs(_)) => self.owner.report(Event::VhostOwned(false)),
            Err(_) => {}
        }
        checked
    }

    /// Marks the vhost as this installation's if nothing prevents it.
    async fn own(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let vhost = self.management.vhost();
        if self.mode == Mode::Development {
            let Some(Marker { id, place }) = snapshot.marker().cloned() else { return Ok(()) };
            return Err(NotOurs::Another { vhost: vhost.to_owned(), id, place }.into());
        }
        let installation = self.owner.installation().ok_or(Error::UnknownInstallation)?;
        let is_known = || {
            let (live, left): (Vec<_>, Vec<_>) = (snapshot.live().collect(), snapshot.with_objects().collect());
            self.was_ours.load(Ordering::Relaxed) || self.owner.made(&live, &left)
        };
        match claim(vhost, snapshot.marker(), snapshot.with_objects(), &installation, is_known) {
            Claim::Ours => {}
            Claim::Refused(refused) => return Err(refused.into()),
            Claim::Mark { instead } => {
                let gate = || self.may_write();
                let former = snapshot.marker().map(|marker| marker.id.as_str());
                mark(&self.management, &installation, former.filter(|_| instead), &gate).await?;
                tracing::info!(target: "wirepost_topology::audit", action = "take_vhost", outcome = "done", vhost, installation = installation.id, former, "the vhost is this installation's now");
            }
        }
        self.was_ours.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn read_once(&self) -> Result<Snapshot, ManagementError> {
        match self.mode {
            Mode::Cluster => Snapshot::read(&self.management).await,
            Mode::Development => {
                let actual = Actual::read(&self.management).await?;
                Ok(Snapshot::new(self.management.vhost(), actual, Vec::new(), Vec::new(), (Vec::new(), Vec::new())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wirepost_core::names;

    use super::*;
    use crate::actual::Exchange;

    fn cached(since: Reading) -> CachedSnapshot {
        let snapshot = Snapshot::new("v", Actual::default(), Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
        CachedSnapshot { snapshot: Arc::new(snapshot), usable_until: Instant::now() + MAX_AGE, since }
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_from_before_another_business_was_made_does_not_serve_for_what_leads_there() {
        let mut snapshots = Snapshots { cached: Some(cached(Reading::default())), ..Snapshots::default() };
        let usable = |snapshots: &Snapshots, business: &str, leads_to: &[&str]| {
            snapshots.usable(business, leads_to.iter().copied()).is_some()
        };
        assert!(usable(&snapshots, "pay", &["chat"]));
        snapshots.changed("chat", false);
        assert!(!usable(&snapshots, "pay", &["crm", "chat"]) && !usable(&snapshots, "chat", &[]));
        assert!(usable(&snapshots, "pay", &[]) && usable(&snapshots, "pay", &["crm"]));
        // While one is read: a job that runs holds up its own business only, one that has ended changed something.
        assert!(snapshots.begin([&"slow".to_owned()].into_iter()));
        snapshots.started("chat");
        snapshots.changed("chat", false);
        snapshots.cached = snapshots.reading.take().map(cached);
        assert!(!usable(&snapshots, "pay", &["chat"]) && !usable(&snapshots, "slow", &[]));
        assert!(usable(&snapshots, "pay", &["slow"]));
    }

    /// Else a business that is changed again and again would hold up all that lead messages to it.
    #[tokio::test(start_paused = true)]
    async fn a_change_of_a_business_that_was_there_already_holds_up_nobody() {
        let exchange = Exchange {
            name: names::push_exchange("chat"),
            kind: "fanout".to_owned(),
            durable: true,
            auto_delete: false,
            arguments: serde_json::Map::new(),
        };
        let chat = Actual { exchanges: vec![exchange], ..Actual::default() };
        let snapshot = Snapshot::new("v", chat, Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
        let cached = CachedSnapshot { snapshot: Arc::new(snapshot), ..cached(Reading::default()) };
        let mut snapshots = Snapshots { cached: Some(cached), ..Snapshots::default() };
        snapshots.changed("chat", false);
        snapshots.changed("crm", false);
        let usable = |business: &str, leads_to: &[&str]| snapshots.usable(business, leads_to.iter().copied()).is_some();
        assert!(usable("pay", &["chat"]) && !usable("pay", &["chat", "crm"]) && !usable("chat", &[]));
        // What it shows of one that was removed is gone, with what led there.
        snapshots.changed("chat", true);
        assert!(snapshots.usable("pay", ["chat"].into_iter()).is_none());
        assert!(snapshots.usable("pay", ["bank"].into_iter()).is_some());
    }
}
