//! Messages in `unrouted`: which businesses have some, and moving them back once their bindings are right.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use wirepost_topology::{
    Error,
    unrouted::{self, Moved, Stopped},
};

use super::{Desired, Keeper, Strays};

/// Businesses whose unrouted messages are moved at once.
const MOVES: usize = 4;
/// How long messages that fit no route are passed over unseen, as long as no others come and nothing changes.
const STRAYS_AGAIN: Duration = Duration::from_hours(1);
/// Longest time for counting unrouted messages.
const COUNT_TIMEOUT: Duration = Duration::from_secs(10);

/// One run of [`unrouted::move_back`].
pub(super) struct Walk {
    business: String,
    desired: Arc<Desired>,
    /// That were there before.
    messages: u32,
    moved: Result<Moved, Error>,
}

impl Keeper {
    pub(super) async fn look_at_unrouted(&mut self) {
        self.count_strays();
        let ready = |business: &&String| self.known.contains_key(*business) && !self.moving_now.contains(*business);
        let names: Vec<String> = self.unrouted.iter().filter(ready).cloned().collect();
        if names.is_empty() {
            return;
        }
        let connection = match self.parts.amqp.get().await {
            Ok(connection) => connection,
            Err(reason) => {
                tracing::debug!(reason, "unrouted messages can't be counted now");
                return;
            }
        };
        let counted = timeout(COUNT_TIMEOUT, unrouted::waiting(&connection, &names)).await;
        let Ok(Ok(waiting)) = counted else {
            self.parts.amqp.drop();
            return;
        };
        let waiting: HashMap<String, u32> = waiting.into_iter().collect();
        for name in names {
            let waits = waiting.get(&name);
            let Some(known) = self.known.get_mut(&name) else { continue };
            let Some(waits) = waits else {
                known.strays = None;
                self.unrouted.remove(&name);
                continue;
            };
            // To take them out and put them back costs the broker log entries that it can't drop while the oldest stays.
            if let Some((walked, at)) = known.strays.as_mut().and_then(|strays| strays.walked.as_mut()) {
                // Those that a person has removed make no room for others.
                *walked = (*walked).min(*waits);
                if *walked == *waits && at.elapsed() < STRAYS_AGAIN {
                    self.unrouted.remove(&name);
                }
            }
        }
        let waiting: Vec<(String, u32)> =
            waiting.into_iter().filter(|(name, _)| self.unrouted.contains(name)).collect();
        if waiting.is_empty() {
            return;
        }
        // Most likely a binding has just been lost: moved now, the first message would come back, behind all the others.
        let Ok(snapshot) = self.look().await else { return };
        let address = match self.parts.amqp.address().await {
            Ok(address) => Arc::new(address),
            Err(reason) => {
                tracing::warn!(reason, "unrouted messages can't be moved now");
                return;
            }
        };
        let sound = self.compare(&snapshot);
        for (name, messages) in waiting {
            if self.moving_now.len() < MOVES && sound.contains(&name) {
                tracing::debug!(business = name, messages, "moving unrouted messages back");
                self.unrouted.remove(&name);
                self.moving_now.insert(name.clone());
                let (address, leadership) = (Arc::clone(&address), self.parts.leadership.clone());
                let desired = self.known.get(&name).map(|known| Arc::clone(&known.desired)).unwrap_or_default();
                self.moving.spawn(async move {
                    let gate = || leadership.holds();
                    let moved = unrouted::move_back(&address, &name, &desired.topology, &gate).await;
                    Walk { business: name, desired, messages, moved }
                });
            }
        }
    }

    /// While the broker can't be looked at, their number is not known.
    pub(super) fn count_strays(&self) {
        if self.down.is_some() {
            self.parts.metrics.strays.set(f64::NAN);
            return;
        }
        let strays = self.known.values().filter_map(|known| known.strays);
        self.parts.metrics.strays.set(strays.map(|strays| f64::from(strays.count)).sum());
    }

    pub(super) fn moved(&mut self, walk: Walk) {
        let Walk { business, desired, messages, moved } = walk;
        self.moving_now.remove(&business);
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => {
                tracing::warn!(business, %error, "unrouted messages stay for now");
                self.unrouted.insert(business);
                return;
            }
        };
        self.parts.metrics.moved_back.inc_by(moved.moved.into());
        self.parts.metrics.set_aside.inc_by(moved.set_aside.into());
        if moved.moved > 0 {
            tracing::info!(business, moved = moved.moved, "unrouted messages are back where they belong");
        }
        let mut again = moved.stopped.is_none() && moved.moved > 0;
        if let Some(known) = self.known.get_mut(&business) {
            if known.desired == desired {
                let before = known.strays.map_or(0, |strays| strays.count);
                if moved.strays > before {
                    tracing::warn!(business, messages = moved.strays, "unrouted messages that fit no route stay there");
                }
                let walked = match &moved.stopped {
                    None => Some(moved.strays),
                    // Whatever lies behind them waits for a person.
                    Some(Stopped::Strays { .. }) => Some(messages),
                    Some(_) => None,
                };
                let walked = walked.map(|walked| (walked, Instant::now()));
                known.strays = (moved.strays > 0).then_some(Strays { count: moved.strays, walked });
            } else {
                // Judged by routes that are no longer those.
                again = true;
            }
        }
        self.count_strays();
        if let Some(stopped) = moved.stopped {
            tracing::warn!(business, reason = %stopped, "not all unrouted messages were moved");
            // The next sweep finds what is wrong; the round comes back to this business.
        }
        if again {
            self.unrouted.insert(business);
        }
    }
}
