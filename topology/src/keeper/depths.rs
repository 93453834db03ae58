//! How many messages need a person, as metrics.

use std::{sync::Arc, time::Duration};

use super::{
    Event,
    actor::{Actor, Finished},
};
use crate::depths::{Depths, depths};

/// Between two counts.
pub(super) const INTERVAL: Duration = Duration::from_secs(15);

impl Actor {
    /// Begins a count, or reports that nothing is known: a number from before an outage, or from a former leader, would look current.
    pub(super) fn count_depths(&mut self) {
        if !self.context.owner.may_write() || self.snapshots.is_down() {
            self.context.owner.report(Event::Depths(None));
            return;
        }
        if self.counting_depths {
            return;
        }
        self.counting_depths = true;
        let businesses: Vec<String> = self.businesses.names().cloned().collect();
        let amqp = Arc::clone(&self.context.amqp);
        self.tasks.spawn(async move {
            let counted = async {
                let connection = amqp.get().await?;
                let counted = depths(&connection, &businesses).await;
                if counted.is_err() {
                    amqp.discard();
                }
                counted
            };
            let counted = counted.await;
            if let Err(error) = &counted {
                tracing::debug!(%error, "dead and unrouted messages can't be counted now");
            }
            Finished::Depths(counted.ok())
        });
    }

    pub(super) fn depths_counted(&mut self, counted: Option<Vec<(String, Depths)>>) {
        self.counting_depths = false;
        let known = self.context.owner.may_write() && !self.snapshots.is_down();
        self.context.owner.report(Event::Depths(counted.filter(|_| known)));
    }
}
