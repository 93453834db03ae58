//! Queues with more room than the default: see [`crate::room`].

use std::sync::Arc;

use super::actor::{Actor, Context, Finished};
use crate::{ApplyOptions, Error, Plan, Snapshot, apply_plan, room::default_bytes};

/// Which queues are being checked.
#[derive(Debug, Default)]
pub(super) struct RoomChecks {
    checking: bool,
    /// The queue that was checked last.
    last: Option<String>,
}

/// What a check found.
#[derive(Debug)]
pub(super) struct RoomChecked {
    /// Whether a policy had to be changed.
    changed: bool,
    last: Option<String>,
}

impl Actor {
    /// Checks some of the queues that have more room, unless a check is in progress.
    pub(super) fn check_room(&mut self, snapshot: &Arc<Snapshot>) {
        if self.room.checking || !snapshot.has_room() || !self.context.may_write() {
            return;
        }
        self.room.checking = true;
        let (context, snapshot, after) = (Arc::clone(&self.context), Arc::clone(snapshot), self.room.last.clone());
        self.tasks.spawn(async move {
            Finished::Room(context.unless_stopped(context.correct_room(&snapshot, after.as_deref())).await)
        });
    }

    pub(super) fn room_checked(&mut self, checked: Result<RoomChecked, Error>) {
        self.room.checking = false;
        match checked {
            Ok(RoomChecked { changed, last }) => {
                self.room.last = last;
                if changed {
                    self.snapshots.discard();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the limits of queues with more than the default are not corrected; trying again");
                self.snapshots.discard();
            }
        }
    }
}

impl Context {
    async fn correct_room(&self, snapshot: &Snapshot, after: Option<&str>) -> Result<RoomChecked, Error> {
        let (steps, last) = snapshot.room_corrections(&self.management, default_bytes(), after).await;
        let changed = !steps.is_empty();
        if changed {
            let gate = || self.may_write();
            let options = ApplyOptions { gate: Some(&gate), ..ApplyOptions::default() };
            apply_plan(&self.management, Plan { steps, ..Plan::default() }, options).await?;
        }
        Ok(RoomChecked { changed, last })
    }
}
