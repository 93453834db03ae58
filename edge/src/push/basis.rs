//! What a choice of pushes for a connection depends on.

use std::sync::Arc;

use super::{hub::Hub, mailbox::Mailbox};
use crate::business::Business;

/// The declaration that the pushes were judged by, and the tags that the connection had. A slow client gets what was
/// chosen for it long after; once one of the two has changed, the rest of the choice is made anew.
#[derive(Clone, Debug)]
pub(super) struct Basis {
    judge: Arc<Business>,
    tags: u16,
}

impl Basis {
    /// For a choice that is made from now on.
    pub(super) fn now(hub: &Hub, mailbox: &Mailbox) -> Self {
        Self { judge: hub.business(), tags: mailbox.tags() }
    }

    /// Whether the choice would be the same now.
    pub(super) fn holds(&self, hub: &Hub, mailbox: &Mailbox) -> bool {
        self.tags == mailbox.tags() && hub.judges_as(&self.judge)
    }
}
