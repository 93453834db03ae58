//! A message on its way to the broker, and the caller that waits for its outcome.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};
use wirepost_core::names;

use super::fair::HasDeadline;
use crate::{CONFIRM_TIMEOUT, Publication, PublishError, rabbit::counters::Counters};

/// The time that an answer takes.
const ANSWERING: Duration = Duration::from_millis(200);
/// A publisher is answered within this time: the confirm timeout, less the time that an answer takes.
const ANSWER_TIMEOUT: Duration = CONFIRM_TIMEOUT.saturating_sub(ANSWERING);

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// With its caller.
    New,
    /// In a queue.
    Waiting,
    /// Sent.
    InFlight,
}

/// See the module. If it is dropped unanswered, its outcome is unknown.
#[derive(Debug)]
pub(in crate::rabbit) struct Job {
    publication: Publication,
    target: Arc<str>,
    reply: Option<oneshot::Sender<Result<(), PublishError>>>,
    deadline: Instant,
    stage: Stage,
    counters: Arc<Counters>,
}

impl Job {
    pub(in crate::rabbit) fn new(
        publication: Publication,
        reply: oneshot::Sender<Result<(), PublishError>>,
        counters: Arc<Counters>,
    ) -> Self {
        let target = target(&publication);
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        Self { publication, target, reply: Some(reply), deadline, stage: Stage::New, counters }
    }

    /// For a caller that waits until this time.
    pub(in crate::rabbit) fn until(mut self, deadline: Instant) -> Self {
        self.deadline = self.deadline.max(deadline - ANSWERING);
        self
    }

    /// The target, which works or fails as a whole: an exchange, all exchanges for pushes of a business, or a queue by
    /// way of the default exchange.
    pub(super) fn target(&self) -> &Arc<str> {
        &self.target
    }

    /// Whether its deadline has passed.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline <= now
    }

    pub(super) fn publication(&self) -> &Publication {
        &self.publication
    }

    pub(super) fn bytes(&self) -> u64 {
        self.publication.body.len() as u64
    }

    /// It waits in a queue now.
    pub(super) fn waits(&mut self) {
        self.enter(Stage::Waiting);
    }

    /// It has been sent.
    pub(super) fn sent(&mut self) {
        self.enter(Stage::InFlight);
    }

    /// The gauges follow each message, so that they are right wherever it is dropped.
    fn enter(&mut self, stage: Stage) {
        let (counters, bytes) = (&self.counters, self.bytes());
        match self.stage {
            Stage::New => {}
            Stage::Waiting => {
                counters.waiting.sub(1);
                counters.waiting_bytes.sub(bytes);
            }
            Stage::InFlight => counters.in_flight.sub(1),
        }
        match stage {
            Stage::New => {}
            Stage::Waiting => {
                counters.waiting.add(1);
                counters.waiting_bytes.add(bytes);
            }
            Stage::InFlight => counters.in_flight.add(1),
        }
        self.stage = stage;
    }

    /// Reports the outcome.
    pub(in crate::rabbit) fn answer(mut self, outcome: Result<(), PublishError>) {
        let counter = match &outcome {
            Ok(()) => &self.counters.confirmed,
            Err(PublishError::Unavailable(_) | PublishError::Overloaded { .. }) => &self.counters.unavailable,
            Err(PublishError::Refused(_) | PublishError::Unrouted(_)) => &self.counters.refused,
            Err(PublishError::Unknown(_)) => &self.counters.unknown,
        };
        counter.add(1);
        if let Some(reply) = self.reply.take() {
            // The publisher may be gone.
            let _ = reply.send(outcome);
        }
    }
}

impl HasDeadline for Job {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.enter(Stage::New);
        // Its task ended. The caller sees that the sender was dropped, and takes the outcome as unknown.
        if self.reply.is_some() {
            self.counters.unknown.add(1);
        }
    }
}

fn target(publication: &Publication) -> Arc<str> {
    let exchange = &publication.exchange;
    if exchange.is_empty() {
        return format!("queue {}, by the default exchange", publication.routing_key).into();
    }
    // What is for several businesses and what is for one keep their order: they go over one channel.
    match names::owner(exchange).filter(|_| names::is_share_exchange(exchange)) {
        Some(business) => names::push_exchange(business).into(),
        None => exchange.clone(),
    }
}

pub(super) fn unavailable(reason: &str) -> PublishError {
    PublishError::Unavailable(reason.to_owned())
}
