//! A new leader lists what there is before its first write.
//!
//! A standby watches, and a watch may be behind unnoticed: its connection is dead, or its API server lags. A leader that acted on that would
//! write an older generation over a newer one. So the watches restart when a replica begins to lead, each over a new connection and with a
//! list that the API server answers from its storage. Until all lists are complete nothing is written. The seed of the credentials is read
//! again before.
//!
//! The same happens when the CustomResourceDefinition is complete again: objects listed under an older one lack fields, without a new
//! generation.

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

use crate::{api_client, leader::Leadership};

/// What was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Every resource.
    Resources,
    /// Every edge configuration.
    EdgeConfigurations,
    /// Every class.
    Classes,
    /// Every EndpointSlice of the edges. Only what must not be taken from edges waits for it.
    Edges,
}

/// Whether this replica leads and has listed everything. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fresh {
    leadership: Leadership,
    /// How many times everything had to be listed again; 0 = this replica has never led.
    round: Arc<watch::Sender<u64>>,
    /// The round of the present list of each, and of the last complete one.
    begun: Arc<[AtomicU64; 4]>,
    listed: Arc<[AtomicU64; 4]>,
    /// The last round of which every list is complete that a write waits for.
    complete: Arc<watch::Sender<u64>>,
}

/// What is listed before the first write.
const NEEDED: [Listed; 3] = [Listed::Resources, Listed::EdgeConfigurations, Listed::Classes];

impl Fresh {
    /// Nothing was listed yet.
    pub fn new(leadership: Leadership) -> Self {
        let (round, complete) = (Arc::new(watch::channel(0).0), Arc::new(watch::channel(0).0));
        Self { leadership, round, begun: Arc::default(), listed: Arc::default(), complete }
    }

    /// May this process write at this moment?
    pub fn may_write(&self) -> bool {
        self.leadership.is_leader() && NEEDED.into_iter().all(|what| self.is_listed(what))
    }

    /// Whether this was listed since this replica leads.
    pub fn is_listed(&self, what: Listed) -> bool {
        // A leader's first list belongs to round 1, even before anybody has asked for it.
        self.listed[what as usize].load(Ordering::Relaxed) >= (*self.round.borrow()).max(1)
    }

    /// The last round of which everything is listed that a write waits for. Whoever was told to wait has to be woken when it changes,
    /// whichever list was the last.
    pub fn complete(&self) -> watch::Receiver<u64> {
        self.complete.subscribe()
    }

    /// Lists everything again before anything is written.
    pub fn relist(&self) {
        self.round.send_modify(|round| *round += 1);
    }

    /// Returns when this process may no longer write, immediately if it does not lead.
    pub async fn lost(&self) {
        self.leadership.lost().await;
    }

    /// The reflector has everything of the last list.
    pub fn listed(&self, what: Listed) {
        let round = self.begun[what as usize].load(Ordering::Relaxed);
        self.listed[what as usize].store(round, Ordering::Relaxed);
        let all = NEEDED.into_iter().map(|what| self.listed[what as usize].load(Ordering::Relaxed)).min();
        let complete = all.unwrap_or_default();
        self.complete.send_if_modified(|before| {
            let news = *before < complete;
            *before = complete.max(*before);
            news
        });
    }

    /// A watch that restarts with each [`Fresh::relist`]. The caller calls [`Fresh::listed`] at the end of each list. `config`: for new
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
            // If no new client can be created, the former one is used again.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Without it nobody is reconciled who came while the last list was on its way.
    #[test]
    fn whichever_list_is_the_last_of_a_round_says_that_it_is_complete() {
        for last in NEEDED {
            let fresh = Fresh::new(Leadership::forever());
            let mut complete = fresh.complete();
            fresh.relist();
            for begun in fresh.begun.iter() {
                begun.store(1, Ordering::Relaxed);
            }
            for what in NEEDED.into_iter().filter(|what| *what != last) {
                fresh.listed(what);
            }
            assert!(!fresh.may_write() && !complete.has_changed().unwrap());
            fresh.listed(last);
            assert!(fresh.may_write() && complete.has_changed().unwrap() && *complete.borrow_and_update() == 1);
            assert!(!fresh.is_listed(Listed::Edges), "what is taken from edges waits");
            // A list that a watch makes for itself.
            fresh.listed(last);
            assert!(!complete.has_changed().unwrap());
        }
    }
}
