//! Counters and gauges of the edge. Labels come from closed sets: no names, ids or error texts.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use wirepost_broker::Broker;
use wirepost_runtime::tasks::Supervisor;

use crate::lateness::Lateness;

/// Before the names of the edge's own.
const PREFIX: &str = "wirepost_edge";

/// All metrics; cheap to clone parts of.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open sockets.
    pub connections: Gauge,
    /// Sockets opened since the start.
    pub connections_total: Counter,
    /// Ends of connections by close reason.
    pub closes: Family<Label, Counter>,
    /// Frames from clients.
    pub frames_in: Counter,
    /// Frames to clients.
    pub frames_out: Counter,
    /// Messages of clients confirmed by the broker.
    pub acks: Counter,
    /// Messages of clients refused, by code.
    pub nacks: Family<Label, Counter>,
    /// Checks of large content that wait for a thread.
    pub checks_waiting: Gauge,
    /// Pauses in reading a socket, by what was charged.
    pub slowed: Family<Label, Counter>,
    /// Messages that clients reported as received, by result (`delivered`, `refused`), and messages dropped before
    /// (`forgotten`).
    pub receipts: Family<Label, Counter>,
    /// Pushes queued for sockets (one per connection).
    pub deliveries: Counter,
    /// Sockets that negotiated compression.
    pub compressing: Gauge,
    /// Pushes that were compressed, once for all their receivers.
    pub compressed_pushes: Counter,
    /// Bytes that compressed frames would have taken.
    pub compressed_from: Counter,
    /// Bytes that they took.
    pub compressed_to: Counter,
    /// Pushes that were read and rejected, by reason.
    pub rejected_pushes: Family<Label, Counter>,
    /// Pushes that had expired when they were read.
    pub late_pushes: Counter,
    /// Rejected pushes that got no event of their own.
    pub suppressed_events: Counter,
    /// Bytes of recent pushes in memory.
    pub log_bytes: Gauge,
    /// Bytes queued for sockets.
    pub outbound_bytes: Gauge,
    /// Bytes on their way to all sockets, each push counted once.
    pub backlog_bytes: Gauge,
    /// Sockets closed since those bytes exceeded their budget.
    pub backlog_closes: Counter,
    /// Bytes reserved for unfinished messages of clients.
    pub inbound_bytes: Gauge,
    /// Times that a business was at a limit of its own, by what is limited.
    pub business_limited: Family<Label, Counter>,
    /// Requests refused, by reason (`connection_limit`, `unauthorized`, `bad_request`, `origin`, …).
    pub refused: Family<Label, Counter>,
    /// TLS handshakes, by outcome.
    pub tls_handshakes: Family<Label, Counter>,
    /// Refusals of the audit, by reason.
    pub audited: Family<Label, Counter>,
    /// Those of them that have no line of their own.
    pub audit_summed: Counter,
    /// Token calls by outcome (`ok`, `refused`).
    pub tokens: Family<Label, Counter>,
    /// Token calls whose JWT lacks the declared tags claim.
    pub tokens_without_tags: Counter,
    /// Gaps sent to clients, by reason.
    pub gaps: Family<Label, Counter>,
    /// Pages of streams read for clients that catch up.
    pub catch_up_reads: Counter,
    /// Bytes of cached pages.
    pub page_bytes: Gauge,
    /// Bytes of receipts that wait for the broker.
    pub receipt_bytes: Gauge,
    /// Bytes of pushes whose receipts are awaited.
    pub followed_bytes: Gauge,
    /// Businesses for which this edge judges who gave no receipt in time.
    pub judging: Gauge,
    /// Events that somebody gave none.
    pub undelivered: Counter,
    /// Times that no more pushes were read until those were judged that wait.
    pub judge_held_back: Counter,
    /// Times that receipts or pushes were gone before they were judged.
    pub judge_gaps: Counter,
    /// Reads of judges that wait for a place.
    pub judge_reads_waiting: Gauge,
    /// How long ago it was known of each business, here or by another edge's word, that somebody judges.
    pub judge_late: Lateness,
    /// Businesses that are read, since they have clients here.
    pub readers: Gauge,
    /// Businesses whose clients wait for pushes while none are read.
    pub readers_down: Gauge,
    /// The largest known lag of a reader behind the broker, in messages; NaN if none is known.
    pub reader_lag: Gauge<f64, AtomicU64>,
    /// Streams that a reader found replaced by another one.
    pub streams_replaced: Counter,
    /// Sockets at most.
    pub max_connections: Gauge,
    /// 1 while the broker accepts publishes.
    pub broker_up: Gauge,
    /// Refused configurations; the last accepted one stays.
    pub bad_configs: Counter,
    /// Failures of the watch of the ConfigMaps; the loaded configurations stay.
    pub config_watch_errors: Counter,
    /// Failed accepts.
    pub accept_errors: Counter,
    /// Connections whose callers have not been let in.
    pub strangers: Gauge,
    /// Bytes that these hold.
    pub stranger_bytes: Gauge,
    /// Those that were closed for others, by what was short (`places`, `bytes`, `address`).
    pub strangers_gone: Family<Label, Counter>,
    /// Revocations in force.
    pub revocations: Gauge,
    /// Times that the bound of revocations made one of many.
    pub revocations_widened: Counter,
    /// Revocations published to a control stream that had replaced another one.
    pub revocations_restored: Counter,
    /// Used tickets and replaced resume tokens that the bound made this edge forget.
    pub spent_forgotten: Family<Label, Counter>,
    /// 1 while the control stream is read.
    pub control_up: Gauge,
    /// The other edges that this one knows, by how they are (`answers`, `refuses`, `silent`).
    pub peers: Family<Label, Gauge>,
    /// Questions who is here, by outcome (`complete`, `incomplete`, `busy`), and those of other edges (`of_a_peer`).
    pub presence: Family<Label, Counter>,
    /// Questions on the admin port that no edge of this installation signed.
    pub forged_questions: Counter,
    /// Those that one has signed for another process: the one that was here before this one.
    pub misdirected_questions: Counter,
    /// Clients that were let go for an even load.
    pub let_go: Counter,
    /// Those that have not left yet.
    pub leaving: Gauge,
    /// Seconds in which this edge held more than its share and let nobody go, by the reason.
    pub balance_holds: Family<Label, Counter>,
    /// Censuses published.
    pub censuses: Counter,
}

