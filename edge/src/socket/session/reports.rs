//! Receipts on their way to the business: one event at a time, each published until the broker has it, so that they
//! arrive in the order of the connection.
//!
//! *Bound*: the messages of a connection that wait for a receipt are bounded, and so is what all connections hold here.
//! What the broker has not taken within [`HELD`] is answered with an error, and all that waits behind it: its client
//! repeats it, in order. The end of the connection ends the repeats; its client repeats then what had no answer.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, sleep};
use wirepost_core::frames::MAX_RECEIPTS;

use crate::{
    broker::{Broker, Publication, PublishError},
    budget,
};

/// How long a receipt is held while the broker does not take it.
const HELD: Duration = Duration::from_secs(30);
/// Shortest and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// What an id costs beside its characters.
const ID_BYTES: usize = 24;

/// What has become of the receipts with these ids.
#[derive(Debug)]
pub(super) struct Reported {
    pub(super) ids: Vec<String>,
    /// Or why they were not published.
    pub(super) outcome: Result<(), String>,
}

/// The receipts of one connection; a pointer while none waits, since every connection has it.
#[derive(Default)]
pub(super) struct Reports(Option<Box<Held>>);

/// Those that wait.
#[derive(Default)]
struct Held {
    waiting: VecDeque<Receipts>,
    sending: Option<BoxFuture<'static, (Receipts, Result<(), PublishError>)>>,
    /// To be answered next.
    failed: Option<Reported>,
}

/// Some receipts, and the room that they take.
struct Receipts {
    ids: Vec<String>,
    room: Vec<budget::Held>,
}

/// Bytes that these ids take.
pub(super) fn bytes(ids: &[String]) -> usize {
    ids.iter().map(|id| id.len() + ID_BYTES).sum()
}

impl Reports {
    fn held(&mut self) -> &mut Held {
        self.0.get_or_insert_default()
    }

    /// Adds some.
    pub(super) fn add(&mut self, ids: Vec<String>, room: budget::Held) {
        self.held().waiting.push_back(Receipts { ids, room: vec![room] });
    }

    /// Some for which there is no room.
    pub(super) fn fail(&mut self, mut ids: Vec<String>, reason: String) {
        let held = self.held();
        match &mut held.failed {
            Some(failed) => failed.ids.append(&mut ids),
            none => *none = Some(Reported { ids, outcome: Err(reason) }),
        }
    }

    /// Publishes the next ones, if there are any and none are on their way.
    pub(super) fn send(&mut self, broker: &Arc<dyn Broker>, lane: u64, event: impl FnOnce(&[String]) -> Publication) {
        let Some(held) = self.0.as_mut().filter(|held| held.sending.is_none()) else { return };
        let Some(mut next) = held.waiting.pop_front() else { return };
        while let Some(more) = held.waiting.pop_front_if(|more| next.ids.len() + more.ids.len() <= MAX_RECEIPTS) {
            next.ids.extend(more.ids);
            next.room.extend(more.room);
        }
        let publication = event(&next.ids);
        let broker = Arc::clone(broker);
        held.sending = Some(async move { (next, publish(&*broker, lane, publication).await) }.boxed());
    }

    /// What has become of some; pending while none wait. Cancel safe.
    pub(super) fn next(&mut self) -> impl Future<Output = Reported> {
        poll_fn(move |cx| {
            let Some(held) = &mut self.0 else { return Poll::Pending };
            let reported = ready!(held.poll(cx));
            if held.is_empty() {
                self.0 = None;
            }
            Poll::Ready(reported)
        })
    }
}

impl Held {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reported> {
        if let Some(failed) = self.failed.take() {
            return Poll::Ready(failed);
        }
        let Some(sending) = &mut self.sending else { return Poll::Pending };
        let (sent, outcome) = ready!(sending.poll_unpin(cx));
        self.sending = None;
        let mut ids = sent.ids;
        if outcome.is_err() {
            ids.extend(self.waiting.drain(..).flat_map(|behind| behind.ids));
        }
        Poll::Ready(Reported { ids, outcome: outcome.map_err(|error| error.to_string()) })
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sending.is_none() && self.failed.is_none()
    }
}

