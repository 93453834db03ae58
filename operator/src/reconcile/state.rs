//! What this process remembers about each resource between two reconciles. All of it only saves work: a process that has forgotten everything
//! comes to the same result.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use wirepost_core::{Compiled, Problem, Rejection, business::WsBusinessStatus};
use wirepost_runtime::backoff::Backoff;

use super::{accept::AcceptedDeclaration, phase::Delivered};
use crate::{
    access::Rotation,
    classes::Class,
    conditions::{self, Policy},
    stored::StoredBusiness,
};

/// How long the watch may take to bring back what we wrote.
const WATCH_LAG: Duration = Duration::from_secs(5);
/// Least time until a delayed status is checked again.
const MIN_DELAY: Duration = Duration::from_millis(50);
/// Pauses after failures: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Entries of resources that no longer exist, beyond which such entries are searched and removed.
const MAX_STALE: usize = 1024;

/// What is remembered of every resource, by uid, and of every business.
#[derive(Debug, Default)]
pub struct ResourceStates(Mutex<States>);

#[derive(Debug, Default)]
struct States {
    resources: HashMap<String, ResourceState>,
    /// Business type → hash of the edge configuration that was last written.
    hashes: HashMap<String, String>,
    /// Business type → the `resourceVersion` of its edge configuration before and after the last write.
    versions: HashMap<String, (Option<String>, Option<String>)>,
}

/// What is remembered of one resource.
#[derive(Debug)]
pub(super) struct ResourceState {
    /// The last input of the compiler, and its result.
    pub(super) compiled: Option<(Input, Result<Judged, Rejection>)>,
    /// The generation for which an event has reported that an older CustomResourceDefinition blocks it.
    pub(super) held_back: Option<i64>,
    /// The last accepted declaration, whatever was declared since.
    pub(super) accepted: Option<AcceptedDeclaration>,
    /// What a person has allowed to destroy and is done: [`Reconcile::used_allowance`](super::Reconcile::used_allowance).
    pub(super) used_allowance: Option<String>,
    /// The broker says that its business type is another namespace's.
    pub(super) is_anothers: bool,
    /// What its class forbids in the present generation.
    pub(super) policy: Option<Policy>,
    pub(super) rotation: Option<Rotation>,
    /// The annotation that revokes credentials, as it was last seen; empty: there was none.
    pub(super) revoke_asked: Option<String>,
    /// The edge configuration as it was last written.
    pub(super) delivered: Option<Delivered>,
    /// The access Secret at its last check; `None` = it has to be checked now.
    pub(super) secret: Option<SecretCheck>,
    /// How often the watch reported a change of the Secret.
    pub(super) secret_changes: u64,
    /// Status as last written, which the watch may not have brought back yet.
    status: Option<(WsBusinessStatus, Instant)>,
    /// The last status was not written since it equals the one just written. What the watch showed may also have been someone's edit.
    status_withheld: bool,
    /// When a status that often passes is written, if it lasts that long.
    status_held_until: Option<Instant>,
    /// Status that the API server refused to store.
    pub(super) unwritten_status: Option<WsBusinessStatus>,
    pub(super) backoff: Backoff,
}

impl Default for ResourceState {
    fn default() -> Self {
        let (first, longest) = BACKOFF;
        Self {
            compiled: None,
            held_back: None,
            accepted: None,
            used_allowance: None,
            is_anothers: false,
            policy: None,
            rotation: None,
            revoke_asked: None,
            delivered: None,
            secret: None,
            secret_changes: 0,
            status: None,
            status_withheld: false,
            status_held_until: None,
            unwritten_status: None,
            backoff: Backoff::new(first, longest),
        }
    }
}

/// What a generation is compiled from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Input {
    /// [`StoredBusiness::fingerprint`].
    pub(super) declaration: [u8; 32],
    /// The terms of its class.
    pub(super) terms: Option<Arc<str>>,
    /// The class that it is checked by.
    pub(super) class: Option<Arc<Class>>,
}

/// What a generation is compiled to, and what its class forbids in it.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) compiled: Arc<Compiled>,
    /// The terms of [`Input`], if they filled in anything.
    pub(super) terms: Option<Arc<str>>,
    pub(super) forbidden: Arc<[Problem]>,
}

/// An access Secret as it was last checked.
#[derive(Debug)]
pub(super) struct SecretCheck {
    name: String,
    entries: BTreeMap<String, String>,
    /// Of the resource: see [`revision`].
    revision: u64,
    /// When it is checked again, if nothing happens before.
    pub(super) next: Instant,
}

