//! What all reconciles share, and what is remembered of each business between two of them. Everything remembered is a saving: a process
//! that has forgotten all makes the same of the same resources.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Client, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::{sync::watch, time::Instant};
use wirepost_core::{Compiled, Rejection, business::WsBusinessStatus, compile, contract::config_map::HASH};
use wirepost_topology::OpenQueues;

use super::{Good, SECRET_LOOK};
use crate::{
    access::{Place, Rotation, Seed},
    broker::Broker,
    config_map, definition,
    edges::{Edges, Standing},
    metrics::Metrics,
    notices::Notices,
    seed::Seeds,
    stored::Stored,
    writer::Writer,
};

/// How long the watch may take to bring back what we wrote.
const WATCH_LAG: Duration = Duration::from_secs(5);
/// Entries of resources that are gone, beyond which they are looked for.
const SLACK: usize = 1024;
/// What keys by business type begin with; uids don't.
const BUSINESS: &str = "business ";
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Settings of all reconciles.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything of wirepost is.
    pub namespace: String,
    /// What the businesses' services are told.
    pub place: Place,
    /// Queues of others that its owner need not open.
    pub open_queues: OpenQueues,
    /// How long a deletion may take.
    pub deletion_deadline: Duration,
    /// Whether some resources may not be ours.
    pub selects: bool,
    /// A look for what nobody reconciles is due every few of them.
    pub sweep: Duration,
    /// How long what no resource claims is left alone.
    pub orphan_grace: Duration,
}

/// See the module.
pub struct Context {
    /// Settings.
    pub options: Options,
    /// The cluster.
    pub client: Client,
    /// Writes to it.
    pub writer: Writer,
    /// The broker.
    pub broker: Broker,
    /// The edges.
    pub edges: Arc<Edges>,
    /// Events.
    pub notices: Notices,
    /// Every resource.
    pub businesses: Store<Stored>,
    /// Every edge configuration.
    pub config_maps: Store<ConfigMap>,
    /// What the installed CRD lacks.
    pub definition: watch::Receiver<definition::Look>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// What credentials are made of.
    pub seeds: Arc<Seeds>,
    /// Nothing at the start.
    pub memories: Memories,
}

/// What is remembered of each resource, by uid, and of each business.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<String, Memory>>);

/// What is remembered of a resource, by uid.
#[derive(Default)]
struct Memory {
    compiled: Option<(i64, Result<Arc<Compiled>, Rejection>)>,
    attempts: u32,
    /// What was last accepted, whatever was declared since.
    good: Option<Good>,
    rotation: Option<Rotation>,
    /// The access Secret at its last look: its name, its entries, when.
    secret: Option<(String, BTreeMap<String, String>, Instant)>,
    /// Status as last written, which the watch may not have brought back yet.
    status: Option<(WsBusinessStatus, Instant)>,
    /// Status that the API server did not take.
    told: Option<WsBusinessStatus>,
    hash: Option<String>,
}

impl Context {
    /// Returns when everything that a reconcile compares with was read once; `false` when that will not happen any more.
    pub(super) async fn ready(&self) -> bool {
        self.edges.met().await;
        self.config_maps.wait_until_ready().await.is_ok()
            && self.businesses.wait_until_ready().await.is_ok()
            && self.definition.clone().wait_for(Option::is_some).await.is_ok()
    }

    pub(super) fn compile(&self, stored: &Stored) -> Result<Arc<Compiled>, Rejection> {
        let generation = stored.generation();
        if let Some((of, result)) = &self.memory().entry(stored.uid().to_owned()).or_default().compiled
            && *of == generation
        {
            return result.clone();
        }
        // Without the lock: a large declaration takes milliseconds.
        let rejection =
            |problems| Rejection { business: stored.business_type().to_owned(), owner: stored.owner(), problems };
        let result =
            stored.declaration().map_err(rejection).and_then(|business| compile::compile_one(&business).map(Arc::new));
        let mut memory = self.memory();
        memory.entry(stored.uid().to_owned()).or_default().compiled = Some((generation, result.clone()));
        // Resources whose finalizer was taken off by force leave without a word.
        if memory.len() > 2 * self.businesses.len() + SLACK {
            let uids: HashSet<String> = self.businesses.state().iter().map(|stored| stored.uid().to_owned()).collect();
            memory.retain(|key, _| key.starts_with(BUSINESS) || uids.contains(key));
        }
        result
    }

    pub(super) fn outdated_definition(&self) -> Option<String> {
        self.definition.borrow().clone()?.err()
    }

    pub(super) async fn seed(&self) -> anyhow::Result<Seed> {
        self.seeds.get().await
    }

    pub(super) fn config_map(&self, business: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps.get(&ObjectRef::new(&config_map::name(business)).within(&self.options.namespace))
    }

