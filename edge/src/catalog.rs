//! The businesses of this edge: each is swapped atomically and keeps its last accepted configuration.
//!
//! Written by a configuration source (a directory of files, ConfigMaps of a cluster, `wirepost dev`), read by every
//! request. A change of one business costs nothing for the others: their hubs are shared between the old map and the
//! new one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use wirepost_core::{edge_config::BusinessConfig, edge_config::Delivery, frames::CloseCode};
use wirepost_runtime::{
    backoff::Backoff,
    tasks::{Supervisor, Tasks},
};

use crate::{
    business::{Business, ConfigError},
    push::{context::HubContext, hub::Hub, reader, reading::Reading},
    undelivered,
};

/// Longest wait of a business's new reader for the end of its old one: the time to leave the broker, see
/// [`Broker::leave`](crate::broker::Broker::leave), and a little more.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest pause before a reader that panicked begins again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

mod absence;

use absence::Absences;
pub use absence::Absent;

/// See the module.
pub struct Catalog {
    context: Arc<HubContext>,
    hubs: ArcSwap<Hubs>,
    /// One change at a time; also each reader's way to end.
    readers: Mutex<HashMap<Arc<str>, Reader>>,
    /// Of businesses that do not run.
    absences: Mutex<Absences>,
    /// Counts changes of the loaded configurations.
    version: watch::Sender<u64>,
    /// Ends all readers.
    stopping: CancellationToken,
    tasks: Tasks,
}

type Hubs = HashMap<Arc<str>, Arc<Hub>>;

/// The reader of a hub; kept until it has ended, so that the next one of that business waits for it.
struct Reader {
    cancel: CancellationToken,
    ended: CancellationToken,
}

/// A change of one business.
#[derive(Clone, Debug)]
pub enum Change {
    /// Run it like this.
    Set(Box<BusinessConfig>),
    /// Remove it: its clients are closed with 4010.
    Remove(String),
    /// It is declared, but its declaration can't be read. If it is served, it stays as it is.
    Unreadable(String),
}

impl Catalog {
    /// An empty catalog.
    pub fn new(context: Arc<HubContext>, supervisor: &Supervisor) -> Self {
        Self {
            context,
            hubs: ArcSwap::default(),
            readers: Mutex::default(),
            absences: Mutex::default(),
            version: watch::Sender::new(0),
            stopping: CancellationToken::new(),
            tasks: supervisor.tasks(),
        }
    }

    /// A business as configured now.
    pub fn get(&self, business: &str) -> Option<Arc<Business>> {
        self.hub(business).map(|hub| hub.business())
    }

    /// A business with its connections.
    pub fn hub(&self, business: &str) -> Option<Arc<Hub>> {
        self.hubs.load().get(business).cloned()
    }

    /// How many businesses are served.
    pub fn count(&self) -> usize {
        self.hubs.load().len()
    }

    /// Every business with its connections.
    pub fn all(&self) -> Vec<Arc<Hub>> {
        self.hubs.load().values().cloned().collect()
    }

    /// Why a business is not served; for a name that [`Self::hub`] does not know.
    pub fn why_absent(&self, business: &str) -> Absent {
        self.absences.lock().unwrap_or_else(PoisonError::into_inner).why(business)
    }

    /// Whether everything that is declared is loaded and changes are heard of. Not so before the first complete load,
    /// which [`Self::replace`] is one of, nor while the source is away.
    pub fn set_current(&self, current: bool) {
        self.absences.lock().unwrap_or_else(PoisonError::into_inner).current = current;
    }