/// Publishes an event until the broker has it, or does not take it for too long. Where nobody listens there is nobody to
/// tell.
async fn publish(broker: &dyn Broker, lane: u64, event: Publication) -> Result<(), PublishError> {
    let until = Instant::now() + HELD;
    let (mut pause, longest) = PAUSES;
    loop {
        let error = match broker.publish(lane, event.clone()).await {
            Ok(Ok(()) | Err(PublishError::Unrouted(_))) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => PublishError::Unknown("this edge is stopping".into()),
        };
        // Not all connections at the same time.
        let wait = pause.mul_f64(rand::random_range(0.5..1.0));
        if Instant::now() + wait >= until {
            return Err(error);
        }
        sleep(wait).await;
        pause = (pause * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;
    use wirepost_core::{compile::compile_one, names};

    use super::*;
    use crate::{
        broker::{Health, memory::MemoryBroker},
        budget::Budget,
    };

    fn event(ids: &[String]) -> Publication {
        Publication {
            exchange: names::events_exchange("payments").into(),
            routing_key: "delivered".into(),
            queue: None,
            message_id: String::new(),
            body: ids.join(",").into(),
            timestamp: 0,
            headers: Vec::new(),
        }
    }

    fn broker() -> MemoryBroker {
        let declared = serde_json::json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
            "metadata": {"name": "payments", "namespace": "shop"},
            "spec": {"clientTypes": ["app"], "routes": [{"messageType": "paid", "sendType": "ServerToClient", "to": ["app"]}]},
        });
        let broker = MemoryBroker::new();
        broker.apply(&[compile_one(&serde_json::from_value(declared).unwrap()).unwrap().topology]);
        broker
    }

    fn add(reports: &mut Reports, budget: &Budget, ids: &[&str]) {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        let room = budget.take("payments", bytes(&ids), None).unwrap();
        reports.add(ids, room);
    }

    #[tokio::test(start_paused = true)]
    async fn receipts_wait_for_the_broker_in_order_and_for_a_while() {
        let (broker, budget) = (broker(), Budget::new(1 << 20, Gauge::default()));
        let dynamic: Arc<dyn Broker> = Arc::new(broker.clone());
        let mut reports = Reports::default();
        let step = async |reports: &mut Reports| {
            reports.send(&dynamic, 1, event);
            let Reported { ids, outcome } = reports.next().await;
            (ids.join(","), outcome.is_ok())
        };
        // Nobody listens.
        add(&mut reports, &budget, &["a"]);
        assert_eq!(step(&mut reports).await, ("a".into(), true));
        broker.set_health(Health::Away("restarting".into()));
        add(&mut reports, &budget, &["b"]);
        reports.send(&dynamic, 1, event);
        for ids in [["c", "d"], ["e", "f"]] {
            add(&mut reports, &budget, &ids);
        }
        reports.fail(vec!["g".into()], "full".into());
        assert_eq!(step(&mut reports).await, ("g".into(), false));
        assert!(tokio::time::timeout(HELD / 2, reports.next()).await.is_err());
        broker.set_health(Health::Up);
        assert_eq!(step(&mut reports).await, ("b".into(), true));
        assert_eq!(step(&mut reports).await, ("c,d,e,f".into(), true), "one event");
        broker.set_health(Health::Away("for long".into()));
        add(&mut reports, &budget, &["h"]);
        reports.send(&dynamic, 1, event);
        add(&mut reports, &budget, &["i"]);
        assert_eq!(step(&mut reports).await, ("h,i".into(), false), "what is behind it as well");
        assert!(budget.take("payments", 1 << 20, None).is_ok(), "all room is given back");
        assert!(reports.0.is_none(), "nothing is kept");
    }
}
