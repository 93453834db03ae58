//! A keeper like the operator's, with proxies between it and the broker.

#![allow(clippy::unwrap_used)] // a panic fails the test, also in a helper

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{Id, JoinHandle, try_id};
use tokio_util::sync::CancellationToken;
use wirepost_core::topology::Topology;
use wirepost_rabbitmq::{ManagementClient, ManagementSettings};
use wirepost_testing::broker::{PATIENCE, Vhost};
use wirepost_testing::proxy::Proxy;
use wirepost_topology::keeper::{
    BrokerFailure, Businesses, Desired, Ensured, Event, Keeper, LazyConnection, Mode, Owner, Phase, Settings,
};
use wirepost_topology::ownership::Installation;

use crate::support::business;

/// See the module.
pub(crate) struct Kept {
    pub(crate) keeper: Keeper,
    pub(crate) owner: Arc<TestOwner>,
    pub(crate) management: Proxy,
    pub(crate) amqp: Proxy,
    pub(crate) vhost: Vhost,
    stop: CancellationToken,
    _task: JoinHandle<()>,
}

impl Kept {
    /// `nodes`: that the broker should have.
    pub(crate) async fn of(vhost: Vhost, nodes: Option<usize>) -> Result<Self> {
        let (management, url) = Proxy::of_uri(&vhost.broker.management).await?;
        let (amqp, uri) = Proxy::of_uri(&vhost.amqp()).await?;
        let (name, stop) = (vhost.name.clone(), CancellationToken::new());
        let settings = ManagementSettings {
            url,
            vhost: name,
            credentials: None,
            tls: wirepost_rabbitmq::TlsFiles::default(),
            timeout: None,
        };
        let settings = Settings {
            management: ManagementClient::new(settings)?,
            amqp: LazyConnection::new(uri.parse()?, None, wirepost_rabbitmq::TlsFiles::default(), "test"),
            mode: Mode::Cluster,
            nodes,
            sweep: Duration::from_secs(1),
            orphan_grace: Duration::from_hours(1),
        };
        let owner = Arc::new(TestOwner {
            may_write: watch::channel(true).0,
            amqp: watch::channel(None).0,
            snapshots: watch::channel(0).0,
            panics: Mutex::default(),
        });
        let (keeper, run) = Keeper::new(settings, Arc::clone(&owner) as Arc<dyn Owner>, stop.clone());
        Ok(Self { keeper, owner, management, amqp, stop, _task: tokio::spawn(run), vhost })
    }

    pub(crate) async fn ensure(&self, name: &str, own_policy: bool) -> Result<Ensured, BrokerFailure> {
        self.keeper.ensure(name, desired(name, own_policy), Phase::Shrink).await
    }

    pub(crate) fn begin(&self, name: &'static str, own_policy: bool) -> JoinHandle<Result<Ensured, BrokerFailure>> {
        let keeper = self.keeper.clone();
        tokio::spawn(async move { keeper.ensure(name, desired(name, own_policy), Phase::Shrink).await })
    }

    pub(crate) fn begin_remove(&self, name: &'static str) -> JoinHandle<Result<Ensured, BrokerFailure>> {
        let keeper = self.keeper.clone();
        tokio::spawn(async move {
            let report = keeper.remove(name, None, false).await?;
            Ok(Ensured { report, repaired: false, waits_for_edges: false })
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn desired(name: &str, own_policy: bool) -> Arc<Desired> {
    let queue = if own_policy { json!({ "name": "orders", "maxLength": 5 }) } else { json!({ "name": "orders" }) };
    let routes: Value = json!([{ "messageType": "order", "sendType": "ClientToServer", "queue": queue }]);
    let mut topology: Topology = business(name, &routes);
    if !own_policy {
        // The one of the stream.
        topology.policies.clear();
    }
    Arc::new(Desired { topology, ..Desired::default() })
}

pub(crate) struct TestOwner {
    pub(crate) may_write: watch::Sender<bool>,
    /// What was reported last.
    pub(crate) amqp: watch::Sender<Option<bool>>,
    /// How many were taken.
    snapshots: watch::Sender<u64>,
    panics: Mutex<Panics>,
}

impl TestOwner {
    /// Waits until the keeper has looked at the vhost so many times more.
    pub(crate) async fn looks(&self, times: u64) -> Result<()> {
        let mut snapshots = self.snapshots.subscribe();
        let last = *snapshots.borrow() + times;
        tokio::time::timeout(PATIENCE, snapshots.wait_for(|taken| *taken >= last)).await??;
        Ok(())
    }

    pub(crate) fn panics(&self) -> MutexGuard<'_, Panics> {
        self.panics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A panic in the middle of what a task of the keeper does.
#[derive(Default)]
pub(crate) struct Panics {
    /// The next task that asks whether it may write panics.
    pub(crate) due: bool,
    /// The next count by AMQP panics.
    pub(crate) count_due: bool,
    /// Those that were reported.
    pub(crate) reported: usize,
    /// The keeper itself.
    actor: Option<Id>,
}

impl Owner for TestOwner {
    fn may_write(&self) -> bool {
        let panics = {
            let mut panics = self.panics();
            panics.actor != try_id() && std::mem::take(&mut panics.due)
        };
        assert!(!panics, "a test asked for it");
        *self.may_write.borrow()
    }

    fn installation(&self) -> Option<Installation> {
        Some(Installation { id: "0123456789ab".to_owned(), place: "wirepost".to_owned(), adopt: None })
    }

    fn until_it_may_not(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut may_write = self.may_write.subscribe();
        Box::pin(async move {
            let _ = may_write.wait_for(|may| !may).await;
        })
    }

    fn ensure_again(&self, _: Businesses<'_>) {}

    fn claimed(&self) -> Option<BTreeSet<String>> {
        None
    }

    fn report(&self, event: Event<'_>) {
        match event {
            Event::Amqp(answers) => {
                let panics = std::mem::take(&mut self.panics().count_due);
                assert!(!panics, "a test asked for it");
                self.amqp.send_replace(Some(answers));
            }
            Event::Snapshot(_) => self.snapshots.send_modify(|taken| *taken += 1),
            Event::Calls(_) => self.panics().actor = try_id(),
            Event::Panicked(_) => self.panics().reported += 1,
            _ => {}
        }
    }
}
