//! One writer among several replicas: a Lease that is taken and renewed with a `resourceVersion` precondition.
//!
//! **Flow.** A replica takes the Lease when nobody holds it, or when it has seen no renewal for the whole lease duration by its own clock
//! (never by the times in the object: clocks differ). The holder renews; it may act until its *renew deadline*, two thirds of the duration,
//! counted from the moment at which its last successful request was sent.
//! **Guarantees.** The deadline ends before anybody else may take over, and whoever loses it ends the process, so that two never write at
//! once. A process that was frozen past its deadline is stopped by [`Leadership::holds`], which is asked before each write.
//! **Assumptions.** Clocks may differ and jump; they run at about the same speed.

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

    fn retry(&self) -> Duration {
        self.duration / 8
    }

    /// Of one request: several fit before the deadline.
    fn timeout(&self) -> Duration {
        self.duration / 4
    }
}

/// Whether this process is the one that writes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// May this process write at this moment?
    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
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
pub struct Lost(String);

/// Competes for the Lease and holds it.
#[derive(Debug)]
pub struct Elector {
    leases: Api<Lease>,
    settings: Settings,
    state: watch::Sender<Option<Instant>>,
    /// The Lease's version at the last look and when it was first seen.
    seen: Option<(String, Instant)>,
}

impl Elector {
    /// Nothing is asked yet.
    pub fn new(client: Client, settings: Settings) -> (Self, Leadership) {
        let (state, reader) = watch::channel(None);
        let leases = Api::namespaced(client, &settings.namespace);
        (Self { leases, settings, state, seen: None }, Leadership(reader))
    }

    /// Until `cancel`, which is for the time when nothing is written any more: then a held Lease is given up, so that another need not wait.
    ///
    /// # Errors
    /// Leadership was lost.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Lost> {
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
            let metadata = ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(0)) };
            return won(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let free = spec.holder_identity.as_ref().is_none_or(String::is_empty);
        if !free && !self.expired(&lease) {
            return Ok(false);
        }
        self.write(lease, spec.lease_transitions.unwrap_or_default() + 1).await
    }

    /// Whether the holder was seen not to renew for as long as it asked for.
    fn expired(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let asked = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let duration = Duration::from_secs(asked.unsigned_abs().into()).max(self.settings.duration);
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() >= duration,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    async fn renew(&mut self, until: Instant) -> Result<(), Lost> {
        // The first renewal comes a retry period after the last success, which was `deadline` before `until`.
        sleep_until(until - self.settings.deadline() + self.settings.retry()).await;
        let mut cause = "no renewal was tried in time".to_owned();
        while Instant::now() < until {
            let sent = Instant::now();
            let renewal = async {
                let lease = self.leases.get(&self.settings.name).await?;
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
            tracing::warn!(cause, "the lease is not renewed; trying again");
            sleep(self.settings.retry().min(until.saturating_duration_since(Instant::now()))).await;
        }
        Err(self.lost(cause))
    }

    fn lost(&self, cause: String) -> Lost {
        self.state.send_replace(None);
        Lost(cause)
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
        won(self.leases.replace(&self.settings.name, &PostParams::default(), &lease).await)
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

    async fn give_up(&self) {
        if self.state.send_replace(None).is_none() {
            return;
        }
        let give_up = async {
            let mut lease = self.leases.get(&self.settings.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() == Some(&self.settings.identity) {
                spec.holder_identity = None;
                lease.metadata.managed_fields = None;
                won(self.leases.replace(&self.settings.name, &PostParams::default(), &lease).await)?;
            }
            Ok::<(), kube::Error>(())
        };
        match timeout(self.settings.timeout(), give_up).await {
            Ok(Ok(())) => tracing::info!("the lease is given up"),
            Ok(Err(error)) => tracing::warn!(%error, "the lease is not given up: others wait until it expires"),
            Err(_) => tracing::warn!("the lease is not given up: the API server does not answer"),
        }
    }
}

/// A conflict means that another was faster.
fn won<T>(result: kube::Result<T>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
