//! Metrics of this process. Every label is from a closed set, but for the businesses of [`Metrics::depths`], which are bounded.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use wirepost_runtime::tasks::Supervisor;
use wirepost_topology::depths::Depths;

use crate::census::Counted;

/// The name under which panics of the keeper's tasks are counted.
pub const BROKER_JOB: &str = "broker job";
/// Businesses whose depths are reported; of more, those with the most messages.
const MAX_DEPTHS: usize = 1000;

/// How one reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// Everything is as declared.
    Ready,
    /// Something is awaited or a person has to act: the status says what.
    Waiting,
    /// Tried again with backoff.
    Error,
}

/// What was repaired or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Object {
    /// Status of a WsBusiness.
    Status,
    /// Finalizer of a WsBusiness.
    Finalizer,
    /// Edge configuration.
    ConfigMap,
    /// Access Secret.
    Secret,
    /// Event.
    Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByObject {
    object: Object,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCondition {
    condition: &'static str,
    status: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByBusiness {
    business: String,
}

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    /// Counts panics.
    pub tasks: Supervisor,
    registry: Registry,
    reconciles: Family<ByOutcome, Counter>,
    writes: Family<ByObject, Counter>,
    /// Seconds of a reconcile.
    pub reconcile_seconds: Histogram,
    /// Reconciles that run now.
    reconciling: Gauge,
    /// Businesses known.
    pub businesses: Gauge,
    /// Recomputed by each [`Metrics::encode`], one at a time.
    business_conditions: Family<ByCondition, Gauge>,
    encoding: Mutex<()>,
    /// Statuses that were not written immediately, since what they report often passes.
    pub status_delays: Counter,
    /// Requests to the keeper that wait for an answer.
    broker_queue: Gauge,
    /// Calls of the broker's management API.
    pub broker_calls: Counter,
    /// Changes on the broker.
    pub broker_changes: Counter,
    /// Those among them that put back what a person or a lost disk had changed.
    pub drift_repairs: Counter,
    /// Snapshots that the broker did not give.
    pub broker_failures: Counter,
    /// Seconds of a snapshot.
    pub snapshot_seconds: Histogram,
    /// Messages moved from `unrouted` back to where they belong.
    pub moved_back: Counter,
    /// Messages of `unrouted` that can't be moved; they are in `dead`.
    pub set_aside: Counter,
    /// Messages in `unrouted` that no route takes; NaN while that is not known, and on a standby.
    pub strays: Gauge<f64, AtomicU64>,
    /// Whether the broker answers by AMQP; NaN where it was not asked, as on a standby.
    pub amqp_up: Gauge<f64, AtomicU64>,
    dead_messages: Family<ByBusiness, Gauge>,
    unrouted_messages: Family<ByBusiness, Gauge>,
    /// Businesses that the two above contain now.
    reported_businesses: Mutex<BTreeSet<String>>,
    /// Resources that run here and that the selector does not match any more.
    pub unselected: Gauge,
    /// 1 while the installed CustomResourceDefinition lacks fields.
    pub crd_outdated: Gauge,
    /// 1 if the vhost is this installation's, 0 if it is or may be another's; NaN while that is not known.
    pub vhost_owned: Gauge<f64, AtomicU64>,
    /// 1 while the brake holds deletions.
    pub deletions_held: Gauge,
    /// Ready edges.
    pub edges: Gauge,
    /// Ready edges that do not answer us.
    pub edges_unreachable: Gauge,
    /// 1 while this replica leads.
    leader: Gauge,
}

impl Metrics {
    /// With those of the process's tasks.
    pub fn new(tasks: &Supervisor) -> Self {
        let mut metrics = Self { tasks: tasks.clone(), ..Self::default() };
        tasks.register(&mut metrics.registry);
        tasks.count_panics_of(BROKER_JOB);
        metrics
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let mut metrics = Self {
            tasks: Supervisor::default(),
            registry: Registry::with_prefix("wirepost_operator"),
            reconciles: Family::default(),
            writes: Family::default(),
            reconcile_seconds: seconds(),
            reconciling: Gauge::default(),
            businesses: Gauge::default(),
            business_conditions: Family::default(),
            encoding: Mutex::default(),
            status_delays: Counter::default(),
            broker_queue: Gauge::default(),
            broker_calls: Counter::default(),
            broker_changes: Counter::default(),
            drift_repairs: Counter::default(),
            broker_failures: Counter::default(),
            snapshot_seconds: seconds(),
            moved_back: Counter::default(),
            set_aside: Counter::default(),
            strays: Gauge::default(),
            amqp_up: Gauge::default(),
            dead_messages: Family::default(),
            unrouted_messages: Family::default(),
            reported_businesses: Mutex::default(),
            unselected: Gauge::default(),
            crd_outdated: Gauge::default(),
            vhost_owned: Gauge::default(),
            deletions_held: Gauge::default(),
            edges: Gauge::default(),
            edges_unreachable: Gauge::default(),
            leader: Gauge::default(),
        };
        metrics.strays.set(f64::NAN);
        metrics.amqp_up.set(f64::NAN);
        metrics.vhost_owned.set(f64::NAN);
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let Self {
            tasks: _,
            registry: r,
            reconciles,
            writes,
            reconcile_seconds,
            reconciling,
            businesses,
            business_conditions,
            encoding: _,
            status_delays,
            broker_queue,
            broker_calls,
            broker_changes,
            drift_repairs,
            broker_failures,
            snapshot_seconds,
            moved_back,
            set_aside,
            strays,
            amqp_up,
            dead_messages,
            unrouted_messages,
            reported_businesses: _,
            unselected,
            crd_outdated,
            vhost_owned,
            deletions_held,
            edges,
            edges_unreachable,
            leader,
        } = self;
        r.register("reconciles", "Reconciles by outcome", reconciles.clone());
        r.register("api_writes", "Writes to the API server by object", writes.clone());
        r.register("reconcile_seconds", "Seconds of a reconcile", reconcile_seconds.clone());
        r.register("reconciling", "Reconciles that run now", reconciling.clone());
        r.register("businesses", "WsBusiness resources known", businesses.clone());
        r.register(
            "business_conditions",
            "WsBusiness resources by condition, its status and its reason, from the leader only",
            business_conditions.clone(),
        );
        r.register(
            "status_delays",
            "Statuses that were delayed, since what they report often passes",
            status_delays.clone(),
        );
        r.register("broker_queue", "Requests to the broker that wait for an answer", broker_queue.clone());
        r.register("broker_calls", "Calls of the broker's management API", broker_calls.clone());
        r.register("broker_changes", "Changes on the broker", broker_changes.clone());
        r.register(
            "drift_repairs",
            "Changes that put back what was not changed by a declaration",
            drift_repairs.clone(),
        );
        r.register("broker_failures", "Snapshots of the broker that failed", broker_failures.clone());
        r.register("broker_look_seconds", "Seconds of a snapshot of the broker", snapshot_seconds.clone());
        r.register("unrouted_moved_back", "Messages moved from unrouted to where they belong", moved_back.clone());
        r.register("unrouted_set_aside", "Messages of unrouted that can't be moved, now in dead", set_aside.clone());
        r.register(
            "unrouted_strays",
            "Messages in unrouted that no route takes, NaN while it is not known",
            strays.clone(),
        );
        r.register("amqp_up", "1 while the broker answers by AMQP, NaN while it was not asked", amqp_up.clone());
        r.register("dead_messages", "Messages in dead of a business; absent = not known", dead_messages.clone());
        r.register(
            "unrouted_messages",
            "Messages in unrouted of a business; absent = not known",
            unrouted_messages.clone(),
        );
        let outdated = "1 while the installed CustomResourceDefinition is older than this operator";
        r.register("crd_outdated", outdated, crd_outdated.clone());
        r.register("unselected", "Resources that run here and that the selector no longer matches", unselected.clone());
        r.register(
            "vhost_owned",
            "1 if the vhost is this installation's, 0 if it may be another's, NaN while it is not known",
            vhost_owned.clone(),
        );
        r.register(
            "deletions_held",
            "1 while the deletion of most businesses waits for an administrator",
            deletions_held.clone(),
        );
        r.register("edges", "Ready edges", edges.clone());
        r.register("edges_unreachable", "Ready edges that do not answer the operator", edges_unreachable.clone());
        r.register("leader", "1 while this replica leads", leader.clone());
    }

    /// A reconcile runs until this is dropped.
    pub fn running(&self) -> Running<'_> {
        self.reconciling.inc();
        Running(&self.reconciling)
    }

    /// A request waits for the broker until this is dropped.
    pub fn waiting_for_broker(&self) -> Running<'_> {
        self.broker_queue.inc();
        Running(&self.broker_queue)
    }

    /// A reconcile has ended.
    pub fn reconciled(&self, outcome: Outcome) {
        self.reconciles.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// What was counted now; `None` = nothing is known. What is not known is absent, never 0.
    pub fn depths(&self, counted: Option<Vec<(String, Depths)>>) {
        let mut counted = counted.unwrap_or_default();
        if counted.len() > MAX_DEPTHS {
            counted.sort_by_key(|(_, depths)| Reverse(depths.dead.max(depths.unrouted)));
            counted.truncate(MAX_DEPTHS);
        }
        let mut reported = self.reported_businesses.lock().unwrap_or_else(PoisonError::into_inner);
        // Not cleared first: a scrape in between would resolve an alert that is still active.
        let mut now = BTreeSet::new();
        for (business, Depths { dead, unrouted }) in counted {
            let label = ByBusiness { business };
            for (family, depth) in [(&self.dead_messages, dead), (&self.unrouted_messages, unrouted)] {
                match depth {
                    Some(depth) => _ = family.get_or_create(&label).set(depth.into()),
                    None => _ = family.remove(&label),
                }
            }
            now.insert(label.business);
        }
        for business in reported.difference(&now) {
            let label = ByBusiness { business: business.clone() };
            self.dead_messages.remove(&label);
            self.unrouted_messages.remove(&label);
        }
        *reported = now;
    }

    /// An object was written.
    pub fn wrote(&self, object: Object) {
        self.writes.get_or_create(&ByObject { object }).inc();
    }

    /// OpenMetrics text. `leads`: whether this replica leads at this moment; `conditions`: businesses by condition, none of a replica that
    /// does not lead, so that a sum over all replicas counts each once.
    pub fn encode(&self, leads: bool, conditions: &BTreeMap<Counted, i64>) -> String {
        let _one_at_a_time = self.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        self.leader.set(leads.into());
        self.business_conditions.clear();
        for (Counted { condition, status, reason }, count) in conditions {
            self.business_conditions.get_or_create(&ByCondition { condition, status, reason }).set(*count);
        }
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// See [`Metrics::running`] and [`Metrics::waiting_for_broker`].
#[derive(Debug)]
pub struct Running<'a>(&'a Gauge);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = metrics.encode(false, &BTreeMap::new());
        let depths = text.lines().filter(|line| line.contains("_messages{"));
        depths.map(|line| line.trim_start_matches("wirepost_operator_").to_owned()).collect()
    }

    #[test]
    fn the_counter_of_panics_is_there_before_the_first_one() {
        let text = Metrics::new(&Supervisor::default()).encode(true, &BTreeMap::new());
        assert!(text.contains("wirepost_operator_task_panics_total{task=\"broker job\"} 0"), "{text}");
    }

    #[test]
    fn a_depth_that_is_not_known_is_absent_and_never_nothing() {
        let metrics = Metrics::default();
        let of = |business: &str, dead, unrouted| (business.to_owned(), Depths { dead, unrouted });
        metrics.depths(Some(vec![of("pay", Some(3), Some(0)), of("chat", None, Some(1))]));
        let mut seen = lines(&metrics);
        seen.sort();
        assert_eq!(
            seen,
            [
                r#"dead_messages{business="pay"} 3"#,
                r#"unrouted_messages{business="chat"} 1"#,
                r#"unrouted_messages{business="pay"} 0"#,
            ]
        );
        metrics.depths(Some(vec![of("pay", Some(0), None)]));
        assert_eq!(lines(&metrics), [r#"dead_messages{business="pay"} 0"#]);
        metrics.depths(None);
        assert!(lines(&metrics).is_empty());
        let many = (0..1500).map(|n| of(&format!("b{n}"), Some(u32::from(n == 1400)), Some(0)));
        metrics.depths(Some(many.collect()));
        assert_eq!(lines(&metrics).len(), 2 * MAX_DEPTHS);
        assert!(
            lines(&metrics).contains(&r#"dead_messages{business="b1400"} 1"#.to_owned()),
            "the deepest are reported"
        );
    }
}
