//! Key sets that an issuer serves. A failing issuer affects only its own businesses: nothing is fetched before a token
//! needs it, the last valid set stays in use, a call waits [`TIMEOUT`] at most, and a flood of unusual tokens does not
//! become a flood at the issuer. A fetch is a task of its own, so that a caller that disconnects does not cancel it.
//!
//! Businesses with the same URI share one source, also across a change of their configuration: a reload while the
//! issuer is down must not drop keys.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, LazyLock, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use serde_json::Value;
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::Instant,
};
use wirepost_runtime::tasks::{Supervisor, Tasks};

use super::key_set::{KeySet, KeySetError};

/// Longest time for a fetch. A token call promises an answer within two seconds.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// At most [`FETCHES`] fetches in this time, so that a new key works at its first use while random key ids reach the
/// issuer twice.
const COOL_DOWN: Duration = Duration::from_secs(10);
const FETCHES: usize = 2;
/// Least time between fetches while there is no set at all; longer than a fetch may take, so that not every call waits
/// for one.
const FIRST_COOL_DOWN: Duration = Duration::from_secs(3);
/// Age after which a set is fetched again: a key that the issuer revoked is dropped then.
const MAX_AGE: Duration = Duration::from_mins(5);
/// Largest answer.
const MAX_BYTES: usize = 256 << 10;

/// Why there is no key set. Names no internal host, since clients read it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Not attempted, because an attempt just failed.
    #[error("the last try failed a moment ago")]
    CoolDown,
    /// No connection.
    #[error("no connection to it")]
    Connect,
    /// Too slow.
    #[error("it did not answer in time")]
    Timeout,
    /// Not 200.
    #[error("it answered with status {0}")]
    Status(u16),
    /// Too much.
    #[error("its answer is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not JSON.
    #[error("its answer is not JSON")]
    NotJson,
    /// No usable key set.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
}

/// A key set and when it was fetched.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) set: KeySet,
    at: Instant,
}

/// One URI.
#[derive(Debug)]
pub(super) struct Source {
    uri: String,
    current: ArcSwapOption<Loaded>,
    /// Locked while fetching: one fetch at a time.
    history: Arc<tokio::sync::Mutex<History>>,
    /// Fetches that ended.
    ended: AtomicU64,
}

#[derive(Debug, Default)]
struct History {
    /// Starts of the last fetches.
    begun: VecDeque<Instant>,
    last_error: Option<FetchError>,
}

/// Sources in use. Shared by the process: the same URI serves the same bytes to every business.
static SOURCES: LazyLock<Mutex<HashMap<String, Weak<Source>>>> = LazyLock::new(Mutex::default);

/// One client for all issuers, because each carries the machine's root certificates. It keeps no connections: fetches
/// are rare.
static CLIENT: LazyLock<Option<reqwest::Client>> = LazyLock::new(|| {
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        .connect_timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .user_agent(concat!("wirepost-edge/", env!("CARGO_PKG_VERSION")))
        .build()
        .inspect_err(|error| tracing::error!(%error, "key sets can't be fetched: no HTTP client"))
        .ok()
});

/// Fetches in progress, one for each source. Like the sources they belong to the process, not to a business.
static FETCHING: OnceLock<Tasks> = OnceLock::new();

/// Counts the panics of fetches with those of the process's other tasks. Only the first call has an effect.
pub fn supervise(supervisor: &Supervisor) {
    FETCHING.get_or_init(|| supervisor.tasks());
}

impl Source {
    /// The source of a URI.
    pub(super) fn of(uri: &str) -> Arc<Self> {
        let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(uri).and_then(Weak::upgrade) {
            return source;
        }
        sources.retain(|_, source| source.strong_count() > 0);
        let source = Arc::new(Self {
            uri: uri.to_owned(),
            current: ArcSwapOption::empty(),
            history: Arc::default(),
            ended: AtomicU64::new(0),
        });
        sources.insert(uri.to_owned(), Arc::downgrade(&source));
        source
    }

