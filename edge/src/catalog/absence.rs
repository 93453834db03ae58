//! What this edge knows about businesses that it does not serve. A client must reconnect if another edge, or this one
//! in a moment, may serve its business, and back off if the business was removed.

use std::collections::{BTreeSet, VecDeque};

/// Names of removed businesses that are remembered; beyond it the oldest becomes unknown.
const MAX_REMOVED: usize = 4096;

/// Why a business is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It was removed.
    Removed,
    /// Its configuration can't be used here, or not all configurations are loaded, or they are not followed: other
    /// edges may serve it.
    NotYet,
    /// All configurations are loaded and followed, and none has this name.
    Unknown,
}

/// The names that are not served and about which something is known.
#[derive(Debug, Default)]
pub(super) struct Absences {
    /// Everything that is declared has been loaded, and changes arrive.
    pub(super) current: bool,
    removed: VecDeque<String>,
    /// Declared, and never valid here. Bounded by what is declared.
    invalid: BTreeSet<String>,
}

impl Absences {
    pub(super) fn why(&self, business: &str) -> Absent {
        if !self.current || self.invalid.contains(business) {
            Absent::NotYet
        } else if self.removed.iter().any(|removed| removed == business) {
            Absent::Removed
        } else {
            Absent::Unknown
        }
    }

    /// It is served.
    pub(super) fn runs(&mut self, business: &str) {
        self.invalid.remove(business);
        self.removed.retain(|removed| removed != business);
    }

    /// It is declared, and its configuration can't be used.
    pub(super) fn invalid(&mut self, business: &str) {
        self.runs(business);
        self.invalid.insert(business.to_owned());
    }

    /// Everything that is declared is known: other names are dropped.
    pub(super) fn only_declared(&mut self, is_declared: impl Fn(&str) -> bool) {
        self.invalid.retain(|name| is_declared(name));
    }

    /// It was removed.
    pub(super) fn removed(&mut self, business: &str) {
        self.runs(business);
        if self.removed.len() == MAX_REMOVED {
            self.removed.pop_front();
        }
        self.removed.push_back(business.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_business_counts_as_removed_only_while_the_configurations_are_followed() {
        let mut absences = Absences::default();
        absences.removed("a");
        assert_eq!(absences.why("a"), Absent::NotYet, "nothing is loaded");
        absences.current = true;
        absences.invalid("c");
        for (business, why) in [("a", Absent::Removed), ("b", Absent::Unknown), ("c", Absent::NotYet)] {
            assert_eq!(absences.why(business), why, "{business}");
        }
        absences.runs("a");
        absences.removed("c");
        assert_eq!((absences.why("a"), absences.why("c")), (Absent::Unknown, Absent::Removed));
        absences.current = false;
        assert_eq!(absences.why("c"), Absent::NotYet, "it may be back");
    }

    #[test]
    fn names_of_removed_businesses_are_bounded() {
        let mut absences = Absences { current: true, ..Absences::default() };
        for n in 0..=MAX_REMOVED {
            absences.removed(&n.to_string());
        }
        assert_eq!(absences.removed.len(), MAX_REMOVED);
        assert_eq!((absences.why("0"), absences.why("1")), (Absent::Unknown, Absent::Removed));
    }
}
