//! How many messages wait for a person, as metrics.

use std::time::Duration;

use wirepost_topology::depths::depths;

use super::Keeper;

/// Between two counts.
pub(super) const PAUSE: Duration = Duration::from_secs(15);

impl Keeper {
    /// Counts, or says that nothing is known: a number from before an outage, or of a replica that led once, would look like today's.
    pub(super) async fn count_depths(&mut self) {
        let metrics = &self.parts.metrics;
        if !self.parts.leadership.holds() || self.down.is_some() {
            metrics.depths(None);
            return;
        }
        let names: Vec<&String> = self.known.keys().collect();
        let counted = match self.parts.amqp.get().await {
            Ok(connection) => depths(&connection, &names).await.map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = &counted {
            tracing::debug!(reason, "dead and unrouted messages can't be counted now");
            self.parts.amqp.drop();
        }
        metrics.depths(counted.ok());
    }
}
