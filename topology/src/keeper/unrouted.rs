//! Messages in `unrouted`: which businesses have some, and moving them back once their bindings are right.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use wirepost_core::names;
use wirepost_rabbitmq::Connection;

use super::{
    Desired, Event,
    actor::{Actor, Finished},
};
use crate::{
    Error, Snapshot,
    unrouted::{self, Links, Moved, Stopped},
};

/// Between two checks of what `unrouted` contains.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);
/// In how many sweeps every business's `unrouted` is checked once, whatever else happened.
const SWEEPS: usize = 3;
/// Businesses whose messages are moved at the same time.
const MOVES: usize = 4;
/// How long strays are left where they are, as long as no others come and nothing changes.
const STRAYS_INTERVAL: Duration = Duration::from_hours(1);

/// See the module.
#[derive(Default)]
pub(super) struct Unrouted {
    /// Businesses to check.
    due: HashSet<String>,
    /// A count is under way.
    counting: bool,
    /// Businesses with messages that are moved once a snapshot shows that their bindings are right, and their counts.
    waiting: HashMap<String, u32>,
    /// When these were counted: a snapshot that was begun before says nothing about them.
    counted: Option<Instant>,
    /// Businesses whose messages are being moved.
    moving: HashSet<String>,
    /// Businesses with messages that wait for a link: how many messages there were, what led there, and when that was.
    without_link: HashMap<String, (u32, Links, Instant)>,
    sweeps: usize,
}

/// Messages of one business that no route takes.
#[derive(Clone, Copy)]
pub(super) struct Strays {
    pub(super) count: u32,
    /// How many messages need no check, and since when.
    checked: Option<(u32, Instant)>,
}

/// Messages in `unrouted`, by business.
pub(super) struct Counted {
    /// Businesses that were asked about.
    businesses: Vec<String>,
    /// Those that have messages; `None` = they can't be counted.
    messages: Option<HashMap<String, u32>>,
}

/// One run of [`unrouted::move_back`].
pub(super) struct FinishedMove {
    business: String,
    desired: Arc<Desired>,
    links: Links,
    /// Messages that were there before.
    messages: u32,
    moved: Result<Moved, Error>,
}

impl Unrouted {
    /// Something of the business has changed.
    pub(super) fn check_soon(&mut self, business: String) {
        self.due.insert(business);
    }

    pub(super) fn forget(&mut self, business: &str) {
        self.due.remove(business);
        self.without_link.remove(business);
    }

    /// Whether a run would find what the last one has found: the same messages wait, for the same link.
    fn waits_as_before(&self, business: &str, messages: u32, links: &Links) -> bool {
        let before = self.without_link.get(business);
        before.is_some_and(|(count, led, at)| *count == messages && led == links && at.elapsed() < STRAYS_INTERVAL)
    }

    /// The broker is away: what was counted is counted again.
    pub(super) fn nothing_is_known(&mut self) {
        self.waiting.clear();
    }

    /// A part of all businesses is due with each sweep.
    pub(super) fn begin_sweep<'a>(&mut self, businesses: impl Iterator<Item = &'a String>) {
        self.sweeps = (self.sweeps + 1) % SWEEPS;
        let part = businesses.enumerate().filter(|(i, _)| i % SWEEPS == self.sweeps).map(|(_, name)| name.clone());
        self.due.extend(part);
    }
}

