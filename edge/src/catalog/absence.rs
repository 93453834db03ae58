//! What this edge knows of businesses that it does not run: a client must be told "come back" where another edge, or this one in a
//! moment, may have its business, and "come back slowly" where it is gone.

use std::collections::{BTreeSet, VecDeque};

/// Names of removed businesses that are remembered; the oldest are forgotten, and then merely unknown.
const MAX_GONE: usize = 4096;

/// Why a business is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It was removed.
    Gone,
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
    gone: VecDeque<String>,
    /// Declared, and never could be run here. Bounded by what is declared.
    unfit: BTreeSet<String>,
}

impl Absences {
    pub(super) fn why(&self, business: &str) -> Absent {
        if !self.current || self.unfit.contains(business) {
            Absent::NotYet
        } else if self.gone.iter().any(|gone| gone == business) {
            Absent::Gone
        } else {
            Absent::Unknown
        }
    }

    /// It runs.
    pub(super) fn runs(&mut self, business: &str) {
        self.unfit.remove(business);
        self.gone.retain(|gone| gone != business);
    }

    /// It is declared and can't be run.
    pub(super) fn unfit(&mut self, business: &str) {
        self.runs(business);
        self.unfit.insert(business.to_owned());
    }

    /// All that is declared is known.
    pub(super) fn only_declared(&mut self, is_declared: impl Fn(&str) -> bool) {
        self.unfit.retain(|name| is_declared(name));
    }

    /// It was removed.
    pub(super) fn gone(&mut self, business: &str) {
        self.runs(business);
        if self.gone.len() == MAX_GONE {
            self.gone.pop_front();
        }
        self.gone.push_back(business.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_removed_is_gone_and_only_while_the_configurations_are_followed() {
        let mut absences = Absences::default();
        absences.gone("a");
        assert_eq!(absences.why("a"), Absent::NotYet, "nothing is loaded");
        absences.current = true;
        absences.unfit("c");
        for (business, why) in [("a", Absent::Gone), ("b", Absent::Unknown), ("c", Absent::NotYet)] {
            assert_eq!(absences.why(business), why, "{business}");
        }
        absences.runs("a");
        absences.gone("c");
        assert_eq!((absences.why("a"), absences.why("c")), (Absent::Unknown, Absent::Gone));
        absences.current = false;
        assert_eq!(absences.why("c"), Absent::NotYet, "it may be back");
    }

    #[test]
    fn names_of_removed_businesses_are_bounded() {
        let mut absences = Absences { current: true, ..Absences::default() };
        for n in 0..=MAX_GONE {
            absences.gone(&n.to_string());
        }
        assert_eq!(absences.gone.len(), MAX_GONE);
        assert_eq!((absences.why("0"), absences.why("1")), (Absent::Unknown, Absent::Gone));
    }
}
