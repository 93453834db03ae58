//! Reports rejected pushes: each is counted, the business gets an event, and the log a line. Both are limited: a
//! service that pushes nonsense as fast as the broker accepts it must not have it multiplied by every edge.

use std::{collections::HashMap, num::NonZeroU32};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::time::{Duration, Instant};

use super::{context::HubContext, entry::Rejected, hub::Hub, rejection::Rejection};
use crate::{
    broker::Record,
    business::{
        Business,
        events::{self, Event},
    },
    metrics::label,
};

/// `rejected` events of one business from one edge: this many a second,
const RATE: NonZeroU32 = NonZeroU32::new(10).expect("10 is not zero");
/// and this many in a burst.
const BURST: NonZeroU32 = NonZeroU32::new(100).expect("100 is not zero");

/// What was reported, and what is still to be reported.
pub(super) struct RejectionReports {
    own: Limited,
    /// By the business that they belong to; those of this edge, so there are not many. Neither takes anything from
    /// another one's.
    foreign: HashMap<String, Limited>,
    logged: Option<Instant>,
    unlogged: u64,
}

/// Reports to one business.
struct Limited {
    limit: DefaultDirectRateLimiter,
    /// The newest that got no event.
    held: Option<Report>,
    /// How many got none since the last event, including that one.
    suppressed: u64,
}

struct Report {
    id: Option<String>,
    reason: &'static str,
    description: String,
    refused_by: Option<String>,
    offset: u64,
}

impl RejectionReports {
    pub(super) fn new() -> Self {
        Self { own: Limited::new(), foreign: HashMap::new(), logged: None, unlogged: 0 }
    }

    /// Counts and reports one.
    pub(super) fn note(&mut self, hub: &Hub, record: &Record, rejected: Rejected) {
        let Rejected { id, why, refused_by, of } = rejected;
        if let Some(of) = of {
            // Its own reader judges everything but the content.
            let told_there = !matches!(why, Rejection::SchemaMismatch(_) | Rejection::TooComplex);
            let report = Report::new(id, why.label(), &why, refused_by, record);
            return self.note_foreign(hub, record, of, report, told_there);
        }
        // An event that was routed back into the pushes: an event about it would come back as well.
        let is_event = !matches!(why, Rejection::TooLarge { .. }) && events::is_event(&record.body);
        let reason = if is_event { Rejection::EVENT } else { why.label() };
        hub.context.metrics.rejected_pushes.get_or_create(&label(reason)).inc();
        let report = Report::new(id, reason, &why, refused_by, record);
        self.log(hub.context.settings.log_pause, &hub.name, &report);
        if !is_event {
            self.own.note(&hub.context, &hub.business(), report);
        }
    }

    /// Reports a message of another business to that one, unless its own reader here does (`told_there`). (An edge that
    /// has clients of both reads it twice.)
    fn note_foreign(&mut self, hub: &Hub, record: &Record, of: String, report: Report, told_there: bool) {
        let HubContext { metrics, peers, .. } = &*hub.context;
        metrics.rejected_pushes.get_or_create(&label(Rejection::FOREIGN)).inc();
        if (told_there && peers.is_read(&of)) || events::is_event(&record.body) {
            return;
        }
        let Some(owner) = peers.get(&of) else { return };
        self.foreign.entry(of).or_insert_with(Limited::new).note(&hub.context, &owner, report);
    }

    /// Reports what was suppressed as soon as the limit allows it, even if nothing follows.
    pub(super) fn catch_up(&mut self, hub: &Hub) {
        self.own.catch_up(&hub.context, &hub.business());
        self.foreign.retain(|of, limited| {
            // A business that is not served here any more hears nothing.
            let Some(owner) = hub.context.peers.get(of) else { return false };
            limited.catch_up(&hub.context, &owner);
            true
        });
    }

    fn log(&mut self, pause: Duration, business: &str, report: &Report) {
        if self.logged.is_some_and(|at| at.elapsed() < pause) {
            self.unlogged += 1;
            return;
        }
        let Report { id, reason, description, .. } = report;
        tracing::warn!(business, id, reason, why = description, more = self.unlogged, "a push was rejected");
        self.logged = Some(Instant::now());
        self.unlogged = 0;
    }
}

impl Limited {
    fn new() -> Self {
        let limit = RateLimiter::direct(Quota::per_second(RATE).allow_burst(BURST));
        Self { limit, held: None, suppressed: 0 }
    }

    fn note(&mut self, context: &HubContext, owner: &Business, report: Report) {
        if self.limit.check().is_ok() {
            self.emit(context, owner, &report);
        } else {
            context.metrics.suppressed_events.inc();
            self.suppressed += 1;
            self.held = Some(report);
        }
    }

