//! How many messages need a person, as metrics.

use std::{sync::Arc, time::Duration};

use wirepost_rabbitmq::Connection;

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
        if !self.context.may_write() || self.snapshots.is_down() {
            self.context.owner.report(Event::Depths(None));
            return;
        }
        if self.counting_depths {
            return;
        }
        self.counting_depths = true;
        let businesses: Vec<String> = self.businesses.names().cloned().collect();
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let count = |connection: Arc<Connection>| async move { depths(&connection, &businesses).await };
            Finished::Depths(context.by_amqp(count).await.ok())
        });
    }

    pub(super) fn depths_counted(&mut self, counted: Option<Vec<(String, Depths)>>) {
        self.counting_depths = false;
        let known = self.context.may_write() && !self.snapshots.is_down();
        self.context.owner.report(Event::Depths(counted.filter(|_| known)));
    }
}
