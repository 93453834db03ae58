//! One writer among several replicas: a Lease that is taken and renewed with a `resourceVersion` precondition.
//!
//! **Flow.** A replica takes the Lease when no replica has it, or when it has seen no renewal for the whole lease duration by its own clock
//! (never by the times in the object: clocks differ). The holder renews; it may act until its *renew deadline*, two thirds of the duration,
//! counted from the moment at which its last successful request was sent.
//! **Guarantees.** The deadline ends before another replica may take over, and a leader that misses it ends its process, so that two never write
//! at the same time. A process that was frozen past its deadline is stopped by [`Leadership::is_leader`], which is asked before each write.
//! **Assumptions.** Clocks may differ and jump; they run at about the same speed.
//! **Caveats.** A Lease that is deleted by hand is created again by its holder; the other replicas give it that time, but one that starts at
//! that moment can't know that there was a Lease.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Longest time between two reads of the Lease.
const MAX_RETRY: Duration = Duration::from_secs(2);
/// Attempts to give the Lease up, should another write to it at the same moment.
const GIVE_UP_TRIES: u32 = 3;

/// Who competes for what.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// Unlike that of any other process, also of one with the same pod name.
    pub identity: String,
    /// How long a holder that does not renew keeps others out.
    pub duration: Duration,
}

impl Settings {
    /// How long after a renewal the holder may still act.
    fn deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// Short even for a long lease: one that is given up should be taken immediately.
    fn retry(&self) -> Duration {
        (self.duration / 8).min(MAX_RETRY)
    }

    /// Of one request, so that several are possible before the deadline.
    fn timeout(&self) -> Duration {
        self.duration / 4
    }
}

