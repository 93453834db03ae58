//! The other edges of the installation: where they are, how they are, and what they answer.
//!
//! They are found by DNS names, and tell each other of those they know, so that one that has just begun is known before
//! any DNS server knows it. Each is asked every second how it is. An edge that does not answer is *silent*: nothing is
//! known about its clients. One that refuses connections has none: its process is gone, or has not begun. Only an edge
//! that was found by a name, or has answered, counts.

mod ask;
mod known;
mod names;
mod spent;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{AcquireError, Notify, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_runtime::readiness::Pending;

use crate::{
    config::settings::Settings,
    identity::{keys::KeyRing, peer_seal::Seal},
    metrics::{Metrics, label},
    presence::{Part, Question},
};

use ask::Asker;
pub use ask::{SEAL, Silence, TO};
use known::Known;
pub use names::NameError;
use spent::Spent;

/// What `/readyz` waits for.
pub const PART: &str = "peers";
/// Where an edge answers others, on its admin port.
pub const PATH: &str = "/peers";
/// Other edges at most.
pub const MAX_PEERS: usize = 256;
/// Between two rounds of questions how the others are.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest time for one answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time until an edge that has just begun is ready though not all others have answered.
const FIRST_ROUND: Duration = Duration::from_secs(3);
/// Questions who is here that this edge asks the others at the same time.
const ASKING: usize = 4;
/// Those of one business, so that one alone can't hold all places, however slowly its questions are answered.
const ASKING_OF_ONE: usize = 2;
/// Those that it answers.
const ANSWERING: usize = 16;
/// Bytes of one page that all others send together, and at least of each.
const PAGES: usize = 8 << 20;
const SMALLEST_PAGE: usize = 64 << 10;

/// What an edge asks another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Asked {
    /// How it is.
    Load {
        /// Its process.
        instance: String,
        /// Where the asker answers itself; without an address: at the one that it asks from.
        at: SocketAddr,
    },
    /// Who is here.
    Presence(Question),
}

/// How an edge is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Its name.
    pub edge: String,
    /// Its process.
    pub instance: String,
    /// Its sockets.
    pub connections: u64,
    /// Those of them that were let go.
    pub leaving: u64,
    /// Its sockets at most.
    pub max_connections: u64,
    /// How long it has been running.
    pub seconds: u64,
    /// Whether it shuts down.
    pub draining: bool,
    /// Whether its broker takes messages.
    pub broker: bool,
    /// Other edges that have answered it a moment ago.
    pub peers: Vec<SocketAddr>,
}

/// Who is here, according to one edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Its name.
    pub edge: String,
    /// Its process.
    pub instance: String,
    /// What it knows.
    pub part: Part,
}

/// Another edge's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answered.
    Told(Told),
    /// It refuses connections: nobody is there.
    Gone(String),
    /// Nothing is known about it, for this reason.
    Unknown(String, String),
}

/// Too many questions are asked already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many questions wait for the other edges")]
pub struct Busy;

/// Not all of the other edges are known to be well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsure;

/// See the module.
pub struct Peers {
    instance: String,
    asker: Asker,
    names: Vec<String>,
    known: Mutex<Known>,
    /// One was heard of that has to be asked.
    news: Notify,
    spent: Mutex<Spent>,
    asking: Semaphore,
    /// The places of each business that asks.
    asking_of_one: Mutex<HashMap<String, Arc<Semaphore>>>,
    answering: Semaphore,
    metrics: Arc<Metrics>,
}

