//! Reads the control stream: from its first message when the edge starts, before anyone is admitted, then as it grows.
//!
//! *The start*: what the stream held when the edge began to read it, as its leader knows it, is applied first.
//!
//! *Bound*: after [`PATIENCE`] clients are admitted even if the stream could not be read. The broker that is away then
//! has the messages too: nobody is sent anything, or can send, before it is back, and the first thing that this edge
//! reads then is the control stream.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use wirepost_core::{contract::control::Control, frames::CloseCode};

use super::gate::Gate;
use crate::{
    broker::{Feed, FeedEvent, Record},
    catalog::Catalog,
    clock,
    metrics::Metrics,
};

/// What `/readyz` waits for.
pub const PART: &str = "revocations";
/// Longest wait for the control stream at the start.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Follower {
    /// Has what is known.
    pub gate: Arc<Gate>,
    /// Where connections end.
    pub catalog: Arc<Catalog>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Follower {
    /// Reads and follows the control stream; never ends. `unread` is dropped once it was read, or could not be in time.
    pub async fn run(self, mut feed: Box<dyn Feed>, unread: impl Send) {
        let mut unread = Some(unread);
        let patience = Instant::now() + PATIENCE;
        let (mut attached, mut begins) = (false, true);
        loop {
            let event = tokio::select! {
                event = feed.recv() => event,
                () = sleep_until(patience), if unread.is_some() => {
                    tracing::warn!("the control stream can't be read; clients are admitted before it is");
                    unread = None;
                    continue;
                }
            };
            match event {
                FeedEvent::Attached { .. } => attached = true,
                FeedEvent::Records(batch) => {
                    if std::mem::take(&mut begins) {
                        self.judge_begin(&batch.records);
                    }
                    self.take(&batch.records).await;
                    if let Some(done) = batch.done {
                        done();
                    }
                }
                FeedEvent::Gap => {
                    tracing::warn!("the control stream has lost revocations that this edge did not read");
                    begins = true;
                }
                FeedEvent::Reset => {
                    self.gate.lose_stream();
                    tracing::warn!(
                        "the control stream was replaced; what this edge knows from the old one is in force, and goes into the new one"
                    );
                }
                FeedEvent::Down { reason } => {
                    attached = false;
                    tracing::warn!(reason, "revocations are not heard of at the moment");
                }
            }
            self.metrics.control_up.set(attached.into());
            // What is left counts until it was handed out here, so all of it has been applied.
            if attached && feed.lag().is_none_or(|lag| lag == 0) {
                unread = None;
            }
        }
    }

    /// If the stream's first messages are gone, so may be revocations that are still in force.
    fn judge_begin(&self, records: &[Record]) {
        if let Some(first) = records.first().filter(|first| first.position.offset > 0) {
            self.gate.revocations.doubt(first.timestamp);
            for hub in self.catalog.all() {
                self.end(&hub.name, None);
            }
        }
    }

    async fn take(&self, records: &[Record]) {
        for record in records {
            match serde_json::from_slice(&record.body) {
                Ok(Control::Revocation(revocation)) => {
                    for business in self.gate.revocations.add(&revocation, clock::now_ms()) {
                        tracing::warn!(
                            business,
                            "has more revocations than an edge keeps; the older half now ends all sessions issued before them"
                        );
                        self.end(&business, None);
                    }
                    self.end(&revocation.business, revocation.unique_id.as_deref());
                }
                Ok(Control::Unknown) => {}
                Err(error) => tracing::warn!(%error, "a message of the control stream is not understood"),
            }
            // Each may look at all connections of a business.
            tokio::task::yield_now().await;
        }
    }

    /// Closes what is revoked, of one identity or of all.
    fn end(&self, business: &str, unique_id: Option<&str>) {
        let Some(hub) = self.catalog.hub(business) else { return };
        let revoked = hub.close_where(unique_id, CloseCode::Revoked, |unique_id, grant| {
            self.gate.revocations.end(business, unique_id, grant)
        });
        if revoked > 0 {
            tracing::info!(business, connections = revoked, "revoked");
        }
    }
}
