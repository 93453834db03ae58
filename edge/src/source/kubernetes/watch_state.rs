//! Whether changes of the namespace arrive.
//!
//! A watch that resumes where it broke reports nothing until something changes, perhaps for days. So it counts as
//! recovered after a time without another failure.

use tokio::time::{Duration, Instant};

/// Time without another failure after which the watch counts as recovered. Longer than a failing attempt can take: the
/// delay before it (5 s), connecting (30 s), and waiting for the answer (75 s, `READ_TIMEOUT`).
const RECOVERED_AFTER: Duration = Duration::from_mins(2);

/// See the module. Starts without a list: nothing is known.
#[derive(Debug, Default)]
pub(super) struct WatchState {
    /// A complete list was seen, and no other has begun.
    listed: bool,
    failed: Option<Instant>,
}

impl WatchState {
    /// A list begins. That is an attempt, not an answer.
    pub(super) fn list_begins(&mut self) {
        self.listed = false;
    }

    /// A list is complete.
    pub(super) fn list_ends(&mut self) {
        self.listed = true;
    }

    /// The API server answered.
    pub(super) fn heard(&mut self) {
        self.failed = None;
    }

    /// An attempt failed, or the watch broke.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failed = Some(now);
    }

    /// When to call [`Self::due`].
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.failed.map(|at| at + RECOVERED_AFTER)
    }

    /// True: the last failure is long enough ago, the watch has recovered.
    pub(super) fn due(&mut self, now: Instant) -> bool {
        let recovered = self.next_due().is_some_and(|at| at <= now);
        if recovered {
            self.failed = None;
        }
        recovered
    }

    /// Whether everything that exists is loaded.
    pub(super) fn is_current(&self) -> bool {
        self.listed && self.failed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> WatchState {
        let mut watch = WatchState::default();
        watch.list_begins();
        assert!(!watch.is_current());
        watch.list_ends();
        assert!(watch.is_current());
        watch
    }

    #[test]
    fn after_a_failure_a_quiet_namespace_is_followed_again_without_a_change() {
        let (mut watch, now) = (listed(), Instant::now());
        watch.failed(now);
        watch.failed(now + RECOVERED_AFTER / 2);
        assert!(!watch.due(now + RECOVERED_AFTER) && !watch.is_current(), "it failed again");
        let due = watch.next_due().unwrap();
        assert!(watch.due(due) && watch.is_current());
        assert_eq!(watch.next_due(), None);
    }

    #[test]
    fn an_event_counts_immediately_and_a_list_only_when_complete() {
        let (mut watch, now) = (listed(), Instant::now());
        watch.failed(now);
        watch.heard();
        assert!(watch.is_current());
        watch.list_begins();
        watch.failed(now);
        assert!(watch.due(now + RECOVERED_AFTER) && !watch.is_current(), "the list is not complete");
        watch.list_ends();
        assert!(watch.is_current());
    }
}
