//! A new leader lists what there is before its first write.
//!
//! A standby watches, and a watch may be behind without a sign of it: its connection is dead, or the API server that it asks lags. A leader
//! that acts on that would write an older generation over a newer one. So the watches begin again when a replica begins to lead, each over a
//! new connection and with a list that the API server answers from its storage; until all lists are there nothing is written. The seed of the credentials is read once more before.
//!
//! The same when the CustomResourceDefinition is complete again: what was listed under an older one lacks fields, with the same generation.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::{Stream, StreamExt, stream};
use kube::{
    Api, Client, Config, Resource,
    runtime::watcher::{self, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::{api_client, leader::Leadership, triggers::Listed};

/// Whether this replica leads and knows what there is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fresh {
    leadership: Leadership,
    /// How often everything was to be listed again; 0 = this replica has never led.
    round: Arc<watch::Sender<u64>>,
    /// The round of the present list of each, and of the last complete one.
    begun: Arc<[AtomicU64; 3]>,
    listed: Arc<[AtomicU64; 3]>,
}

impl Fresh {
    /// Nothing was listed yet.
    pub fn new(leadership: Leadership) -> Self {
        let (round, _) = watch::channel(0);
        Self { leadership, round: Arc::new(round), begun: Arc::default(), listed: Arc::default() }
    }

    /// May this process write at this moment?
    pub fn may_write(&self) -> bool {
        // A leader's first list is that of round 1, also while nobody has asked for it yet.
        let round = (*self.round.borrow()).max(1);
        self.leadership.is_leader() && self.listed.iter().all(|listed| listed.load(Ordering::Relaxed) >= round)
    }

    /// Everything has to be listed again before anything is written.
    pub fn relist(&self) {
        self.round.send_modify(|round| *round += 1);
    }

    /// Returns when this process may not write any more, at once if it does not lead.
    pub async fn lost(&self) {
        self.leadership.lost().await;
    }

    /// The reflector has everything of the last list.
    pub fn listed(&self, what: Listed) {
        let round = self.begun[what as usize].load(Ordering::Relaxed);
        self.listed[what as usize].store(round, Ordering::Relaxed);
    }

    /// A watch that begins again with each [`Fresh::relist`]. The caller says [`Fresh::listed`] at the end of each list. `config`: for new
    /// connections.
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
        let (begun, namespace) = (Arc::clone(&self.begun), namespace.to_owned());
        let rounds = stream::unfold(self.round.subscribe(), move |mut rounds| {
            let round = *rounds.borrow_and_update();
            begun[what as usize].store(round, Ordering::Relaxed);
            // What can't be made a second time is used again.
            let new = (round > 0).then(|| api_client::client(config.clone()).ok()).flatten();
            let api = api(new.unwrap_or_else(|| client.clone()), &namespace);
            let mut next = rounds.clone();
            let over = async move {
                if next.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let events = watcher(api, watch.clone()).take_until(Box::pin(over));
            async move { Some((events, rounds)) }
        });
        rounds.flatten()
    }
}
