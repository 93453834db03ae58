//! Reports rejected pushes: each is counted, the business gets an event, and the log a line. Both are limited: a
//! service that pushes nonsense as fast as the broker accepts it must not have it multiplied by every edge.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::time::{Duration, Instant};

use super::{context::HubContext, entry::Rejected, hub::Hub, rejection::Rejection};
use crate::{
    broker::Record,
    business::events::{self, Event},
    metrics::label,
};

/// `rejected` events of one business from one edge: this many a second,
const RATE: NonZeroU32 = NonZeroU32::new(10).expect("10 is not zero");
/// and this many in a burst.
const BURST: NonZeroU32 = NonZeroU32::new(100).expect("100 is not zero");

/// What was reported, and what is still to be reported.
pub(super) struct RejectionReports {
    /// For messages of other businesses: they take nothing from the business's own.
    foreign: DefaultDirectRateLimiter,
    limit: DefaultDirectRateLimiter,
    /// The newest that got no event.
    held: Option<Report>,
    /// How many got none since the last event, including that one.
    suppressed: u64,
    logged: Option<Instant>,
    unlogged: u64,
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
        Self {
            foreign: RateLimiter::direct(Quota::per_second(RATE).allow_burst(BURST)),
            limit: RateLimiter::direct(Quota::per_second(RATE).allow_burst(BURST)),
            held: None,
            suppressed: 0,
            logged: None,
            unlogged: 0,
        }
    }

    /// Counts and reports one.
    pub(super) fn note(&mut self, hub: &Hub, record: &Record, rejected: Rejected) {
        let Rejected { id, why, refused_by, of } = rejected;
        if let Some(of) = of {
            // Its own reader judges everything but the content.
            let told_there = !matches!(why, Rejection::SchemaMismatch(_) | Rejection::TooComplex);
            let report = Report::new(id, why.label(), &why, refused_by, record);
            return self.note_foreign(hub, record, &of, &report, told_there);
        }
        // An event that was routed back into the pushes: an event about it would come back as well.
        let is_event = !matches!(why, Rejection::TooLarge { .. }) && events::is_event(&record.body);
        let reason = if is_event { Rejection::EVENT } else { why.label() };
        hub.context.metrics.rejected_pushes.get_or_create(&label(reason)).inc();
        let report = Report::new(id, reason, &why, refused_by, record);
        self.log(hub.context.settings.log_pause, &hub.name, &report);
        if is_event {
            return;
        }
        if self.limit.check().is_ok() {
            self.emit(hub, &report);
        } else {
            hub.context.metrics.suppressed_events.inc();
            self.suppressed += 1;
            self.held = Some(report);
        }
    }

    /// Reports a message of another business to that one, unless its own reader here does (`told_there`). (An edge that
    /// has clients of both reads it twice.)
    fn note_foreign(&self, hub: &Hub, record: &Record, of: &str, report: &Report, told_there: bool) {
        let context = &*hub.context;
        let HubContext { metrics, peers, .. } = context;
        metrics.rejected_pushes.get_or_create(&label(Rejection::FOREIGN)).inc();
        if (told_there && peers.is_read(of)) || events::is_event(&record.body) {
            return;
        }
        let Some(owner) = peers.get(of) else { return };
        if self.foreign.check().is_err() {
            metrics.suppressed_events.inc();
            return;
        }
        events::emit(context.broker.as_ref(), &owner, context.teller(), &report.event(0));
    }

    /// Reports what was suppressed as soon as the limit allows it, even if nothing follows.
    pub(super) fn catch_up(&mut self, hub: &Hub) {
        if self.held.is_some()
            && self.limit.check().is_ok()
            && let Some(report) = self.held.take()
        {
            self.suppressed -= 1;
            self.emit(hub, &report);
        }
    }

    fn emit(&mut self, hub: &Hub, report: &Report) {
        let event = report.event(std::mem::take(&mut self.suppressed));
        self.held = None;
        let context = &*hub.context;
        events::emit(context.broker.as_ref(), &hub.business(), context.teller(), &event);
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