/// One label from a closed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Label {
    /// The set's member.
    pub kind: Kind,
}

/// A label value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(pub &'static str);

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// The label of a member of a closed set.
pub fn label(kind: &'static str) -> Label {
    Label { kind: Kind(kind) }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let edge = registry.sub_registry_with_prefix(PREFIX);
        macro_rules! metric {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                edge.register($name, $help, Clone::clone(&metric));
                metric
            }};
        }
        let judge_late = Lateness::new(
            "judge_late_seconds",
            "The longest time for which nobody judged who gave no receipt in time, as far as this edge knows",
        );
        edge.register_collector(Box::new(judge_late.clone()));
        // Resolved once: a lookup by label would be a lock for each frame.
        let frames: Family<Label, Counter> = metric!("frames", "WebSocket frames by direction");
        let compressed: Family<Label, Counter> =
            metric!("compression_bytes", "Bytes of compressed frames before and after");
        let metrics = Self {
            frames_in: frames.get_or_create_owned(&label("in")),
            frames_out: frames.get_or_create_owned(&label("out")),
            connections: metric!("connections", "Open sockets"),
            connections_total: metric!("connections_opened", "Sockets ever opened"),
            closes: metric!("closes", "Ends of connections by reason"),
            acks: metric!("acks", "Messages of clients that the broker confirmed"),
            nacks: metric!("nacks", "Messages of clients that were not accepted, by code"),
            checks_waiting: metric!("checks_waiting", "Checks of large content that wait for a thread"),
            slowed: metric!(
                "slowed",
                "Times that a socket was not read for a while, because its client sent too much that brings nothing"
            ),
            receipts: metric!("receipts", "Messages reported as received by what became of the report"),
            deliveries: metric!("deliveries", "Pushes handed to sockets"),
            compressing: metric!("compressing_connections", "Sockets that negotiated compression"),
            compressed_pushes: metric!("compressed_pushes", "Pushes compressed, once for all their receivers"),
            compressed_from: compressed.get_or_create_owned(&label("before")),
            compressed_to: compressed.get_or_create_owned(&label("after")),
            rejected_pushes: metric!("rejected_pushes", "Pushes that were not delivered to anybody, by reason"),
            late_pushes: metric!("late_pushes", "Pushes whose time was over by the time they were read"),
            suppressed_events: metric!(
                "suppressed_events",
                "Rejected pushes that got no event of their own, since their business had too many"
            ),
            log_bytes: metric!("log_bytes", "Recent pushes in memory, in bytes"),
            outbound_bytes: metric!("outbound_bytes", "Queued for sockets, in bytes"),
            backlog_bytes: metric!("backlog_bytes", "On their way to all sockets, each push counted once, in bytes"),
            backlog_closes: metric!(
                "backlog_closes",
                "Sockets closed since the bytes on their way exceeded the budget"
            ),
            inbound_bytes: metric!("inbound_bytes", "Taken by messages of clients that have begun, in bytes"),
            business_limited: metric!("business_limited", "Times that a business was at a limit of its own, by kind"),
            refused: metric!("refused", "Requests refused, by reason"),
            tls_handshakes: metric!("tls_handshakes", "TLS handshakes by outcome"),
            audited: metric!("audited", "Refused tokens, sockets and calls, by reason"),
            audit_summed: metric!(
                "audit_summed",
                "Refusals that are counted in a line with others, since there were too many"
            ),
            tokens: metric!("tokens", "Token calls by outcome"),
            tokens_without_tags: metric!("tokens_without_tags", "Sessions whose JWT lacks the claim declared for tags"),
            gaps: metric!("gaps", "Gaps reported to clients: messages may be missing, by reason"),
            catch_up_reads: metric!("catch_up_reads", "Pages of streams read for clients that catch up"),
            page_bytes: metric!("page_bytes", "Pages of streams kept for further clients that catch up, in bytes"),
            readers: metric!("readers", "Businesses that are to be read, since clients of theirs are here"),
            followed_bytes: metric!("followed_bytes", "Held for pushes whose receipts are awaited, in bytes"),
            judging: metric!("judging", "Businesses for which this edge judges who gave no receipt in time"),
            undelivered: metric!("undelivered", "Events that an identity gave no receipt of a push in time"),
            judge_held_back: metric!(
                "judge_held_back",
                "Times that no more pushes were followed until those that wait for receipts are judged"
            ),
            judge_gaps: metric!("judge_gaps", "Times that receipts or pushes were gone before they were judged"),
            judge_reads_waiting: metric!(
                "judge_reads_waiting",
                "Reads for judging who gave no receipt that wait for others to end"
            ),
            judge_late,
            receipt_bytes: metric!("receipt_bytes", "Held for receipts that wait for the broker, in bytes"),
            readers_down: metric!("readers_down", "Businesses whose clients wait for pushes while none are read"),
            reader_lag: metric!(
                "reader_lag",
                "Messages that the reader furthest behind the broker has still to read, NaN while no reader's lag is known"
            ),
            streams_replaced: metric!("streams_replaced", "Streams that a reader found replaced by another one"),
            max_connections: metric!("max_connections", "Sockets at most"),
            broker_up: metric!("broker_up", "1 while the broker takes publishes"),
            bad_configs: metric!("bad_configs", "Configurations refused, the last good one kept"),
            config_watch_errors: metric!("config_watch_errors", "Troubles with the watch of the ConfigMaps"),
            accept_errors: metric!("accept_errors", "Failed accepts"),
            strangers: metric!("strangers", "Connections whose callers have shown no valid token or key yet"),
            stranger_bytes: metric!("stranger_bytes", "Held by these, in bytes"),
            strangers_gone: metric!("strangers_gone", "Those that were closed for others, by what was short"),
            revocations: metric!("revocations", "Revocations in force"),
            revocations_widened: metric!(
                "revocations_widened",
                "Times that a business had too many revocations, and the older half became one for all its older sessions"
            ),
            revocations_restored: metric!(
                "revocations_restored",
                "Revocations that this edge published to a control stream that had replaced another one"
            ),
            spent_forgotten: metric!(
                "spent_tokens_forgotten",
                "Used tickets and replaced resume tokens that had to be forgotten early, since there were too many"
            ),
            control_up: metric!("control_up", "1 while the control stream is read, and with it revocations"),
            peers: metric!("peers", "Other edges that this one knows, by how they are"),
            presence: metric!("presence_questions", "Questions who is here, by outcome"),
            forged_questions: metric!(
                "forged_questions",
                "Questions on the admin port that no edge of this installation has signed"
            ),
            misdirected_questions: metric!(
                "misdirected_questions",
                "Questions on the admin port for the process that was here before this one"
            ),
            let_go: metric!("let_go", "Clients asked to connect elsewhere for an even load"),
            leaving: metric!("leaving", "Clients that were asked so and have not left yet"),
            balance_holds: metric!(
                "balance_holds",
                "Seconds in which this edge held more than its share and let nobody go, by reason"
            ),
            censuses: metric!("censuses", "Censuses published"),
            registry,
        };
        // Alerts watch their growth, and Prometheus sees no growth in a series that begins with its first event.
        for (family, kind) in [
            (&metrics.gaps, "retention"),
            (&metrics.gaps, "incarnation"),
            (&metrics.gaps, "cursor"),
            (&metrics.gaps, "unread"),
            (&metrics.refused, "connection_limit"),
            (&metrics.refused, "connect_rate"),
            (&metrics.refused, "business_connections"),
            (&metrics.refused, "edge_share"),
            (&metrics.refused, "address_connections"),
            (&metrics.refused, "address_handshakes"),
            (&metrics.strangers_gone, "places"),
            (&metrics.strangers_gone, "bytes"),
            (&metrics.strangers_gone, "address"),
            (&metrics.closes, "too_slow"),
            (&metrics.slowed, "frames"),
            (&metrics.slowed, "failures"),
            (&metrics.receipts, "forgotten"),
            (&metrics.receipts, "unsent"),
            (&metrics.closes, "overloaded"),
            (&metrics.closes, "refused"),
        ] {
            family.get_or_create_owned(&label(kind));
        }
        metrics
    }
}

impl Metrics {
    /// With those of the broker.
    pub fn with_broker(broker: &dyn Broker) -> Self {
        let mut metrics = Self::default();
        broker.register(&mut metrics.registry);
        metrics
    }

    /// Adds those of supervised tasks.
    pub fn include(&mut self, supervisor: &Supervisor) {
        supervisor.register(self.registry.sub_registry_with_prefix(PREFIX));
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use wirepost_broker::memory::MemoryBroker;

    use super::*;

    #[test]
    fn the_brokers_metrics_stand_beside_the_edges_under_names_of_their_own() {
        let text = Metrics::with_broker(&MemoryBroker::new()).encode();
        for line in [
            "# TYPE wirepost_edge_connections gauge",
            "wirepost_edge_acks_total 0",
            "# TYPE wirepost_broker_published unknown",
            "wirepost_broker_published 0",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is missing in {text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    }
}