    /// Businesses and the hashes of their loaded configurations.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        self.hubs.load().iter().map(|(name, hub)| (name.to_string(), hub.business().hash.clone())).collect()
    }

    /// How each business's reader is.
    pub fn readings(&self) -> BTreeMap<String, Reading> {
        self.hubs.load().iter().map(|(name, hub)| (name.to_string(), hub.reading())).collect()
    }

    /// Businesses with connections here, and how many they have.
    pub fn connections(&self) -> BTreeMap<String, u64> {
        let hubs = self.hubs.load();
        let counts = hubs.iter().map(|(name, hub)| (name.to_string(), *hub.clients().borrow() as u64));
        counts.filter(|(_, connections)| *connections > 0).collect()
    }

    /// Changes with every change of the loaded configurations.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Serves exactly these businesses; one that is not named is removed. `keep` names businesses whose declaration
    /// could not be read at all, see [`Change::Unreadable`]. See [`Self::apply`].
    pub fn replace(&self, configs: Vec<BusinessConfig>, keep: &[String]) -> Vec<ConfigError> {
        let stays =
            |name: &str| keep.iter().any(|kept| kept == name) || configs.iter().any(|c| c.business_type == name);
        let gone: Vec<_> =
            self.hubs.load().keys().filter(|name| !stays(name)).map(|name| Change::Remove(name.to_string())).collect();
        let mut absences = self.absences.lock().unwrap_or_else(PoisonError::into_inner);
        absences.only_declared(stays);
        drop(absences);
        let unreadable = keep.iter().cloned().map(Change::Unreadable);
        let set = configs.into_iter().map(|config| Change::Set(Box::new(config)));
        let bad = self.apply(gone.into_iter().chain(unreadable).chain(set));
        self.set_current(true);
        bad
    }

    /// Applies changes in one step; the other businesses are not touched. An invalid configuration is returned with its
    /// reason and changes nothing for its business, which keeps its last accepted one.
    ///
    /// A changed business keeps its connections, unless its delivery changes: then they end with 1012 and reconnect to
    /// a new hub.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Vec<ConfigError> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|_, reader| !reader.ended.is_cancelled());
        let mut update = CatalogUpdate { hubs: Hubs::clone(&self.hubs.load()), ..CatalogUpdate::default() };
        let mut bad = Vec::new();
        let mut absences = self.absences.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Remove(name) => {
                    update.remove(&name);
                    self.context.peers.remove(&name);
                    absences.removed(&name);
                }
                Change::Unreadable(name) => {
                    if !update.hubs.contains_key(name.as_str()) {
                        absences.invalid(&name);
                    }
                }
                Change::Set(config) => {
                    let name = config.business_type.clone();
                    let set = update.set(*config, &self.context);
                    if update.hubs.contains_key(name.as_str()) {
                        absences.runs(&name);
                    } else {
                        absences.invalid(&name);
                    }
                    if let Err(reason) = set {
                        self.context.metrics.bad_configs.inc();
                        bad.push(reason);
                    }
                }
            }
        }
        drop(absences);
        let CatalogUpdate { hubs, changed, closed, started } = update;
        if !changed {
            return bad;
        }
        self.hubs.store(Arc::new(hubs));
        for (hub, code) in closed {
            // After the swap, so that a client that reconnects finds the new state.
            hub.close_all(code);
            if let Some(reader) = readers.get(&hub.name) {
                reader.cancel.cancel();
            }
        }
        for hub in started {
            let reader = Reader { cancel: self.stopping.child_token(), ended: CancellationToken::new() };
            let (cancel, ended) = (reader.cancel.clone(), reader.ended.clone().drop_guard());
            let before = readers.insert(Arc::clone(&hub.name), reader).map(|before| before.ended);
            let stopping = self.stopping.clone();
            let (judged, until) = (Arc::clone(&hub), cancel.clone());
            self.tasks.restarted("judge of receipts", &cancel, Backoff::new(BACKOFF.0, BACKOFF.1), move || {
                until.clone().run_until_cancelled_owned(undelivered::run(Arc::clone(&judged)))
            });
            // A message that makes one business's reader panic must not end the edge for all.
            self.tasks.restarted("push reader", &cancel.clone(), Backoff::new(BACKOFF.0, BACKOFF.1), move || {
                let _until_the_end = &ended;
                read(Arc::clone(&hub), before.clone(), cancel.clone(), stopping.clone())
            });
        }
        self.version.send_modify(|version| *version += 1);
        bad
    }

    /// Ends every reader and waits for them.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.finished().await;
    }
}

/// Reads for a hub until `cancel`, after the reader `before` it has ended. If the hub itself is closed, its reading
/// leaves nothing on the broker.
async fn read(
    hub: Arc<Hub>,
    before: Option<CancellationToken>,
    cancel: CancellationToken,
    stopping: CancellationToken,
) {
    if let Some(before) = before {
        let ended = timeout(PREDECESSOR_TIMEOUT, before.cancelled());
        tokio::select! {
            _ = ended => {}
            () = stopping.cancelled() => {}
        }
    }
    reader::run(Arc::clone(&hub), cancel).await;
    if hub.is_closed() && hub.delivery() == Delivery::Transient {
        tokio::select! {
            () = hub.context.broker.leave(&hub.name) => {}
            () = stopping.cancelled() => {}
        }
    }
}

/// A step of the catalog that is being prepared.
#[derive(Default)]
struct CatalogUpdate {
    hubs: Hubs,
    changed: bool,
    closed: Vec<(Arc<Hub>, CloseCode)>,
    started: Vec<Arc<Hub>>,
}

impl CatalogUpdate {
    fn set(&mut self, config: BusinessConfig, context: &Arc<HubContext>) -> Result<(), ConfigError> {
        let present = self.hubs.get(config.business_type.as_str());
        if present.is_some_and(|hub| hub.business().config == config) {
            return Ok(());
        }
        let business = Arc::new(Business::try_new(config)?.among(&context.peers));
        context.peers.set(&business);
        self.changed = true;
        match present {
            Some(hub) if hub.delivery() == business.config.delivery => hub.update(business),
            present => {
                let present = present.cloned();
                self.close(present, CloseCode::DeliveryChanged);
                let hub = Arc::new(Hub::new(business, Arc::clone(context)));
                self.started.push(Arc::clone(&hub));
                self.hubs.insert(Arc::clone(&hub.name), hub);
            }
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        let removed = self.hubs.remove(name);
        self.changed |= removed.is_some();
        self.close(removed, CloseCode::BusinessRemoved);
    }

    fn close(&mut self, hub: Option<Arc<Hub>>, code: CloseCode) {
        let Some(hub) = hub else { return };
        // One that was added and removed within this update was never visible.
        let seen = self.started.len();
        self.started.retain(|started| !Arc::ptr_eq(started, &hub));
        if self.started.len() == seen {
            self.closed.push((hub, code));
        }
    }
}

#[cfg(test)]
mod tests;