impl SecretCheck {
    /// The Secret has these entries now. The next check is due within `interval`, at a random time in its second half: a thousand Secrets
    /// that were checked together, as at the start, are not checked together again.
    pub(super) fn new(
        stored: &StoredBusiness,
        name: &str,
        entries: BTreeMap<String, String>,
        interval: Duration,
    ) -> Self {
        let next = Instant::now() + interval.mul_f64(0.5 + 0.5 * rand::random::<f64>());
        Self { name: name.to_owned(), entries, revision: revision(stored), next }
    }

    /// Whether no other check is needed: the same Secret should have the same entries, the resource was not touched, and the next check is
    /// not due.
    pub(super) fn is_fresh(&self, stored: &StoredBusiness, name: &str, entries: &BTreeMap<String, String>) -> bool {
        self.name == name && self.entries == *entries && self.revision == revision(stored) && Instant::now() < self.next
    }
}

/// Changes with everything that people change in a resource, and not with its status.
fn revision(stored: &StoredBusiness) -> u64 {
    let mut hasher = DefaultHasher::new();
    let metadata = &stored.metadata;
    (&metadata.generation, &metadata.labels, &metadata.annotations).hash(&mut hasher);
    hasher.finish()
}

impl ResourceState {
    /// Whether `status` differs from the one that was just written, too.
    pub(super) fn is_news(&mut self, status: &WsBusinessStatus) -> bool {
        let Some((written, at)) = &self.status else { return true };
        let news = at.elapsed() > WATCH_LAG || !conditions::same_but_times(written, status);
        self.status_withheld = !news;
        news
    }

    /// Whether a status that often passes must not be written yet, and whether its delay begins now. The delay varies by half, so that a
    /// thousand businesses do not write at the same time.
    pub(super) fn hold_status(&mut self, delay: Duration) -> (bool, bool) {
        let now = Instant::now();
        let begins = self.status_held_until.is_none();
        let until =
            *self.status_held_until.get_or_insert_with(|| now + delay.mul_f64(1.0 + 0.5 * rand::random::<f64>()));
        (now < until, begins)
    }

    /// Whether a status is delayed.
    pub(super) fn holds_status(&self) -> bool {
        self.status_held_until.is_some()
    }

    /// The status equals the stored one, is written now, or can't be written.
    pub(super) fn release_status(&mut self) {
        self.status_held_until = None;
    }

    /// When a status that was not written is due: once the watch has surely caught up, or the delay has passed.
    pub(super) fn status_due(&mut self) -> Option<Duration> {
        let withheld = std::mem::take(&mut self.status_withheld).then_some(WATCH_LAG + Duration::from_secs(1));
        // After its delay the next run that gets this far writes it; whatever prevents a run has a retry of its own.
        let held = self.status_held_until.map(|until| until.saturating_duration_since(Instant::now()));
        let held = held.filter(|left| !left.is_zero()).map(|left| left.max(MIN_DELAY));
        withheld.into_iter().chain(held).min()
    }

    pub(super) fn wrote_status(&mut self, status: WsBusinessStatus) {
        self.status = Some((status, Instant::now()));
    }
}

impl ResourceStates {
    /// Reads or changes what is remembered of a resource.
    pub(super) fn of<T>(&self, stored: &StoredBusiness, read: impl FnOnce(&mut ResourceState) -> T) -> T {
        let mut states = self.lock();
        if let Some(state) = states.resources.get_mut(stored.uid()) {
            return read(state);
        }
        read(states.resources.entry(stored.uid().to_owned()).or_default())
    }

    /// The access Secret of the resource with this uid may have changed.
    pub(crate) fn secret_changed(&self, uid: &str) {
        if let Some(state) = self.lock().resources.get_mut(uid) {
            state.secret = None;
            state.secret_changes += 1;
        }
    }

    /// The hash of the edge configuration that this process last wrote for a business.
    pub(super) fn hash(&self, business: &str) -> Option<String> {
        self.lock().hashes.get(business).cloned()
    }

    pub(super) fn set_hash(&self, business: &str, hash: String) {
        self.lock().hashes.insert(business.to_owned(), hash);
    }