    /// What was valid until now. The watch may lag behind our own last write.
    pub(super) fn rotation(&self, stored: &Stored) -> Option<Rotation> {
        if let Some(rotation) = self.memory().get(stored.uid()).and_then(|memory| memory.rotation.clone()) {
            return Some(rotation);
        }
        let config_map = self.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored))?;
        Rotation::kept(config_map.metadata.annotations.as_ref()?)
    }

    pub(super) fn remember_rotation(&self, stored: &Stored, rotation: &Rotation) {
        self.memory().entry(stored.uid().to_owned()).or_default().rotation = Some(rotation.clone());
    }

    /// Whether the Secret must be looked at: it should hold something else than at the last look, or that was long ago.
    pub(super) fn secret_is_due(&self, stored: &Stored, name: &str, entries: &BTreeMap<String, String>) -> bool {
        let memory = self.memory();
        let seen = memory.get(stored.uid()).and_then(|memory| memory.secret.as_ref());
        seen.is_none_or(|(of, held, at)| of != name || held != entries || at.elapsed() >= SECRET_LOOK * 8 / 10)
    }

    pub(super) fn secret_seen(&self, stored: &Stored, name: &str, entries: BTreeMap<String, String>) {
        let seen = (name.to_owned(), entries, Instant::now());
        self.memory().entry(stored.uid().to_owned()).or_default().secret = Some(seen);
    }

    /// Until the next look at the Secret: since the last one, however often the business was looked at for other reasons.
    pub(super) fn next_secret_look(&self, stored: &Stored) -> Duration {
        // Spread, so that a thousand businesses don't ask at the same moment.
        let between = SECRET_LOOK.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        let memory = self.memory();
        let seen = memory.get(stored.uid()).and_then(|memory| memory.secret.as_ref());
        // It is overdue where something else keeps it from being looked at.
        seen.map_or(between, |(_, _, at)| between.saturating_sub(at.elapsed()).max(SECRET_LOOK / 4))
    }

    /// What was last accepted, by this process or one before it.
    pub(super) fn good(&self, stored: &Stored) -> Option<Good> {
        if let Some(good) = self.memory().get(stored.uid()).and_then(|memory| memory.good.clone()) {
            return Some(good);
        }
        let map = self.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored))?;
        let then = config_map::declared(&map, stored)?;
        let good = Good::new(&then, Arc::new(then.compile_accepted()?));
        self.remember_good(stored, &good);
        Some(good)
    }

    pub(super) fn remember_good(&self, stored: &Stored, good: &Good) {
        self.memory().entry(stored.uid().to_owned()).or_default().good = Some(good.clone());
    }

    pub(super) fn expect_hash(&self, business: &str, hash: String) {
        self.memory().entry(format!("{BUSINESS}{business}")).or_default().hash = Some(hash);
    }

    /// How far the edges are with what was last written for them.
    pub(super) fn standing(&self, business: &str) -> Standing {
        let written = self.memory().get(&format!("{BUSINESS}{business}")).and_then(|memory| memory.hash.clone());
        // By another process, where this one has not written yet.
        let hash = written.or_else(|| self.config_map(business)?.annotations().get(HASH).cloned());
        self.edges.standing(business, &hash.unwrap_or_default())
    }

    /// Whether a status differs from the one that was just written, too.
    pub(super) fn is_news(&self, stored: &Stored, status: &WsBusinessStatus) -> bool {
        let memory = self.memory();
        let written = memory.get(stored.uid()).and_then(|memory| memory.status.as_ref());
        written.is_none_or(|(written, at)| at.elapsed() > WATCH_LAG || !same_but_times(written, status))
    }

    pub(super) fn wrote_status(&self, stored: &Stored, status: WsBusinessStatus) {
        self.memory().entry(stored.uid().to_owned()).or_default().status = Some((status, Instant::now()));
    }

    /// Remembers a status that the API server did not take; gives the one before.
    pub(super) fn told(&self, stored: &Stored, status: &WsBusinessStatus) -> Option<WsBusinessStatus> {
        self.memory().entry(stored.uid().to_owned()).or_default().told.replace(status.clone())
    }

    /// The next pause after a failure: twice the one before, with jitter.
    pub(super) fn backoff(&self, stored: &Stored) -> Duration {
        let mut memory = self.memory();
        let attempts = &mut memory.entry(stored.uid().to_owned()).or_default().attempts;
        *attempts = attempts.saturating_add(1);
        let (least, most) = BACKOFF;
        let pause = least.saturating_mul(1 << (*attempts - 1).min(10)).min(most);
        pause.mul_f64(0.5 + 0.5 * rand::random::<f64>())
    }

    pub(super) fn calm(&self, stored: &Stored) {
        self.memory().entry(stored.uid().to_owned()).or_default().attempts = 0;
    }

    pub(super) fn forget(&self, stored: &Stored) {
        let owner = stored.rival(&self.businesses).is_none();
        let mut memory = self.memory();
        memory.remove(stored.uid());
        if owner {
            memory.remove(&format!("{BUSINESS}{}", stored.business_type()));
        }
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.memories.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same_but_times(a: &WsBusinessStatus, b: &WsBusinessStatus) -> bool {
    let without = |status: &WsBusinessStatus| {
        let mut status = status.clone();
        for condition in &mut status.conditions {
            condition.last_transition_time.0 = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        }
        status
    };
    without(a) == without(b)
}
