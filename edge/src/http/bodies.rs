//! Bodies of messages calls in memory, those included that have been announced and not arrived.

use prometheus_client::metrics::gauge::Gauge;

use super::answer::Refusal;
use crate::budget::{Budget, Full};

/// Bytes of all bodies.
const MAX_BYTES: usize = 128 << 20;

/// For the bodies of a process.
pub(super) fn budget() -> Budget {
    Budget::new(MAX_BYTES, Gauge::default())
}

/// The answer where there is no room.
pub(super) fn refusal(full: Full) -> Refusal {
    Refusal::overloaded(match full {
        Full::Edge => "this edge holds as many messages as it may, retry",
        Full::Business => "this edge holds as many messages of this business as it may, retry",
    })
}
