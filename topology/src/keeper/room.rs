//! Queues with more room than the default get the default when they hold less than half of it: see [`crate::room`].

use std::sync::Arc;

use super::actor::{Actor, Context, Finished};
use crate::{
    ApplyOptions, Error, Plan, Snapshot, apply_plan,
    room::{default_bytes, emptied},
};

impl Actor {
    /// Looks at the queues that have more room, unless that is under way.
    pub(super) fn check_room(&mut self, snapshot: &Snapshot) {
        let queues = snapshot.with_room();
        if self.checking_room || queues.is_empty() || !self.context.may_write() {
            return;
        }
        self.checking_room = true;
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move { Finished::Room(context.unless_stopped(context.take_room(queues)).await) });
    }

    pub(super) fn room_checked(&mut self, taken: Result<(), Error>) {
        self.checking_room = false;
        if let Err(error) = taken {
            tracing::warn!(%error, "queues that hold little keep a larger limit; trying again");
        }
        self.snapshots.discard();
    }
}

impl Context {
    async fn take_room(&self, queues: Vec<String>) -> Result<(), Error> {
        let steps = emptied(&self.management, &queues, default_bytes()).await;
        let gate = || self.may_write();
        let options = ApplyOptions { gate: Some(&gate), ..ApplyOptions::default() };
        apply_plan(&self.management, Plan { steps, ..Plan::default() }, options).await.map(drop)
    }
}