impl Actor {
    /// Begins to count the messages of the businesses that are due.
    pub(super) fn check_unrouted(&mut self) {
        if !self.context.may_write() || self.snapshots.is_down() {
            return;
        }
        self.report_strays();
        let Unrouted { due, counting, moving, .. } = &mut self.unrouted;
        let ready = |name: &&String| self.businesses.contains(name) && !moving.contains(*name);
        let businesses: Vec<String> = due.iter().filter(ready).cloned().collect();
        if businesses.is_empty() || *counting {
            return;
        }
        *counting = true;
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let asked = &businesses;
            let count = |connection: Arc<Connection>| async move { unrouted::waiting(&connection, asked).await };
            let messages = context.by_amqp(count).await.ok().map(|messages| messages.into_iter().collect());
            Finished::Counted(Counted { businesses, messages })
        });
    }

    /// Begins to move the messages that were found, once a snapshot shows that their bindings are right.
    pub(super) fn unrouted_counted(&mut self, counted: Counted) {
        self.unrouted.counting = false;
        let Counted { businesses, messages: Some(messages) } = counted else { return };
        for business in &businesses {
            let Some(state) = self.businesses.get_mut(business) else { continue };
            let Some(messages) = messages.get(business) else {
                state.strays = None;
                self.unrouted.due.remove(business);
                continue;
            };
            // To take them out and put them back costs the broker log entries that it can't drop while the oldest stays.
            if let Some((checked, at)) = state.strays.as_mut().and_then(|strays| strays.checked.as_mut()) {
                // Those that a person has removed make no room for others.
                *checked = (*checked).min(*messages);
                if checked == messages && at.elapsed() < STRAYS_INTERVAL {
                    self.unrouted.due.remove(business);
                }
            }
        }
        let waiting: Vec<(String, u32)> =
            messages.into_iter().filter(|(business, _)| self.unrouted.due.contains(business)).collect();
        if waiting.is_empty() {
            return;
        }
        // Most likely a binding has just been lost: moved now, the first message would come back, behind all the others.
        self.unrouted.waiting.extend(waiting);
        self.unrouted.counted = Some(Instant::now());
        self.want_snapshot();
    }

    /// Begins to move the messages of businesses that this snapshot, begun at that time, shows to be as declared.
    pub(super) fn move_intact(&mut self, snapshot: &Snapshot, unsettled: &HashSet<String>, begun: Instant) {
        if self.unrouted.waiting.is_empty() {
            return;
        }
        if self.unrouted.counted.is_some_and(|counted| begun < counted) {
            self.want_snapshot();
            return;
        }
        let intact = self.find_drift(snapshot, unsettled);
        // What those declare that were not ensured yet is not known: their messages wait.
        let claimed = self.context.owner.claimed();
        let unknown = claimed.iter().flatten().filter(|business| !self.businesses.contains(business));
        let unknown: BTreeSet<String> = unknown.map(|business| names::share_exchange(business)).collect();
        for (business, messages) in std::mem::take(&mut self.unrouted.waiting) {
            let ready = intact.contains(&business) && !self.unrouted.moving.contains(&business);
            if self.unrouted.moving.len() == MOVES || !ready {
                continue;
            }
            let mut declared = self.businesses.links_to(&business);
            declared.extend(unknown.iter().cloned());
            let links = Links { present: snapshot.links_to(&business), declared };
            if self.unrouted.waits_as_before(&business, messages, &links) {
                self.unrouted.due.remove(&business);
            } else {
                self.move_back(business, messages, links);
            }
        }
    }

    fn move_back(&mut self, business: String, messages: u32, links: Links) {
        tracing::debug!(business, messages, "moving unrouted messages back");
        self.unrouted.due.remove(&business);
        self.unrouted.moving.insert(business.clone());
        let desired = self.businesses.get_mut(&business).map(|state| Arc::clone(&state.desired)).unwrap_or_default();
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let moved = async {
                let endpoint = context.amqp.endpoint()?;
                let gate = || context.may_write();
                unrouted::move_back(&endpoint, &business, &desired.topology, &links, &gate).await
            };
            let moved = context.unless_stopped(moved).await;
            Finished::Moved(FinishedMove { business, desired, links, messages, moved })
        });
    }

    pub(super) fn moved(&mut self, finished: FinishedMove) {
        let FinishedMove { business, desired, links, messages, moved } = finished;
        self.unrouted.moving.remove(&business);
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => {
                tracing::warn!(business, %error, "unrouted messages stay for now");
                self.unrouted.due.insert(business);
                return;
            }
        };
        if moved.moved > 0 {
            tracing::info!(business, moved = moved.moved, "unrouted messages are back where they belong");
        }
        if moved.waiting == 0 {
            self.unrouted.without_link.remove(&business);
        } else {
            let left = messages.saturating_sub(moved.moved + moved.set_aside);
            self.unrouted.without_link.insert(business.clone(), (left, links, Instant::now()));
        }
        let mut again = moved.stopped.is_none() && moved.moved > 0;
        if let Some(state) = self.businesses.get_mut(&business) {
            if state.desired == desired {
                let before = state.strays.map_or(0, |strays| strays.count);
                if moved.strays > before {
                    tracing::warn!(
                        business,
                        messages = moved.strays - moved.waiting.min(moved.strays),
                        waiting = moved.waiting,
                        "unrouted messages stay there: no route takes them, or they wait for another business's exchange to lead here"
                    );
                }
                let checked = match &moved.stopped {
                    None => (moved.waiting == 0).then_some(moved.strays),
                    // An administrator has to remove those before any behind them is reached.
                    Some(Stopped::Strays { .. }) => Some(messages),
                    Some(_) => None,
                };
                let checked = checked.map(|checked| (checked, Instant::now()));
                state.strays = (moved.strays > 0).then_some(Strays { count: moved.strays, checked });
            } else {
                // Judged by routes that are no longer declared.
                again = true;
            }
        }
        self.report_strays();
        if let Some(stopped) = &moved.stopped {
            // The next sweep finds what is wrong, and this business is due again within a few sweeps.
            tracing::warn!(business, reason = %stopped, "not all unrouted messages were moved");
        }
        self.context.owner.report(Event::Unrouted { business: &business, moved: &moved });
        if again {
            self.unrouted.due.insert(business);
        }
    }

    fn report_strays(&self) {
        let known = !self.snapshots.is_down();
        self.context.owner.report(Event::Strays(known.then(|| self.businesses.strays())));
    }
}