/// Whether this process is the one that writes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// That of a process which leads and never loses it.
    #[cfg(test)]
    pub(crate) fn forever() -> Self {
        Self(watch::channel(Some(Instant::now() + Duration::from_hours(1))).1)
    }

    /// May this process write at this moment?
    pub fn is_leader(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Returns when this process may not write, immediately if it does not lead.
    pub async fn lost(&self) {
        let mut state = self.0.clone();
        loop {
            let held = *state.borrow_and_update();
            let Some(until) = held.filter(|until| Instant::now() < *until) else { return };
            tokio::select! {
                () = sleep_until(until) => {}
                changed = state.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Returns when this process leads. Never, once it has lost.
    pub async fn acquired(&mut self) {
        if self.0.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The Lease could not be renewed in time, or another took it.
#[derive(Debug, thiserror::Error)]
#[error("leadership is lost: {0}; the process ends so that another can lead")]
pub struct LeadershipLost(String);

/// Competes for the Lease and keeps it.
#[derive(Debug)]
pub struct Elector {
    leases: Api<Lease>,
    settings: Settings,
    state: watch::Sender<Option<Instant>>,
    /// The version (empty: it was gone) in which another's Lease was last seen, and since when.
    seen: Option<(String, Instant)>,
}

impl Elector {
    /// Nothing is asked yet.
    pub fn new(client: Client, settings: Settings) -> (Self, Leadership) {
        let (state, reader) = watch::channel(None);
        let leases = Api::namespaced(client, &settings.namespace);
        (Self { leases, settings, state, seen: None }, Leadership(reader))
    }

    /// Until `cancel`, which comes when nothing is written any more: then the Lease is given up, so that another replica need not wait.
    ///
    /// # Errors
    /// Leadership was lost.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), LeadershipLost> {
        loop {
            let held_until = *self.state.borrow();
            let turn = async {
                match held_until {
                    None => {
                        self.compete().await;
                        Ok(())
                    }
                    Some(until) => self.renew(until).await,
                }
            };
            tokio::select! {
                turn = turn => turn?,
                () = cancel.cancelled() => {
                    self.give_up().await;
                    return Ok(());
                }
            }
        }
    }

    async fn compete(&mut self) {
        let sent = Instant::now();
        match timeout(self.settings.timeout(), self.try_take()).await {
            Ok(Ok(true)) => {
                tracing::info!(identity = self.settings.identity, "this replica leads");
                self.state.send_replace(Some(sent + self.settings.deadline()));
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%error, lease = self.settings.name, "cannot compete for the lease"),
            Err(_) => {
                tracing::warn!(
                    lease = self.settings.name,
                    "cannot compete for the lease: the API server does not answer"
                );
            }
        }
        sleep(self.settings.retry()).await;
    }

    async fn try_take(&mut self) -> kube::Result<bool> {
        let Some(lease) = self.leases.get_opt(&self.settings.name).await? else {
            // The former holder may act as long as if it still existed.
            if self.seen.is_some() && self.unchanged("") < self.settings.duration {
                return Ok(false);
            }
            return self.create().await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        // Our own: an earlier attempt has succeeded, and its answer came too late.
        let free =
            spec.holder_identity.as_ref().is_none_or(|holder| holder.is_empty() || *holder == self.settings.identity);
        let asked = Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().unsigned_abs().into());
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if !free && self.unchanged(&version) < asked.max(self.settings.duration) {
            return Ok(false);
        }
        self.write(lease, spec.lease_transitions.unwrap_or_default() + 1).await
    }

    /// For how long the Lease has been seen in this version.
    fn unchanged(&mut self, version: &str) -> Duration {
        match &self.seen {
            Some((seen, since)) if seen == version => since.elapsed(),
            _ => {
                self.seen = Some((version.to_owned(), Instant::now()));
                Duration::ZERO
            }
        }
    }

    async fn create(&self) -> kube::Result<bool> {
        let metadata = ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(self.spec(0)) };
        succeeded(self.leases.create(&PostParams::default(), &lease).await)
    }

    async fn renew(&mut self, until: Instant) -> Result<(), LeadershipLost> {
        // The first renewal comes a retry period after the last success, which was `deadline` before `until`.
        sleep_until(until - self.settings.deadline() + self.settings.retry()).await;
        let mut cause = "no renewal was tried in time".to_owned();
        while Instant::now() < until {
            let sent = Instant::now();
            let renewal = async {
                let Some(lease) = self.leases.get_opt(&self.settings.name).await? else {
                    tracing::warn!(lease = self.settings.name, "the lease was deleted; creating it again");
                    return self.create().await.map(Ok);
                };
                let spec = lease.spec.clone().unwrap_or_default();
                if spec.holder_identity.as_ref() != Some(&self.settings.identity) {
                    return Ok(Err(spec.holder_identity.unwrap_or_default()));
                }
                self.write(lease, spec.lease_transitions.unwrap_or_default()).await.map(Ok)
            };
            let limit = self.settings.timeout().min(until - sent);
            match timeout(limit, renewal).await {
                Ok(Ok(Ok(true))) => {
                    self.state.send_replace(Some(sent + self.settings.deadline()));
                    return Ok(());
                }
                Ok(Ok(Ok(false))) => "another wrote to the lease at the same moment".clone_into(&mut cause),
                Ok(Ok(Err(other))) => return Err(self.lost(format!("the lease is held by '{other}'"))),
                Ok(Err(error)) => cause = error.to_string(),
                Err(_) => "the API server does not answer".clone_into(&mut cause),
            }
            tracing::warn!(cause, "cannot renew the lease; trying again");
            sleep(self.settings.retry().min(until.saturating_duration_since(Instant::now()))).await;
        }
        Err(self.lost(cause))
    }

    fn lost(&self, cause: String) -> LeadershipLost {
        self.state.send_replace(None);
        LeadershipLost(cause)
    }

    /// With the version that `lease` was read in, so that of several writers one succeeds. `false` = it was another.
    async fn write(&self, mut lease: Lease, transitions: i32) -> kube::Result<bool> {
        let renewing =
            lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref()) == Some(&self.settings.identity);
        let acquired = lease.spec.as_ref().and_then(|spec| spec.acquire_time.clone());
        let mut spec = self.spec(transitions);
        if renewing {
            spec.acquire_time = acquired;
        }
        lease.spec = Some(spec);
        lease.metadata.managed_fields = None;
        succeeded(self.leases.replace(&self.settings.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            lease_transitions: Some(transitions),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    /// Also where this replica does not lead: an attempt to take the Lease may be under way, or have succeeded without an answer.
    async fn give_up(&self) {
        let led = self.state.send_replace(None).is_some();
        match timeout(self.settings.timeout(), self.try_give_up()).await {
            Ok(Ok(true)) => tracing::info!("gave up the lease"),
            Ok(Err(error)) if led => {
                tracing::warn!(%error, "cannot give up the lease: other replicas wait until it expires");
            }
            Err(_) if led => tracing::warn!("cannot give up the lease: the API server does not answer"),
            Ok(Ok(false) | Err(_)) | Err(_) => {}
        }
    }

    /// Whether it was ours.
    async fn try_give_up(&self) -> kube::Result<bool> {
        for _ in 0..GIVE_UP_TRIES {
            let Some(mut lease) = self.leases.get_opt(&self.settings.name).await? else { return Ok(false) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() != Some(&self.settings.identity) {
                return Ok(false);
            }
            spec.holder_identity = None;
            lease.metadata.managed_fields = None;
            if succeeded(self.leases.replace(&self.settings.name, &PostParams::default(), &lease).await)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A conflict means that another replica was faster.
fn succeeded<T>(result: kube::Result<T>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
