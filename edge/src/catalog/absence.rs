//! What this edge knows of businesses that it does not run: a client must be told "come back" where another edge, or this one in a
//! moment, may have its business, and "come back slowly" where it is removed.

use std::collections::{BTreeSet, VecDeque};

/// Names of removed businesses that are remembered; the oldest are forgotten, and then merely unknown.
const MAX_REMOVED: usize = 4096;

/// Why a business is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It was removed.
    Removed,
    /// Its configuration can't be run here, or the configurations are not all loaded, or not followed: other edges may have it.
    NotYet,
    /// All configurations are loaded and followed, and none is of this name.
    Unknown,
}

/// Every name that is not run and about which something is known.
#[derive(Debug, Default)]
pub(super) struct Absences {
    /// Everything that is declared has been loaded, and changes are heard of.
    pub(super) current: bool,
    removed: VecDeque<String>,
    /// Declared, and never could be run here. Bounded by what is declared.
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

    /// It runs.
    pub(super) fn runs(&mut self, business: &str) {
        self.invalid.remove(business);
        self.removed.retain(|removed| removed != business);
    }

    /// It is declared and can't be run.
    pub(super) fn invalid(&mut self, business: &str) {
        self.runs(business);
        self.invalid.insert(business.to_owned());
    }

    /// All that is declared is known.
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
    fn only_what_was_removed_is_gone_and_only_while_the_configurations_are_followed() {
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
