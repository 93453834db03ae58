//! Key sets that an issuer serves. A failing issuer affects only its own businesses: nothing is fetched before a token
//! needs it, the last valid set stays in use, a call waits [`fetch::TIMEOUT`] at most, and a flood of unusual tokens does not
//! become a flood at the issuer. A fetch is a task of its own, so that a caller that disconnects does not cancel it.
//!
//! Businesses with the same address share one source, also across a change of their configuration: a reload while the
//! issuer is down must not drop keys.

pub(super) mod fetch;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, LazyLock, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::{Instant, timeout_at},
};
use wirepost_runtime::tasks::{Supervisor, Tasks};

use super::key_set::KeySet;
use fetch::{FetchError, Location};

/// At most [`FETCHES`] fetches in this time, so that a new key works at its first use while random key ids reach the
/// issuer twice.
const COOL_DOWN: Duration = Duration::from_secs(10);
const FETCHES: usize = 2;
/// Least time between fetches while there is no set at all; longer than a fetch may take, so that not every call waits
/// for one.
const FIRST_COOL_DOWN: Duration = Duration::from_secs(3);
/// Age after which a set is fetched again before it is used: a key that the issuer revoked is dropped then.
const MAX_AGE: Duration = Duration::from_mins(5);
/// Age from which a call has it fetched again, without waiting: a set in use never gets as old as [`MAX_AGE`].
const REFRESH_AGE: Duration = Duration::from_mins(4);

/// A key set and when it was fetched.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) set: KeySet,
    at: Instant,
}

/// One place of keys.
#[derive(Debug)]
pub(super) struct Source {
    location: Location,
    /// The hosts that the platform team trusts, as the newest configuration says.
    trusted: ArcSwap<Vec<String>>,
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

/// Sources in use. Shared by the process: the same place serves the same bytes to every business.
static SOURCES: LazyLock<Mutex<HashMap<Location, Weak<Source>>>> = LazyLock::new(Mutex::default);

/// Fetches in progress, one for each source. Like the sources they belong to the process, not to a business.
static FETCHING: OnceLock<Tasks> = OnceLock::new();

/// Counts the panics of fetches with those of the process's other tasks. Only the first call has an effect.
pub fn supervise(supervisor: &Supervisor) {
    FETCHING.get_or_init(|| supervisor.tasks());
}

impl Source {
    /// The source of a place. The trusted hosts are the same for all businesses; a change of them drops no keys.
    pub(super) fn of(location: Location, trusted: &[String]) -> Arc<Self> {
        let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(&location).and_then(Weak::upgrade) {
            source.trusted.store(Arc::new(trusted.to_vec()));
            return source;
        }
        sources.retain(|_, source| source.strong_count() > 0);
        let source = Arc::new(Self {
            location: location.clone(),
            trusted: ArcSwap::from_pointee(trusted.to_vec()),
            current: ArcSwapOption::empty(),
            history: Arc::default(),
            ended: AtomicU64::new(0),
        });
        sources.insert(location, Arc::downgrade(&source));
        source
    }

    /// The current set; fetched first if there is none, and again if it is old.
    pub(super) async fn get(self: &Arc<Self>) -> Result<Arc<Loaded>, FetchError> {
        match self.current.load_full() {
            Some(loaded) if loaded.at.elapsed() <= MAX_AGE => {
                if loaded.at.elapsed() > REFRESH_AGE
                    && let Ok(history) = Arc::clone(&self.history).try_lock_owned()
                {
                    // Nobody waits for it.
                    drop(self.begin(history));
                }
                Ok(loaded)
            }
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

    /// A set that is newer than `known`, if one can be fetched now, for a call that began at `asked`: it waits
    /// [`fetch::TIMEOUT`] in all, and not again for what was fetched since.
    pub(super) async fn newer_than(self: &Arc<Self>, known: &Arc<Loaded>, asked: Instant) -> Option<Arc<Loaded>> {
        let newer = || self.current.load_full().filter(|current| !Arc::ptr_eq(current, known));
        if newer().is_none() && known.at < asked {
            // In time or not: what is known then decides. The fetch goes on.
            let _ = timeout_at(asked + fetch::TIMEOUT, self.refresh()).await;
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

    /// Returns the last error afterwards.
    async fn fetch_if_due(self: &Arc<Self>, history: OwnedMutexGuard<History>) -> Option<FetchError> {
        match self.begin(history) {
            // It panicked, or the process ends.
            Ok(fetched) => fetched.await.unwrap_or(Some(FetchError::Connect)),
            Err(last) => last,
        }
    }

    /// Begins a fetch if one is due; else the last error. The caller may be cancelled: the fetch continues in its own
    /// task, and its result is for all. The task keeps the lock, so there is one for each source, and ends within
    /// [`fetch::TIMEOUT`].
    fn begin(
        self: &Arc<Self>,
        mut history: OwnedMutexGuard<History>,
    ) -> Result<oneshot::Receiver<Option<FetchError>>, Option<FetchError>> {
        let now = Instant::now();
        let known = self.current.load().is_some();
        let due = if known {
            history.begun.len() < FETCHES || history.begun.front().is_none_or(|begun| now - *begun >= COOL_DOWN)
        } else {
            history.begun.back().is_none_or(|begun| now - *begun >= FIRST_COOL_DOWN)
        };
        if !due {
            return Err(history.last_error.clone());
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
        Ok(fetched)
    }

    async fn load(&self, begun: &mut VecDeque<Instant>, now: Instant, known: bool) -> Option<FetchError> {
        match fetch::fetch(&self.location, &self.trusted.load_full()).await {
            Ok(set) => {
                if !known {
                    // Failed attempts before the first set must not delay its first rotation.
                    begun.retain(|begun| *begun == now);
                    tracing::info!(keys = %self.location, "key set of an issuer loaded");
                }
                self.current.store(Some(Arc::new(Loaded { set, at: Instant::now() })));
                None
            }
            Err(error) => {
                tracing::warn!(keys = %self.location, %error, known, "key set of an issuer can't be fetched; a known one stays in use");
                Some(error)
            }
        }
    }
}

#[cfg(test)]
mod tests;