    /// The `resourceVersion` of a business's edge configuration. The watch `shows` the version before our last write, or a later one.
    pub(super) fn version(&self, business: &str, shows: Option<String>) -> Option<String> {
        match self.lock().versions.get(business) {
            Some((before, written)) if *before == shows => written.clone(),
            _ => shows,
        }
    }

    /// An edge configuration was written while the watch showed this version of it.
    pub(super) fn set_version(&self, business: &str, shows: Option<String>, written: Option<String>) {
        self.lock().versions.insert(business.to_owned(), (shows, written));
    }

    /// What was written is no longer known.
    pub(super) fn forget_version(&self, business: &str) {
        self.lock().versions.remove(business);
    }

    /// Forgets a resource; with `business`, that business too.
    pub(super) fn forget(&self, stored: &StoredBusiness, business: Option<&str>) {
        let mut states = self.lock();
        states.resources.remove(stored.uid());
        if let Some(business) = business {
            states.hashes.remove(business);
            states.versions.remove(business);
        }
    }

    /// Forgets resources that left without a reconcile: their finalizer was removed by force. `existing`: how many resources there are, and
    /// their uids.
    pub(super) fn forget_stale(&self, existing: usize, uids: impl FnOnce() -> HashSet<String>) {
        let mut states = self.lock();
        if states.resources.len() > 2 * existing + MAX_STALE {
            let uids = uids();
            states.resources.retain(|uid, _| uids.contains(uid));
        }
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(change: impl FnOnce(&mut serde_json::Value)) -> StoredBusiness {
        let mut value = json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "spec": {},
            "metadata": {"name": "pay", "namespace": "shop", "uid": "1", "generation": 3, "resourceVersion": "7"},
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_is_checked_again_when_anything_that_people_change_has_changed_or_the_time_has_come() {
        const INTERVAL: Duration = Duration::from_mins(5);
        let entries = BTreeMap::from([("password".to_owned(), "x".to_owned())]);
        let checked = stored(|_| {});
        let check = SecretCheck::new(&checked, "shop", entries.clone(), INTERVAL);
        assert!(check.is_fresh(&checked, "shop", &entries));
        assert!(!check.is_fresh(&checked, "other", &entries));
        assert!(!check.is_fresh(&checked, "shop", &BTreeMap::new()));
        for change in [
            json!({"annotations": {"example.com/check": "now"}}),
            json!({"labels": {"team": "shop"}}),
            json!({"generation": 4}),
        ] {
            let touched = stored(|value| {
                let metadata = value["metadata"].as_object_mut().unwrap();
                metadata.extend(change.as_object().unwrap().clone());
            });
            assert!(!check.is_fresh(&touched, "shop", &entries), "{change}");
        }
        // As our own writes of the status do.
        let reported = stored(|value| {
            value["metadata"]["resourceVersion"] = json!("8");
            value["status"] = json!({"observedGeneration": 3});
        });
        assert!(check.is_fresh(&reported, "shop", &entries));
        tokio::time::advance(INTERVAL * 2 / 5).await;
        assert!(check.is_fresh(&checked, "shop", &entries));
        tokio::time::advance(INTERVAL * 3 / 5 + Duration::from_secs(1)).await;
        assert!(!check.is_fresh(&checked, "shop", &entries));
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_may_be_over_soon_is_held_for_the_delay_and_at_most_half_of_it_more() {
        const DELAY: Duration = Duration::from_secs(30);
        let mut state = ResourceState::default();
        assert_eq!((state.hold_status(DELAY), state.hold_status(DELAY)), ((true, true), (true, false)));
        let due = state.status_due().unwrap();
        assert!(due >= DELAY && due <= DELAY.mul_f64(1.5), "{due:?}");
        tokio::time::advance(due).await;
        assert_eq!(state.hold_status(DELAY), (false, false));
        assert_eq!(state.status_due(), None, "a run that can't write it is not repeated at once");
        // It passed in between: the next one has the full delay again.
        state.release_status();
        assert_eq!(state.hold_status(DELAY), (true, true));
    }

    #[test]
    fn what_left_without_a_reconcile_is_forgotten_once_there_is_much_of_it() {
        let states = ResourceStates::default();
        let resource = |n: usize| stored(|value| value["metadata"]["uid"] = json!(n.to_string()));
        for n in 0..=MAX_STALE + 2 {
            states.of(&resource(n), |_| {});
            states.forget_stale(1, || HashSet::from(["0".to_owned()]));
        }
        assert_eq!(states.lock().resources.keys().collect::<Vec<_>>(), ["0"]);
    }
}
