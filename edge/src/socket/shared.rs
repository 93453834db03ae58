//! What the connections of a process share, beside what their hubs share
//! ([`HubContext`](crate::push::context::HubContext)).

use std::sync::Arc;

use super::{flood::FloodLimiter, inbound::Inbound};
use crate::{audit::Audit, budget::Budget, business::check_pool::CheckPool, drain::Drain, revocation::gate::Gate};

/// Bytes of receipts that wait for the broker, of all connections.
pub const RECEIPT_BYTES: usize = 16 << 20;

/// See the module.
pub struct Shared {
    /// Judges tickets.
    pub gate: Arc<Gate>,
    /// Checks large content.
    pub checks: Arc<CheckPool>,
    /// Limits input that brings nothing.
    pub limiter: Arc<FloodLimiter>,
    /// Room for clients' messages that have begun.
    pub inbound: Arc<Inbound>,
    /// Room for receipts that wait for the broker.
    pub receipts: Budget,
    /// Writes down who was refused.
    pub audit: Arc<Audit>,
    /// Where shutdown stands.
    pub drain: Drain,
}
