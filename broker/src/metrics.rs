//! How numbers of a broker appear among the metrics of the program.

use std::fmt;

use prometheus_client::{encoding::DescriptorEncoder, metrics::MetricType};

/// Before every name.
pub(crate) const PREFIX: &str = "wirepost_broker";

/// One number without labels. Its type is `unknown`: OpenMetrics wants the names of counters to end in `_total`, and dashboards and alerts
/// know these without.
pub(crate) fn encode(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder.encode_descriptor(name, help.trim(), None, MetricType::Unknown)?.encode_gauge(&value)
}
