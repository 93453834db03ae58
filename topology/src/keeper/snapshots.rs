//! Snapshots of the vhost: taken when they are needed, used again for a second; and whether the broker answers at all.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;
use wirepost_rabbitmq::ManagementError;

use super::{BrokerFailure, Event, Mode, actor::Context};
use crate::{
    ApplyOptions, Error, Snapshot,
    actual::{Actual, Policy},
    apply_plan,
};

/// How long a snapshot serves for businesses to which nothing was done since. One of a thousand businesses takes 150 ms: those that come in
/// a row, when the operator starts or the broker was rebuilt, should not each have their own.
const MAX_AGE: Duration = Duration::from_secs(1);
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
    down: Option<(Instant, BrokerFailure)>,
    /// As last seen: one may win over ours without any object of ours having changed.
    foreign_policies: Vec<Policy>,
    policy_sweeps: u32,
}

struct CachedSnapshot {
    snapshot: Arc<Snapshot>,
    /// When it was asked for.
    taken_at: Instant,
    /// Businesses that we have changed since.
    changed: HashSet<String>,
}

/// See [`Snapshots::take`].
pub(super) struct Taken {
    pub(super) snapshot: Result<Arc<Snapshot>, BrokerFailure>,
    /// Whether every business has to be ensured again: the broker was lost or is back, or foreign policies changed.
    pub(super) recheck: bool,
}

impl Snapshots {
    /// The last snapshot, if it is new enough and nothing was done to these businesses since.
    pub(super) fn cached<'a>(&self, mut businesses: impl Iterator<Item = &'a str>) -> Option<Arc<Snapshot>> {
        let cached = self.cached.as_ref().filter(|cached| cached.taken_at.elapsed() < MAX_AGE)?;
        let usable = !businesses.any(|business| cached.changed.contains(business));
        usable.then(|| Arc::clone(&cached.snapshot))
    }

    /// A new snapshot. The vhost is created where it is missing, and what all businesses share is applied.
    pub(super) async fn take(&mut self, context: &Context) -> Taken {
        self.cached = None;
        if let Some((since, failure)) = &self.down
            && since.elapsed() < DOWN_RETRY_DELAY
        {
            return Taken { snapshot: Err(failure.clone()), recheck: false };
        }
        let begun = Instant::now();
        match context.read().await {
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
                let cached =
                    CachedSnapshot { snapshot: Arc::clone(&snapshot), taken_at: begun, changed: HashSet::new() };
                self.cached = Some(cached);
                Taken { snapshot: Ok(snapshot), recheck }
            }
            Err(error) => {
                context.owner.report(Event::SnapshotFailed);
                let failure = BrokerFailure::from(&error);
                let recheck = self.down.is_none();
                if recheck {
                    tracing::warn!(%error, "the broker can't be asked");
                }
                self.down = Some((Instant::now(), failure.clone()));
                context.forget_observations();
                Taken { snapshot: Err(failure), recheck }
            }
        }
    }

    /// Whether the last attempt failed.
    pub(super) fn is_down(&self) -> bool {
        self.down.is_some()
    }

    /// Something of this business was changed.
    pub(super) fn changed(&mut self, business: &str) {
        if let Some(cached) = &mut self.cached {
            cached.changed.insert(business.to_owned());
        }
    }

    /// The last snapshot describes nothing any more.
    pub(super) fn discard(&mut self) {
        self.cached = None;
    }

    /// Frees the memory of a snapshot that is too old to be used.
    pub(super) fn discard_old(&mut self) {
        self.cached.take_if(|cached| cached.taken_at.elapsed() >= MAX_AGE);
    }

    /// Whether everything has to be checked in this sweep for the sake of foreign policies.
    pub(super) fn policy_sweep(&mut self) -> bool {
        let due = self.policy_sweeps > 0;
        self.policy_sweeps = self.policy_sweeps.saturating_sub(1);
        due
    }
}

impl Context {
    async fn read(&self) -> Result<Snapshot, Error> {
        let mut attempts = VHOST_ATTEMPTS;
        let snapshot = loop {
            match self.read_once().await {
                Err(ManagementError::NoVhost { .. })
                    if attempts > 0 && self.mode == Mode::Cluster && self.owner.may_write() =>
                {
                    attempts -= 1;
                    self.management.create_vhost().await?;
                    tracing::info!(vhost = self.management.vhost(), "created the vhost");
                }
                result => break result?,
            }
        };
        self.apply_shared(&snapshot).await?;
        Ok(snapshot)
    }

    async fn read_once(&self) -> Result<Snapshot, ManagementError> {
        match self.mode {
            Mode::Cluster => Snapshot::read(&self.management).await,
            Mode::Development => {
                let actual = Actual::read(&self.management).await?;
                Ok(Snapshot::new(self.management.vhost(), actual, Vec::new(), Vec::new(), Vec::new()))
            }
        }
    }

    /// Applies what all businesses share, before anything of one is created: a queue should find its limits.
    async fn apply_shared(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let plan = snapshot.plan_shared();
        if plan.is_empty() || !self.owner.may_write() {
            return Ok(());
        }
        let options = ApplyOptions { gate: Some(&|| self.owner.may_write()), ..ApplyOptions::default() };
        let report = apply_plan(&self.management, plan, options).await?;
        self.owner.report(Event::Changed { count: report.changes.len(), repair: false });
        for problem in &report.problems {
            tracing::warn!(%problem, "what all businesses share is not as it should be");
        }
        Ok(())
    }
}
