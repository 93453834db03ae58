//! The businesses of this edge: replaced as a whole, each swapped atomically, the last good configuration of each kept.
//!
//! Written by a configuration source (a directory of files, `wirepost dev`), read by every request.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wirepost_core::{edge_config::BusinessConfig, frames::CloseCode};

use crate::{
    business::{BadConfig, Business},
    push::{
        hub::{Context, Hub},
        reader,
    },
};

/// See the module.
pub struct Catalog {
    context: Arc<Context>,
    hubs: ArcSwap<HashMap<String, Arc<Hub>>>,
    /// One change at a time; also each reader's way to end.
    readers: Mutex<HashMap<String, CancellationToken>>,
    tasks: TaskTracker,
}

impl Catalog {
    /// An empty catalog.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, hubs: ArcSwap::default(), readers: Mutex::default(), tasks: TaskTracker::new() }
    }

    /// A business as configured now.
    pub fn get(&self, business: &str) -> Option<Arc<Business>> {
        self.hub(business).map(|hub| hub.business())
    }

    /// A business with its connections.
    pub fn hub(&self, business: &str) -> Option<Arc<Hub>> {
        self.hubs.load().get(business).cloned()
    }

    /// Businesses and the hashes of their loaded configurations.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        self.hubs.load().iter().map(|(name, hub)| (name.clone(), hub.business().hash.clone())).collect()
    }

    /// How far each business's reader is behind the broker, in messages.
    pub fn lags(&self) -> BTreeMap<String, u64> {
        self.hubs.load().iter().map(|(name, hub)| (name.clone(), hub.lag())).collect()
    }

    /// Makes exactly these businesses run. A bad configuration is returned with its reason and changes nothing for its business, which
    /// keeps its last good one; a business that is not named is removed and its clients are closed with 4010. `keep` names businesses whose
    /// declaration could not be read at all: they stay as they are.
    pub fn replace(&self, configs: Vec<BusinessConfig>, keep: &[String]) -> Vec<BadConfig> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.hubs.load_full();
        let mut new = HashMap::with_capacity(configs.len());
        let mut bad = Vec::new();
        for name in keep {
            if let Some(hub) = old.get(name) {
                new.insert(name.clone(), Arc::clone(hub));
            }
        }
        for config in configs {
            let name = config.business_type.clone();
            let present = old.get(&name);
            if present.is_some_and(|hub| hub.business().config == config) {
                new.extend(present.map(|hub| (name, Arc::clone(hub))));
                continue;
            }
            match (Business::try_new(config), present) {
                (Ok(business), Some(hub)) => {
                    hub.update(Arc::new(business));
                    new.insert(name, Arc::clone(hub));
                }
                (Ok(business), None) => {
                    let hub = Arc::new(Hub::new(Arc::new(business), Arc::clone(&self.context)));
                    let cancel = CancellationToken::new();
                    self.tasks.spawn(reader::run(Arc::clone(&hub), cancel.clone()));
                    readers.insert(name.clone(), cancel);
                    new.insert(name, hub);
                }
                (Err(reason), present) => {
                    self.context.metrics.bad_configs.inc();
                    new.extend(present.map(|hub| (name, Arc::clone(hub))));
                    bad.push(reason);
                }
            }
        }
        let gone: Vec<_> = old.iter().filter(|(name, _)| !new.contains_key(*name)).collect();
        self.hubs.store(Arc::new(new));
        for (name, hub) in gone {
            // After the swap, so that a client that comes back finds no business.
            hub.close_all(CloseCode::BusinessRemoved);
            if let Some(cancel) = readers.remove(name) {
                cancel.cancel();
            }
        }
        bad
    }

    /// Ends every reader and waits for them.
    pub async fn stop(&self) {
        for (_, cancel) in self.readers.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            cancel.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}
