//! Whether the changes of the namespace are heard of.
//!
//! A watch that is taken up again where it broke says nothing until something changes, perhaps for days. So after a failure the absence of
//! further ones has to do.

use tokio::time::{Duration, Instant};

/// How long after a failure without another one the watch runs again. More than a try that fails can take: the pause before it (5 s), to
/// connect (30 s), and to wait for the answer (75 s, `READ_TIMEOUT`).
const CALM: Duration = Duration::from_mins(2);

/// See the module. Begins without a list: nothing is known.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// A complete list was seen, and no other is under way.
    listed: bool,
    failed: Option<Instant>,
}

impl Following {
    /// A list begins. That is a try and no answer.
    pub(super) fn list_begins(&mut self) {
        self.listed = false;
    }

    /// A list is complete.
    pub(super) fn list_ends(&mut self) {
        self.listed = true;
    }

    /// The API server said something.
    pub(super) fn heard(&mut self) {
        self.failed = None;
    }

    /// A try failed, or what was followed broke.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failed = Some(now);
    }

    /// When to call [`Self::due`].
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.failed.map(|at| at + CALM)
    }

    /// True: a failure was the last one, the watch runs again.
    pub(super) fn due(&mut self, now: Instant) -> bool {
        let calm = self.next_due().is_some_and(|at| at <= now);
        if calm {
            self.failed = None;
        }
        calm
    }

    /// Whether what is loaded is all that there is.
    pub(super) fn is_current(&self) -> bool {
        self.listed && self.failed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> Following {
        let mut following = Following::default();
        following.list_begins();
        assert!(!following.is_current());
        following.list_ends();
        assert!(following.is_current());
        following
    }

    #[test]
    fn after_a_failure_a_quiet_namespace_is_followed_again_without_a_change() {
        let (mut following, now) = (listed(), Instant::now());
        following.failed(now);
        following.failed(now + CALM / 2);
        assert!(!following.due(now + CALM) && !following.is_current(), "it failed again");
        let due = following.next_due().unwrap();
        assert!(following.due(due) && following.is_current());
        assert_eq!(following.next_due(), None);
    }

    #[test]
    fn what_is_heard_counts_at_once_and_a_list_only_when_complete() {
        let (mut following, now) = (listed(), Instant::now());
        following.failed(now);
        following.heard();
        assert!(following.is_current());
        following.list_begins();
        following.failed(now);
        assert!(following.due(now + CALM) && !following.is_current(), "the list is not complete");
        following.list_ends();
        assert!(following.is_current());
    }
}
