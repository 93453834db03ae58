//! Whether a process may take traffic: a set of named parts that are still pending.
//!
//! A part is pending as long as a [`Pending`] guard of it exists. The guard belongs to whatever completes the part, so that no part is
//! forgotten when its owner ends, and none becomes ready because its owner panicked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The part of a process that shuts down.
pub const DRAINING: &str = "draining";

/// The parts that are pending; without one the process is ready. Cheap to clone: all clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// Part → its guards.
    pending: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// Keeps a part pending until it is dropped.
#[derive(Debug)]
#[must_use = "the part is pending only as long as this exists"]
pub struct Pending {
    part: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Makes the process wait for a part, at its start or later.
    pub fn wait_for(&self, part: &'static str) -> Pending {
        *self.lock().entry(part).or_default() += 1;
        Pending { part, readiness: self.clone() }
    }

    /// The parts that are pending, in alphabetical order.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().keys().copied().collect()
    }

    /// Whether this part is pending.
    pub fn waits_for(&self, part: &str) -> bool {
        self.lock().contains_key(part)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The owner did not complete it.
        if std::thread::panicking() {
            return;
        }
        let mut pending = self.readiness.lock();
        let Some(guards) = pending.get_mut(self.part) else { return };
        *guards -= 1;
        if *guards == 0 {
            pending.remove(self.part);
            let (part, ready) = (self.part, pending.is_empty());
            drop(pending);
            if part != DRAINING {
                tracing::info!(part, ready, "a part is ready");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_no_guard_is_left() {
        let readiness = Readiness::default();
        assert!(readiness.pending().is_empty());
        let listener = readiness.wait_for("listener");
        let (first, second) = (readiness.wait_for("configuration"), readiness.clone().wait_for("configuration"));
        assert_eq!(readiness.pending(), ["configuration", "listener"]);
        drop(first);
        assert_eq!(readiness.pending(), ["configuration", "listener"]);
        drop(second);
        assert!(readiness.waits_for("listener") && !readiness.waits_for("configuration"));
        drop(listener);
        assert!(readiness.pending().is_empty());
        let _draining = readiness.wait_for(DRAINING);
        assert_eq!(readiness.pending(), [DRAINING]);
    }

    #[test]
    fn a_part_whose_owner_panics_stays_pending() {
        let readiness = Readiness::default();
        let part = readiness.wait_for("configuration");
        let owner = std::thread::spawn(move || {
            let _part = part;
            panic!("the owner of a part");
        });
        owner.join().unwrap_err();
        assert_eq!(readiness.pending(), ["configuration"]);
    }
}
