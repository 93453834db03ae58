//! The businesses of this edge, as each of them sees the others: for messages to the clients of several.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, Weak},
};

use super::Business;

/// See the module. Written by the catalog and the readers, read for messages that name several businesses. Bounded by
/// the number of businesses.
#[derive(Debug, Default)]
pub struct Peers(RwLock<HashMap<String, Peer>>);

#[derive(Debug, Default)]
struct Peer {
    /// Its hub keeps it.
    business: Weak<Business>,
    /// Whether its pushes are read here.
    is_read: bool,
}

impl Peers {
    /// A business as configured now.
    pub fn get(&self, name: &str) -> Option<Arc<Business>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name)?.business.upgrade()
    }

    /// Whether the pushes of a business are read here, so that its reader reports what is wrong with them.
    pub fn is_read(&self, name: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).is_some_and(|peer| peer.is_read)
    }

    /// It is configured like this from now on.
    pub fn set(&self, business: &Arc<Business>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(business.name().to_owned()).or_default().business = Arc::downgrade(business);
    }

    /// Its pushes are read from now on, or are not any more.
    pub fn set_read(&self, name: &str, is_read: bool) {
        if let Some(peer) = self.0.write().unwrap_or_else(PoisonError::into_inner).get_mut(name) {
            peer.is_read = is_read;
        }
    }

    /// It is not served any more.
    pub fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
