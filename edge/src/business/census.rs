//! How many connections the events of a business have told of: what a census says, so that whoever counts connections by
//! events can see that some are missing.
//!
//! An event is counted in the step that publishes it, so a census agrees with the events before it, whatever connects
//! meanwhile.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Censuses that say that nobody is here, when this process begins, when the last client has left, and when another edge
/// has gone; then there is nothing to say. Whoever counts takes an edge for gone that is silent while another one speaks
/// three times.
const OF_NOBODY: u8 = 5;

/// The tally of each business; kept as long as anybody has it.
#[derive(Debug, Default)]
pub struct Tallies(Mutex<HashMap<String, Arc<Tally>>>);

impl Tallies {
    /// That of a business. A hub that replaces another one goes on with it.
    pub fn of(&self, business: &str) -> Arc<Tally> {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tally) = tallies.get(business) {
            return Arc::clone(tally);
        }
        tallies.retain(|_, tally| Arc::strong_count(tally) > 1);
        Arc::clone(tallies.entry(business.to_owned()).or_default())
    }
}

/// The connections of one business that were told of.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Told>);

#[derive(Debug)]
struct Told {
    connections: u64,
    /// Their ids, combined by XOR.
    digest: u128,
    /// Censuses of nobody that are left to say.
    left: u8,
}

impl Default for Told {
    fn default() -> Self {
        Self { connections: 0, digest: 0, left: OF_NOBODY }
    }
}

/// What a census says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// How many connections.
    pub connections: u64,
    /// Their ids, combined by XOR, as 32 hexadecimal digits.
    pub digest: String,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection, and tells of it in the same step.
    pub fn connected(&self, id: &str, tell: impl FnOnce()) {
        let mut told = self.lock();
        told.connections += 1;
        told.digest ^= number(id);
        tell();
    }

    /// Counts it no more, and tells so in the same step.
    pub fn disconnected(&self, id: &str, tell: impl FnOnce()) {
        let mut told = self.lock();
        told.connections = told.connections.saturating_sub(1);
        told.digest ^= number(id);
        tell();
    }

    /// Another edge has gone: whoever counts must hear from one that lives, even if nobody is here.
    pub fn speak_up(&self) {
        self.lock().left = OF_NOBODY;
    }

    /// Tells how many there are, if there is anything to tell. Whether there was.
    pub fn census(&self, tell: impl FnOnce(&Census)) -> bool {
        let mut told = self.lock();
        let tells = told.connections > 0 || told.left > 0;
        told.left = if told.connections > 0 { OF_NOBODY } else { told.left.saturating_sub(1) };
        if tells {
            tell(&Census { connections: told.connections, digest: format!("{:032x}", told.digest) });
        }
        tells
    }
}

/// An id as a number; one that is none counts as 0.
fn number(id: &str) -> u128 {
    uuid::Uuid::try_parse(id).map_or(0, |id| id.as_u128())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids;

    fn census(tally: &Tally) -> Option<Census> {
        let mut said = None;
        tally.census(|census| said = Some(census.clone()));
        said
    }

    #[test]
    fn a_census_says_what_was_told_and_falls_silent_when_nobody_is_here() {
        let tallies = Tallies::default();
        let tally = tallies.of("pay");
        let of_nobody = || (0..10).filter(|_| census(&tally).is_some_and(|census| census.connections == 0)).count();
        assert_eq!(of_nobody(), 5, "at the start");
        let (one, two) = (ids::new(), ids::new());
        tally.connected(&one, || ());
        tally.connected(&two, || ());
        tally.disconnected(&one, || ());
        let digest = two.replace('-', "");
        assert_eq!(census(&tallies.of("pay")), Some(Census { connections: 1, digest }));
        tally.disconnected(&two, || ());
        assert_eq!(census(&tally), Some(Census { connections: 0, digest: "0".repeat(32) }));
        assert_eq!(of_nobody(), 4);
        tally.speak_up();
        assert_eq!(of_nobody(), 5);
    }
}