impl Peers {
    /// None is known yet.
    pub fn new(settings: &Settings, instance: &str, keys: Arc<KeyRing>, metrics: Arc<Metrics>) -> Self {
        for state in known::STATES {
            metrics.peers.get_or_create_owned(&label(state));
        }
        for outcome in ["complete", "incomplete", "busy", "of_a_peer"] {
            metrics.presence.get_or_create_owned(&label(outcome));
        }
        Self {
            instance: instance.to_owned(),
            asker: Asker::new(keys),
            names: settings.peers.clone(),
            known: Mutex::default(),
            news: Notify::new(),
            spent: Mutex::default(),
            asking: Semaphore::new(ASKING),
            asking_of_one: Mutex::default(),
            answering: Semaphore::new(ANSWERING),
            metrics,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there may be other edges.
    pub fn are_expected(&self) -> bool {
        !self.names.is_empty()
    }

    /// Finds and asks them until `cancel`. `at`: this edge's admin port. `pending` is dropped once they were asked.
    pub async fn run(&self, at: SocketAddr, mut pending: Option<Pending>, cancel: CancellationToken) {
        let Ok(hello) = ask::Question::new(&Asked::Load { instance: self.instance.clone(), at }) else { return };
        let begun = Instant::now();
        let rounds = async {
            loop {
                let next = Instant::now() + INTERVAL;
                if self.known().names_are_due() {
                    let found = names::resolve(&self.names).await;
                    if let Err(error) = &found {
                        tracing::debug!(%error, "other edges can't be found");
                    }
                    self.known().found(found);
                }
                self.round(&hello).await;
                if begun.elapsed() > FIRST_ROUND || self.known().have_spoken() {
                    pending.take();
                }
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    // At most some rounds more in a second, whatever others say.
                    () = async { self.news.notified().await; sleep(INTERVAL / 10).await } => {}
                }
            }
        };
        cancel.run_until_cancelled(rounds).await;
    }

    /// Asks each of them once how it is.
    async fn round(&self, hello: &ask::Question) {
        let asked = self.known().addresses();
        join_all(asked.into_iter().map(async |address| {
            let load = timeout(ANSWER_TIMEOUT, self.asker.ask::<Load>(address, None, hello)).await;
            let load = load.unwrap_or(Err(Silence::Timeout));
            self.known().heard(address, &self.instance, load);
        }))
        .await;
        let counts = self.known().settle();
        for (state, count) in known::STATES.into_iter().zip(counts) {
            self.metrics.peers.get_or_create(&label(state)).set(count as i64);
        }
    }

    /// Takes the seal of a question. Whether it is the first time.
    pub fn spend(&self, seal: &Seal, now: i64) -> bool {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner).spend(seal, now)
    }

    /// Another edge has asked how this one is, so it is one; to be asked at this address.
    pub fn has_asked(&self, address: SocketAddr, instance: &str) {
        if instance != self.instance && self.known().has_asked(address, instance) {
            self.news.notify_one();
        }
    }

    /// Those that have answered a moment ago.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.known().speaking()
    }

    /// The processes of those that answer, or may come back.
    pub fn instances(&self) -> HashSet<String> {
        self.known().instances()
    }

    /// How the others are.
    ///
    /// # Errors
    /// Not all are known to be well.
    pub fn loads(&self) -> Result<Vec<Load>, Unsure> {
        self.known().loads().ok_or(Unsure)
    }

    /// A place to answer a question who is here; `None`: too many are being answered.
    pub fn answering(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let place = self.answering.try_acquire().ok()?;
        self.metrics.presence.get_or_create(&label("of_a_peer")).inc();
        Some(place)
    }

    /// Where the questions of a business take turns.
    fn places_of(&self, business: &str) -> Arc<Semaphore> {
        let mut all = self.asking_of_one.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|name, places| name == business || Arc::strong_count(places) > 1);
        Arc::clone(all.entry(business.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(ASKING_OF_ONE))))
    }

    /// Asks all others who is here. Bounded in time; each of them is in the answer.
    ///
    /// # Errors
    /// Too many such questions are asked already.
    pub async fn ask(&self, question: &Question) -> Result<Vec<Answer>, Busy> {
        let (places, mut answers) = {
            let known = self.known();
            (known.places(), known.doubts())
        };
        if places.is_empty() {
            return Ok(answers);
        }
        let busy = |_| {
            self.metrics.presence.get_or_create(&label("busy")).inc();
            Busy
        };
        let of_one = self.places_of(&question.business);
        let place = async { Ok::<_, AcquireError>((of_one.acquire().await?, self.asking.acquire().await?)) };
        let place = timeout(ANSWER_TIMEOUT, place).await.map_err(busy)?;
        let mut question = question.clone();
        if let Some(page) = &mut question.page {
            page.bytes = Some((PAGES / places.len()).max(SMALLEST_PAGE));
        }
        let question = &ask::Question::new(&Asked::Presence(question));
        let told = join_all(places.into_iter().map(async |place| {
            if let Some(reason) = place.silent {
                return Answer::Unknown(place.name, reason);
            }
            let told = async {
                let process = Some(place.instance.as_str());
                self.asker.ask::<Told>(place.address, process, question.as_ref().map_err(Clone::clone)?).await
            };
            match timeout(ANSWER_TIMEOUT, told).await {
                Ok(Ok(told)) => Answer::Told(told),
                Ok(Err(Silence::Refused)) => Answer::Gone(place.name),
                Ok(Err(silence)) => Answer::Unknown(place.name, silence.to_string()),
                Err(_) => Answer::Unknown(place.name, Silence::Timeout.to_string()),
            }
        }))
        .await;
        drop(place);
        for answer in told {
            // One that is found by two addresses counts once; so does this edge itself.
            let again = |told: &Told| {
                told.instance == self.instance
                    || answers.iter().any(|one| matches!(one, Answer::Told(one) if one.instance == told.instance))
            };
            if !matches!(&answer, Answer::Told(told) if again(told)) {
                answers.push(answer);
            }
        }
        Ok(answers)
    }
}
