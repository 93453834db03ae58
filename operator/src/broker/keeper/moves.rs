//! Messages in `unrouted`: which businesses have some, and moving them back once their bindings are right.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use wirepost_topology::{Error, unrouted};

use super::Keeper;

/// Businesses whose unrouted messages are moved at once.
const MOVES: usize = 4;
/// How long messages that fit no route are passed over unseen, as long as no others come and nothing changes.
const STRAYS_AGAIN: Duration = Duration::from_hours(1);
/// Longest time for counting unrouted messages.
const COUNT_TIMEOUT: Duration = Duration::from_secs(10);

impl Keeper {
    pub(super) async fn look_at_unrouted(&mut self) {
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
            if waits.is_none() {
                known.strays = None;
            }
            // To take them out and put them back costs the broker log entries that it can't drop while the oldest stays.
            let walked = known.strays.filter(|(_, at)| at.elapsed() < STRAYS_AGAIN).map_or(0, |(strays, _)| strays);
            if waits.is_none_or(|waits| *waits <= walked) {
                self.unrouted.remove(&name);
            }
        }
        self.count_strays();
        let waiting: Vec<(String, u32)> =
            waiting.into_iter().filter(|(name, _)| self.unrouted.contains(name)).collect();
        if waiting.is_empty() {
            return;
        }
        // Most likely a binding has just been lost: moved now, the first message would come back, behind all the others.
        let Ok(snapshot) = self.look().await else { return };
        let sound = self.compare(&snapshot);
        for (name, messages) in waiting {
            if self.moving_now.len() < MOVES && sound.contains(&name) {
                tracing::debug!(business = name, messages, "moving unrouted messages back");
                self.unrouted.remove(&name);
                self.moving_now.insert(name.clone());
                let (connection, leadership) = (Arc::clone(&connection), self.parts.leadership.clone());
                let desired = self.known.get(&name).map(|known| Arc::clone(&known.desired)).unwrap_or_default();
                self.moving.spawn(async move {
                    let gate = || leadership.holds();
                    let moved = unrouted::move_back(&connection, &name, &desired.topology, &gate).await;
                    (name, moved)
                });
            }
        }
    }

    fn count_strays(&self) {
        let strays = self.known.values().filter_map(|known| known.strays);
        self.parts.metrics.strays.set(strays.map(|(strays, _)| i64::from(strays)).sum());
    }

    pub(super) fn moved(&mut self, business: &str, moved: Result<unrouted::Moved, Error>) {
        self.moving_now.remove(business);
        match moved {
            Ok(moved) => {
                self.parts.metrics.moved_back.inc_by(moved.moved.into());
                if moved.moved > 0 {
                    tracing::info!(business, moved = moved.moved, "unrouted messages are back where they belong");
                }
                if let Some(known) = self.known.get_mut(business) {
                    let before = known.strays.map_or(0, |(strays, _)| strays);
                    // All that was there was walked over, so nothing but these is there.
                    let whole = moved.stopped.is_none();
                    known.strays = (whole && moved.strays > 0).then(|| (moved.strays, Instant::now()));
                    if moved.strays > before {
                        tracing::warn!(
                            business,
                            messages = moved.strays,
                            "unrouted messages that fit no route stay there"
                        );
                    }
                }
                self.count_strays();
                if let Some(stopped) = moved.stopped {
                    tracing::warn!(business, reason = %stopped, "not all unrouted messages were moved");
                    // The next sweep finds what is wrong; the round comes back to this business.
                } else if moved.moved > 0 {
                    self.unrouted.insert(business.to_owned());
                }
            }
            Err(error) => {
                tracing::warn!(business, %error, "unrouted messages stay for now");
                self.unrouted.insert(business.to_owned());
            }
        }
    }
}
