//! Follows the pushes of one business while it has clients here, and for a while after.
//!
//! One task per hub, owned by the catalog, which creates a new hub when the delivery changes. Entries are parsed
//! outside the hub's lock; only appending and delivering happen under it.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use wirepost_core::{contract::marker, edge_config::Delivery, frames::CloseCode, names};

use super::{gap::Gap, hub::Hub, judge, reading::Reading, rejections::RejectionReports};
use crate::{
    broker::{FeedEvent, Publication, Record, Start},
    clock,
};

/// How often a reader checks its quiet clients and itself.
const TICK: Duration = Duration::from_secs(1);
/// Part of the retention after which quiet clients are sent their position.
const RETENTION_PART: u64 = 16;
/// Lane key of markers; connections count from 1.
const MARKER_LANE: u64 = 0;

/// Runs until `cancel`.
pub async fn run(hub: Arc<Hub>, cancel: CancellationToken) {
    let mut clients = hub.clients();
    // They outlive the reading: what was suppressed at its end is reported when it continues.
    let mut reports = RejectionReports::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            present = clients.wait_for(|n| *n > 0) => if present.is_err() { return },
        }
        let reading = ReadingTime::begin(&hub);
        tokio::select! {
            () = cancel.cancelled() => {}
            () = follow(&hub, &mut reports) => {}
        }
        drop(reading);
        if cancel.is_cancelled() {
            return;
        }
    }
}

/// The time in which a hub is read, also if it ends by a panic: then clients are asked to come back, since pushes may be
/// missing until the reader is restarted.
struct ReadingTime<'h>(&'h Hub);

impl<'h> ReadingTime<'h> {
    fn begin(hub: &'h Hub) -> Self {
        hub.context.metrics.readers.inc();
        hub.context.peers.set_read(&hub.name, true);
        Self(hub)
    }
}

impl Drop for ReadingTime<'_> {
    fn drop(&mut self) {
        let Self(hub) = self;
        hub.context.metrics.readers.dec();
        hub.context.peers.set_read(&hub.name, false);
        let panicked = std::thread::panicking();
        // It counts as down until it is restarted: its clients still want pushes.
        hub.set_reading(if panicked { Reading::Down } else { Reading::Idle });
        hub.forget(None);
        if panicked {
            hub.disconnect(CloseCode::Interrupted);
        }
    }
}

/// Reads until the business has had no client for a while.
async fn follow(hub: &Hub, reports: &mut RejectionReports) {
    let context = &hub.context;
    let delivery = hub.delivery();
    hub.set_reading(Reading::Down);
    let mut feed = context.broker.tail(&hub.name, delivery, Start::Next);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle_since: Option<Instant> = None;
    let mut reader = Reader { hub, delivery, empty: false, unsaid_bytes: 0, said: Instant::now(), reports };
    loop {
        tokio::select! {
            event = feed.recv() => match event {
                FeedEvent::Attached { position } => {
                    hub.set_reading(Reading::Up(feed.lag()));
                    reader.empty = delivery == Delivery::Durable && position.is_none();
                    if reader.empty {
                        reader.mark();
                    }
                    if !hub.attach(position) {
                        tracing::warn!(business = %hub.name, "the stream does not continue where this edge stopped reading; its clients get a gap");
                        context.metrics.streams_replaced.inc();
                        hub.forget(Some(Gap::Incarnation));
                        hub.attach(position);
                    }
                }
                FeedEvent::Records(batch) => {
                    reader.empty = false;
                    reader.take(&batch.records).await;
                    if let Some(done) = batch.done {
                        done();
                    }
                }
                FeedEvent::Gap => hub.forget(Some(Gap::Retention)),
                FeedEvent::Reset => {
                    context.metrics.streams_replaced.inc();
                    hub.forget(Some(Gap::Incarnation));
                }
                FeedEvent::Down { reason } => {
                    hub.set_reading(Reading::Down);
                    hub.interrupted();
                    tracing::warn!(business = %hub.name, reason, "pushes are not read at the moment");
                }
            },
            _ = tick.tick() => {
                if matches!(hub.reading(), Reading::Up(_)) {
                    hub.set_reading(Reading::Up(feed.lag()));
                }
                reader.reports.catch_up(hub);
                context.pages.sweep();
                let business = hub.business();
                let present = *hub.clients().borrow() > 0;
                let since = idle_since.get_or_insert_with(Instant::now);
                if present {
                    idle_since = None;
                } else if since.elapsed() >= context.settings.linger && hub.retire() {
                    return;
                }
                if reader.empty {
                    reader.mark();
                }
                let retention = Duration::from_secs(business.config.retention.seconds);
                if reader.said.elapsed() >= context.settings.position_interval.min(retention / 8) {
                    reader.tell_position();
                }
            }
        }
    }
}

struct Reader<'h> {
    hub: &'h Hub,
    delivery: Delivery,
    /// The stream has no message yet.
    empty: bool,
    /// Bytes read since quiet clients were last sent their position.
    unsaid_bytes: u64,
    said: Instant,
    reports: &'h mut RejectionReports,
}

impl Reader<'_> {
    /// At the pace that the business may have: what waits stays with the broker.
    async fn take(&mut self, records: &[Record]) {
        let mut rest = records;
        while !rest.is_empty() {
            let limits = self.hub.business().config.limits.per_edge;
            let most = limits.pushes_per_second.map_or(usize::MAX, |most| most as usize);
            let (now, later) = rest.split_at(rest.len().min(most));
            self.take_now(now).await;
            if let Some(until) = self.hub.share.reads(now.len(), &limits, Instant::now()) {
                sleep_until(until).await;
            }
            rest = later;
        }
    }

    async fn take_now(&mut self, records: &[Record]) {
        let (business, rejections) = loop {
            let business = self.hub.business();
            let (mut entries, mut rejections) = (Vec::with_capacity(records.len()), Vec::new());
            for (record, (entry, rejected)) in records.iter().zip(judge::read(self.hub, &business, records).await) {
                rejections.extend(rejected.into_iter().map(|rejected| (record, rejected)));
                entries.push(Arc::new(entry));
            }
            self.hub.compress(&mut entries).await;
            if self.hub.append(&business, entries, self.delivery) {
                break (business, rejections);
            }
        };
        for (record, rejected) in rejections {
            self.reports.note(self.hub, record, rejected);
        }
        self.unsaid_bytes += records.iter().map(|record| record.body.len() as u64).sum::<u64>();
        if self.unsaid_bytes >= business.config.retention.bytes / RETENTION_PART {
            self.tell_position();
        }
    }

    fn tell_position(&mut self) {
        self.unsaid_bytes = 0;
        self.said = Instant::now();
        self.hub.tell_position();
    }

    /// Writes a marker into an empty stream: with it, a message exists whose fingerprint proves the first position. Its
    /// confirm does not matter: the reader sees the marker, or tries again. By way of `push`: an edge has no right to the
    /// default exchange, which leads into every queue.
    fn mark(&self) {
        let id = uuid::Uuid::now_v7().to_string();
        drop(self.hub.context.broker.publish(
            MARKER_LANE,
            Publication {
                exchange: names::push_exchange(&self.hub.name).into(),
                routing_key: String::new(),
                queue: None,
                body: marker::body(&id).into(),
                message_id: id,
                timestamp: clock::now_ms(),
                headers: Vec::new(),
            },
        ));
    }
}
