//! The brake on mass deletion. A deleted CRD, a pruned directory in Git or a deleted namespace deletes many businesses within a second, and
//! this is usually a mistake. So while most businesses of an installation would end at the same time, none does: clients stay connected, the
//! broker keeps everything, and an administrator decides.
//!
//! **Release.** The annotation [`ALLOW`] of the Lease, a time until which such deletions are intended. It expires, so it can't be forgotten.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{AUDIT, events::Events, metrics::Metrics, triggers::Triggers};

/// Annotation of the Lease: until when any number of businesses may end (RFC 3339).
pub const ALLOW: &str = "wirepost.dev/allow-deletions-until";
/// Fewer businesses than this are never held, even if they are all.
const MIN: usize = 3;
/// How long an ended business counts as ending now.
const RECENT: Duration = Duration::from_mins(10);
/// Ended businesses that are remembered.
const MAX_RECENT: usize = 4096;
/// A deletion waits until no other has come for this long, to see how many there are.
const QUIET: Duration = Duration::from_secs(2);
/// The longest such wait.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Between two reads of the Lease while deletions are held.
const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(4);
/// Without a question for this long, nothing is held any more.
const FORGOTTEN: Duration = Duration::from_mins(1);

/// See the module.
pub struct Brake {
    /// Off: for an installation whose businesses come and go together, such as one for tests.
    enabled: bool,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Businesses on the broker whose removal is held, as of the last sweep.
    orphans: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// When the last new deletion was seen, and of which resources, by uid.
    newest: Option<Instant>,
    seen: HashMap<String, Instant>,
    /// Businesses that have ended, and when.
    ended: HashMap<String, Instant>,
    /// Until when an administrator allows it.
    allowed: Option<Timestamp>,
    /// When a deletion was last held.
    held: Option<Instant>,
}

/// Whether a deletion may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Go,
    /// Others may follow: ask again after this time.
    Wait(Duration),
    /// This many of all businesses would end: an administrator decides.
    Held {
        /// The businesses that would end.
        ending: usize,
        /// All businesses.
        all: usize,
    },
}

impl Brake {
    /// Nothing is held yet.
    pub fn new(enabled: bool, metrics: Arc<Metrics>) -> Self {
        Self { enabled, metrics, state: Mutex::default(), orphans: AtomicUsize::new(0) }
    }

    /// Whether the deletion of the resource `uid` may go on. `has_begun`: its clients are gone already, so it is only counted for others.
    /// `ending`: businesses whose resources are being deleted or gone; `others`: those of all other resources.
    pub fn ask(&self, uid: &str, has_begun: bool, ending: &BTreeSet<String>, others: &BTreeSet<String>) -> Verdict {
        if !self.enabled {
            return Verdict::Go;
        }
        let mut state = self.lock();
        let now = Instant::now();
        let first_seen = state.first_seen(uid, now);
        if has_begun {
            return Verdict::Go;
        }
        let quiet = state.newest.map_or(QUIET, |newest| now - newest);
        if quiet < QUIET && now - first_seen < MAX_WAIT {
            return Verdict::Wait(QUIET.saturating_sub(quiet));
        }
        let (ending, all) = state.count(ending, others, now);
        if state.may_end(ending, all, now) { Verdict::Go } else { Verdict::Held { ending, all } }
    }

    /// Whether these businesses may end, while all `others` go on.
    pub fn may_end(&self, ending: &BTreeSet<String>, others: &BTreeSet<String>) -> bool {
        if !self.enabled {
            return true;
        }
        let (mut state, now) = (self.lock(), Instant::now());
        let (ending, all) = state.count(ending, others, now);
        state.may_end(ending, all, now)
    }

    /// The same for businesses on the broker that no resource claims; if they may, they count as ended.
    pub fn may_orphans_end(&self, ending: &BTreeSet<String>, others: &BTreeSet<String>) -> bool {
        let may = ending.is_empty() || self.may_end(ending, others);
        self.orphans.store(if may { 0 } else { ending.len() }, Ordering::Relaxed);
        if may {
            let mut state = self.lock();
            for business in ending {
                state.ended(business);
            }
        }
        may
    }

    /// A business has ended.
    pub fn ended(&self, business: &str, uid: &str) {
        let mut state = self.lock();
        state.seen.remove(uid);
        state.ended(business);
    }