    /// The current set; fetched first if there is none, and again if it is old.
    pub(super) async fn get(self: &Arc<Self>) -> Result<Arc<Loaded>, FetchError> {
        match self.current.load_full() {
            Some(loaded) if loaded.at.elapsed() <= MAX_AGE => Ok(loaded),
            Some(loaded) => {
                // The first call that finds it old fetches; others do not wait for it.
                if let Ok(history) = Arc::clone(&self.history).try_lock_owned() {
                    self.fetch_if_due(history).await;
                }
                Ok(self.current.load_full().unwrap_or(loaded))
            }
            None => {
                let error = self.refresh().await;
                self.current.load_full().ok_or(error.unwrap_or(FetchError::CoolDown))
            }
        }
    }

    /// A set that is newer than `known`, if one can be fetched now.
    pub(super) async fn newer_than(self: &Arc<Self>, known: &Arc<Loaded>) -> Option<Arc<Loaded>> {
        let newer = || self.current.load_full().filter(|current| !Arc::ptr_eq(current, known));
        if newer().is_none() {
            self.refresh().await;
        }
        newer()
    }

    /// Fetches, or waits for the current fetch. The last error, if the last fetch failed.
    async fn refresh(self: &Arc<Self>) -> Option<FetchError> {
        let ended = self.ended.load(Ordering::Acquire);
        let history = Arc::clone(&self.history).lock_owned().await;
        if self.ended.load(Ordering::Acquire) == ended {
            self.fetch_if_due(history).await
        } else {
            history.last_error.clone()
        }
    }

    /// Returns the last error afterwards. The caller may be cancelled: the fetch continues in its own task, and its
    /// result is for all. The task keeps the lock, so there is one for each source, and ends within [`TIMEOUT`].
    async fn fetch_if_due(self: &Arc<Self>, mut history: OwnedMutexGuard<History>) -> Option<FetchError> {
        let now = Instant::now();
        let known = self.current.load().is_some();
        let due = if known {
            history.begun.len() < FETCHES || history.begun.front().is_none_or(|begun| now - *begun >= COOL_DOWN)
        } else {
            history.begun.back().is_none_or(|begun| now - *begun >= FIRST_COOL_DOWN)
        };
        if !due {
            return history.last_error.clone();
        }
        if history.begun.len() == FETCHES {
            history.begun.pop_front();
        }
        history.begun.push_back(now);
        let source = Arc::clone(self);
        let (result, fetched) = oneshot::channel();
        FETCHING.get_or_init(|| Supervisor::default().tasks()).contained("key set fetch", async move {
            history.last_error = source.load(&mut history.begun, now, known).await;
            source.ended.fetch_add(1, Ordering::Release);
            // The caller may have left.
            drop(result.send(history.last_error.clone()));
        });
        // It panicked, or the process ends.
        fetched.await.unwrap_or(Some(FetchError::Connect))
    }

    async fn load(&self, begun: &mut VecDeque<Instant>, now: Instant, known: bool) -> Option<FetchError> {
        match fetch(&self.uri).await {
            Ok(set) => {
                if !known {
                    // Failed attempts before the first set must not delay its first rotation.
                    begun.retain(|begun| *begun == now);
                    tracing::info!(uri = self.uri, "key set of an issuer loaded");
                }
                self.current.store(Some(Arc::new(Loaded { set, at: Instant::now() })));
                None
            }
            Err(error) => {
                tracing::warn!(uri = self.uri, %error, known, "key set of an issuer can't be fetched; a known one stays in use");
                Some(error)
            }
        }
    }
}

async fn fetch(uri: &str) -> Result<KeySet, FetchError> {
    let client = CLIENT.as_ref().ok_or(FetchError::Connect)?;
    let classify = |error: reqwest::Error| if error.is_timeout() { FetchError::Timeout } else { FetchError::Connect };
    let mut response = client.get(uri).header("accept", "application/json").send().await.map_err(classify)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(classify)? {
        if body.len() + part.len() > MAX_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&part);
    }
    // Some serve a file with a byte order mark.
    let json = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
    let set: Value = serde_json::from_slice(json).map_err(|_| FetchError::NotJson)?;
    Ok(KeySet::parse(&set)?)
}

#[cfg(test)]
mod tests;
