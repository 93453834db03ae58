//! Checkpoints and events on their way to the broker.

use std::time::Duration;

use tokio::time::sleep;

use super::checkpoint::Checkpoint;
use crate::{
    broker::{Publication, PublishError},
    business::events::{self, Event},
    clock, ids,
    push::{followed::Followed, hub::Hub},
};

/// Lane key; connections count from 1.
const LANE: u64 = 0;
/// First and longest pause before an event is published again. Where one listener's queue takes none, the others get it
/// each time.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Writes a checkpoint, once. False: it may not be there.
pub(super) async fn checkpoint(hub: &Hub, checkpoint: &Checkpoint) -> bool {
    let publication = Publication {
        exchange: hub.business().judge_exchange.clone(),
        routing_key: String::new(),
        queue: None,
        message_id: ids::new(),
        // Plain data with string keys: it always serializes.
        body: serde_json::to_vec(checkpoint).unwrap_or_default().into(),
        timestamp: clock::now_ms(),
        headers: Vec::new(),
    };
    matches!(hub.context.broker.publish(LANE, publication).await, Ok(Ok(())))
}

/// Tells the business, until the broker has it or nobody listens.
pub(super) async fn undelivered(hub: &Hub, push: Followed) {
    let context = &*hub.context;
    let event = Event::Undelivered {
        id: &push.id,
        unique_id: &push.unique_id,
        message_type: &push.message_type,
        within_seconds: push.within_seconds,
        offset: push.offset,
    };
    let event = events::publication(&hub.business(), context.teller(), &event);
    let (mut pause, longest) = PAUSES;
    while !matches!(context.broker.publish(LANE, event.clone()).await, Ok(Ok(()) | Err(PublishError::Unrouted(_)))) {
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(longest);
    }
    context.metrics.undelivered.inc();
}