    /// Reads what an administrator allows while deletions are held, and reports both.
    pub async fn run(
        self: Arc<Self>,
        client: Client,
        namespace: String,
        lease: String,
        events: Events,
        triggers: Arc<Triggers>,
        cancel: CancellationToken,
    ) {
        let leases: Api<Lease> = Api::namespaced(client, &namespace);
        let mut reported = false;
        loop {
            tokio::select! {
                () = sleep(INTERVAL) => {}
                () = cancel.cancelled() => return,
            }
            let holds = self.holds();
            self.metrics.deletions_held.set(i64::from(holds));
            if !holds {
                reported = false;
                continue;
            }
            let lease = match timeout(TIMEOUT, leases.get(&lease)).await {
                Ok(Ok(lease)) => lease,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot read the Lease, so deletions stay on hold; trying again");
                    continue;
                }
                Err(_) => continue,
            };
            if !reported {
                let orphans = self.orphans.load(Ordering::Relaxed);
                let note = format!(
                    "most businesses would end at the same time{}; none of their objects is removed until an administrator confirms it: {}",
                    if orphans > 0 { format!(" ({orphans} on the broker have no resource)") } else { String::new() },
                    release(&namespace, &lease.name_any()),
                );
                tracing::error!("{note}");
                events.held(lease.object_ref(&()), &note).await;
                reported = true;
            }
            let allowed = lease.annotations().get(ALLOW).and_then(|text| text.parse::<Timestamp>().ok());
            let news = {
                let mut state = self.lock();
                let news = state.allowed != allowed;
                state.allowed = allowed;
                news
            };
            if news && allowed.is_some_and(|until| Timestamp::now() < until) {
                tracing::warn!(target: AUDIT, action = "allow_mass_deletion", outcome = "done", "an administrator has confirmed that most businesses may end");
                triggers.trigger_all();
            }
        }
    }

    /// Whether something was held just now.
    fn holds(&self) -> bool {
        let mut state = self.lock();
        state.held = state.held.filter(|held| held.elapsed() < FORGOTTEN);
        state.held.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn first_seen(&mut self, uid: &str, now: Instant) -> Instant {
        if let Some(seen) = self.seen.get(uid) {
            return *seen;
        }
        if self.seen.len() >= MAX_RECENT {
            self.seen.retain(|_, seen| now - *seen < RECENT);
        }
        self.newest = Some(now);
        self.seen.insert(uid.to_owned(), now);
        now
    }

    fn ended(&mut self, business: &str) {
        if self.ended.len() < MAX_RECENT {
            self.ended.insert(business.to_owned(), Instant::now());
        }
    }

    /// How many businesses end or have just ended, and how many there are including them. A business that came back does not count as ended.
    fn count(&mut self, ending: &BTreeSet<String>, others: &BTreeSet<String>, now: Instant) -> (usize, usize) {
        self.ended.retain(|_, at| now - *at < RECENT);
        let recent = self.ended.keys().filter(|business| !ending.contains(*business) && !others.contains(*business));
        let ending = ending.len() + recent.count();
        (ending, ending + others.len())
    }

    fn may_end(&mut self, ending: usize, all: usize, now: Instant) -> bool {
        if !is_mass(ending, all) {
            return true;
        }
        if self.allowed.is_some_and(|until| Timestamp::now() < until) {
            return true;
        }
        self.held = Some(now);
        false
    }
}

fn is_mass(ending: usize, all: usize) -> bool {
    ending >= MIN && ending * 2 > all
}

/// The command that releases the brake for an hour.
pub fn release(namespace: &str, lease: &str) -> String {
    format!(
        "kubectl -n {namespace} annotate lease {lease} --overwrite {ALLOW}=\"$(date -u -d '+1 hour' +%Y-%m-%dT%H:%M:%SZ)\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_after_the_other_counts_as_many_and_what_came_back_does_not() {
        let brake = Brake::new(true, Arc::default());
        let all = ["a", "b", "c", "d"];
        for (i, gone) in ["a", "b"].into_iter().enumerate() {
            assert!(matches!(brake.ask(gone, false, &names(&[gone]), &names(&all[i + 1..])), Verdict::Wait(_)));
            tokio::time::advance(QUIET).await;
            assert_eq!(brake.ask(gone, false, &names(&[gone]), &names(&all[i + 1..])), Verdict::Go);
            brake.ended(gone, gone);
        }
        tokio::time::advance(QUIET).await;
        brake.ask("c", false, &names(&["c"]), &names(&["d"]));
        tokio::time::advance(QUIET).await;
        assert_eq!(brake.ask("c", false, &names(&["c"]), &names(&["d"])), Verdict::Held { ending: 3, all: 4 });
        assert!(brake.holds());
        assert_eq!(brake.ask("c", true, &names(&["c"]), &names(&["d"])), Verdict::Go, "its clients are gone already");
        assert_eq!(brake.ask("c", false, &names(&["c"]), &names(&["d", "a", "b"])), Verdict::Go);
    }

    #[tokio::test(start_paused = true)]
    async fn orphans_that_fall_due_a_few_at_a_time_are_a_mass_too() {
        let brake = Brake::new(true, Arc::default());
        assert!(brake.may_orphans_end(&names(&["a", "b"]), &names(&["c", "d", "e"])));
        assert!(brake.may_orphans_end(&names(&["b"]), &names(&["c", "d", "e"])), "those that are under way");
        assert!(!brake.may_orphans_end(&names(&["c"]), &names(&["d", "e"])));
        assert!(brake.may_orphans_end(&names(&[]), &names(&["c", "d", "e"])));
        assert!(!brake.may_end(&names(&["c"]), &names(&["d", "e"])), "nor those whose edges would follow");
        tokio::time::advance(RECENT).await;
        assert!(brake.may_orphans_end(&names(&["c"]), &names(&["d", "e"])));
    }

    #[test]
    fn most_of_three_or_more_is_a_mass() {
        for (ending, all, mass) in [(2, 2, false), (3, 3, true), (3, 6, false), (4, 6, true), (0, 0, false)] {
            assert_eq!(is_mass(ending, all), mass, "{ending} of {all}");
        }
    }
}
