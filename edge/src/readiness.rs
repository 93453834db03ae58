//! Whether this edge may take traffic: a set of named parts that are still pending. The broker is never one of them: when it is away, an
//! edge hands out tokens, holds its sockets and says so in nacks, while an edge out of its Service does none of that.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// The part of an edge that goes.
pub const DRAINING: &str = "draining";

/// The parts that are pending. Empty = ready.
#[derive(Debug, Default)]
pub struct Readiness {
    pending: Mutex<BTreeSet<&'static str>>,
}

impl Readiness {
    /// Makes the edge wait for a part, at the start or later (`draining`).
    pub fn add(&self, part: &'static str) {
        self.lock().insert(part);
    }

    /// The part is there.
    pub fn done(&self, part: &'static str) {
        if self.lock().remove(part) && self.pending().is_empty() {
            tracing::info!(part, "ready");
        }
    }

    /// What is awaited, in alphabetical order.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    /// Whether this part is pending.
    pub fn awaits(&self, part: &str) -> bool {
        self.lock().contains(part)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_nothing_is_pending() {
        let readiness = Readiness::default();
        readiness.add("listener");
        readiness.add("configuration");
        assert_eq!(readiness.pending(), ["configuration", "listener"]);
        readiness.done("configuration");
        readiness.done("configuration");
        assert_eq!(readiness.pending(), ["listener"]);
        readiness.done("listener");
        assert!(readiness.pending().is_empty());
        assert!(!readiness.awaits(DRAINING));
        readiness.add(DRAINING);
        assert!(readiness.awaits(DRAINING));
        assert_eq!(readiness.pending(), ["draining"]);
    }
}
