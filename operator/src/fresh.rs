//! A new leader lists what there is before its first write.
//!
//! A standby watches, and a watch may be behind without a sign of it: its connection is dead, or the API server that it asks lags. A leader
//! that acts on that would write an older generation over a newer one. So the watches begin again when a replica begins to lead, each over a
//! new connection and with a list that the API server answers from its storage; until both lists are there nothing is written.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::{Stream, StreamExt, stream};
use kube::{
    Api, Client, Config, Resource,
    runtime::watcher::{self, watcher},
};
use serde::de::DeserializeOwned;

use crate::{api_client, leader::Leadership, triggers::Listed};

/// Whether this replica leads and knows what there is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fresh {
    leadership: Leadership,
    listed: Arc<[AtomicBool; 2]>,
    /// Since this replica leads, lists of these are under way or done.
    begun: Arc<[AtomicBool; 2]>,
}

impl Fresh {
    /// Nothing was listed yet.
    pub fn new(leadership: Leadership) -> Self {
        Self { leadership, listed: Arc::default(), begun: Arc::default() }
    }

    /// May this process write at this moment?
    pub fn may_write(&self) -> bool {
        self.leadership.is_leader() && self.listed.iter().all(|listed| listed.load(Ordering::Relaxed))
    }

    /// The reflector has everything of the last list.
    pub fn listed(&self, what: Listed) {
        if self.begun[what as usize].load(Ordering::Relaxed) {
            self.listed[what as usize].store(true, Ordering::Relaxed);
        }
    }

    /// A watch that begins again when this replica begins to lead. The caller says [`Fresh::listed`] at the end of each list. `config`: for
    /// a new connection.
    pub fn watch<K>(
        &self,
        client: Client,
        config: Config,
        what: Listed,
        api: fn(Client, &str) -> Api<K>,
        namespace: &str,
        watch: watcher::Config,
    ) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + use<K>
    where
        K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    {
        let (mut leadership, begun, namespace) =
            (self.leadership.clone(), Arc::clone(&self.begun), namespace.to_owned());
        let acquired = async move { leadership.acquired().await };
        let before = watcher(api(client.clone(), &namespace), watch.clone()).take_until(Box::pin(acquired));
        let after = stream::once(async move {
            begun[what as usize].store(true, Ordering::Relaxed);
            // What can't be made a second time is used again.
            let client = api_client::client(config).unwrap_or(client);
            watcher(api(client, &namespace), watch)
        });
        before.chain(after.flatten())
    }
}