    fn catch_up(&mut self, context: &HubContext, owner: &Business) {
        if self.held.is_some()
            && self.limit.check().is_ok()
            && let Some(report) = self.held.take()
        {
            self.suppressed -= 1;
            self.emit(context, owner, &report);
        }
    }

    fn emit(&mut self, context: &HubContext, owner: &Business, report: &Report) {
        let event = report.event(std::mem::take(&mut self.suppressed));
        self.held = None;
        events::emit(context.broker.as_ref(), owner, context.teller(), &event);
    }
}

impl Report {
    fn new(
        id: Option<String>,
        reason: &'static str,
        why: &Rejection,
        refused_by: Option<String>,
        record: &Record,
    ) -> Self {
        Self { id, reason, description: why.to_string(), refused_by, offset: record.position.offset }
    }

    fn event(&self, suppressed: u64) -> Event<'_> {
        let Self { id, reason, description, refused_by, offset } = self;
        Event::Rejected {
            id: id.as_deref(),
            reason,
            description,
            refused_by: refused_by.as_deref(),
            offset: *offset,
            suppressed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use wirepost_core::{
        compile::compile_one,
        names,
        topology::{Binding, Queue, QueueKind, Topology},
    };

    use super::*;
    use crate::{
        broker::{Origin, Position, memory::MemoryBroker},
        config::settings::Settings,
        metrics::Metrics,
    };

    /// A declaration; its events of kind `rejected` go to a queue.
    fn declared(name: &str) -> (Arc<Business>, Topology) {
        let route = json!({"messageType": "n", "sendType": "ServerToClient", "to": ["app"]});
        let declaration = json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clientTypes": ["app"], "routes": [route]},
        });
        let mut compiled = compile_one(&serde_json::from_value(declaration).unwrap()).unwrap();
        let (exchange, queue) = (names::events_exchange(name), names::events_queue(name, "seen"));
        compiled.topology.queues.push(Queue { name: queue.clone(), kind: QueueKind::Quorum, dead_letter: None });
        compiled.topology.bindings.push(Binding { exchange, queue, routing_key: "rejected".to_owned() });
        (Arc::new(Business::try_new(compiled.config).unwrap()), compiled.topology)
    }

    #[tokio::test]
    async fn each_owner_hears_of_all_that_another_business_refused_and_of_nobody_elses() {
        let businesses = ["payments", "shop", "quiet"].map(declared);
        let broker = MemoryBroker::new();
        broker.apply(&businesses.each_ref().map(|(_, topology)| topology.clone()));
        let context = HubContext::new(Arc::new(broker.clone()), Arc::new(Metrics::default()), Settings::default());
        for (business, _) in &businesses {
            context.peers.set(business);
        }
        let hub = Hub::new(Arc::clone(&businesses[0].0), Arc::new(context));
        let record = |of: &str| Record {
            position: Position { offset: 4, fingerprint: 0 },
            timestamp: 0,
            body: "{}".into(),
            defect: None,
            origin: Origin { business: Some(of.into()), shared: true, to: vec!["payments".into()] },
        };
        let mut reports = RejectionReports::new();
        let refuse = |reports: &mut RejectionReports, of: &str| {
            let why = Rejection::NotAccepted { by: "payments".into(), message_type: "n".into() };
            let record = record(of);
            reports.note(&hub, &record, Rejected::by_this(&hub.business(), &record, None, why));
        };
        let all = 5 * u64::from(BURST.get());
        (0..all).for_each(|_| refuse(&mut reports, "shop"));
        refuse(&mut reports, "quiet");
        assert_eq!(
            broker.queue_len(&names::events_queue("quiet", "seen")),
            Some(1),
            "another one's flood took its place"
        );

        // All are told or counted, though nothing follows.
        let (mut seen, mut told) = (broker.consume(&names::events_queue("shop", "seen"), 1), 0);
        let deadline = Instant::now() + Duration::from_mins(1);
        while told < all {
            assert!(Instant::now() < deadline, "{told} of {all}");
            reports.catch_up(&hub);
            let Ok(delivery) = tokio::time::timeout(Duration::from_millis(10), seen.recv()).await else { continue };
            let event: Value = serde_json::from_slice(&delivery.publication().body).unwrap();
            assert_eq!(
                (&event["reason"], &event["refusedBy"]),
                (&json!("not_accepted"), &json!("payments")),
                "{event}"
            );
            told += 1 + event["suppressed"].as_u64().unwrap_or_default();
            delivery.ack();
        }
        assert_eq!(told, all);
    }
}
