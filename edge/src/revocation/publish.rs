//! Tells every edge of a revocation: by a message of the control stream, which is safe once the broker has confirmed it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use wirepost_core::{
    contract::control::{Control, Revocation},
    names,
};

use crate::{
    broker::{Broker, Confirm, Publication},
    bucket::{Bucket, Rate},
    clock, ids,
};

/// Lane key; connections count from 1.
const LANE: u64 = 0;
/// Who causes a revocation: clients can't use up what services may revoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// A call of a service: 5 a second for each business at this edge, 500 at the same time. The stream holds 200,000.
    Service,
    /// A client's `refresh` that takes tags away: one a second, 50 at the same time.
    Refresh,
}

impl By {
    fn rate(self) -> Rate {
        match self {
            Self::Service => Rate::per_second(5, 500),
            Self::Refresh => Rate::per_second(1, 50),
        }
    }
}

/// Revocations that wait for the broker at most.
const WAITING: usize = 1024;
/// Before one that the broker did not take is published again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Publishes a revocation.
pub fn publish(broker: &dyn Broker, revocation: &Revocation) -> Confirm {
    // Plain data with string keys: it always serializes.
    let body = serde_json::to_vec(&Control::Revocation(revocation.clone())).unwrap_or_default();
    broker.publish(
        LANE,
        Publication {
            exchange: names::CONTROL.into(),
            routing_key: String::new(),
            queue: None,
            message_id: ids::new(),
            body: body.into(),
            timestamp: clock::now_ms(),
            headers: Vec::new(),
        },
    )
}

/// Limits what a business may revoke, and keeps what nobody waits for until the broker has it.
#[derive(Debug)]
pub struct Outbox {
    sender: mpsc::Sender<Revocation>,
    waiting: Mutex<Option<mpsc::Receiver<Revocation>>>,
    /// What each business has revoked; only those that this edge serves.
    revoked: Mutex<HashMap<(String, By), Bucket>>,
}

impl Default for Outbox {
    fn default() -> Self {
        let (sender, waiting) = mpsc::channel(WAITING);
        Self { sender, waiting: Mutex::new(Some(waiting)), revoked: Mutex::default() }
    }
}

impl Outbox {
    /// Charges a business for one revocation. False: it revokes too much, and is not charged.
    pub fn may_send(&self, business: &str, by: By, now: Instant) -> bool {
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.entry((business.to_owned(), by)).or_default().try_add(by.rate(), now).is_ok()
    }

    /// Sends one for which nobody waits. False: too many wait for the broker.
    pub fn send(&self, revocation: Revocation) -> bool {
        self.sender.try_send(revocation).is_ok()
    }

    /// Publishes what is sent, each until the broker has confirmed it. Never ends; only the first call does anything.
    pub async fn run(&self, broker: Arc<dyn Broker>) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut waiting) = waiting else { return std::future::pending().await };
        while let Some(revocation) = waiting.recv().await {
            while !matches!(publish(&*broker, &revocation).await, Ok(Ok(()))) {
                sleep(PAUSE).await;
            }
        }
    }
}
