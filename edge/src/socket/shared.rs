//! What the connections of a process share, beside what their hubs share ([`HubContext`](crate::push::context::HubContext)).

use std::sync::Arc;

use super::{charge::Charges, inbound::Inbound};
use crate::{business::judge::Judge, drain::Drain, identity::keys::KeyRing};

/// See the module.
pub struct Shared {
    /// Signs and verifies tickets.
    pub keys: Arc<KeyRing>,
    /// Checks large content.
    pub judge: Arc<Judge>,
    /// What identities owe for input that brings nothing.
    pub charges: Arc<Charges>,
    /// Room for clients' messages that have begun.
    pub inbound: Arc<Inbound>,
    /// Where shutdown stands.
    pub drain: Drain,
}
