//! Messages in `unrouted`: which businesses have some, and moving them back once their bindings are right.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::timeout;
use wirepost_topology::{Error, unrouted};

use super::Keeper;

/// Businesses whose unrouted messages are moved at once.
const MOVES: usize = 4;
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
        self.unrouted.retain(|name| waiting.contains_key(name) || !names.contains(name));
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

    pub(super) fn moved(&mut self, business: &str, moved: Result<unrouted::Moved, Error>) {
        self.moving_now.remove(business);
        match moved {
            Ok(moved) => {
                self.parts.metrics.moved_back.inc_by(moved.moved.into());
                if moved.moved > 0 {
                    tracing::info!(business, moved = moved.moved, "unrouted messages are back where they belong");
                }
                if let Some(known) = self.known.get_mut(business) {
                    let before = std::mem::replace(&mut known.strays, moved.strays);
                    if moved.strays > before {
                        tracing::warn!(
                            business,
                            messages = moved.strays,
                            "unrouted messages that fit no route stay there"
                        );
                    }
                }
                self.parts.metrics.strays.set(self.known.values().map(|known| i64::from(known.strays)).sum());
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
