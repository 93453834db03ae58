//! Which resume tokens of a session are still good at this edge: those that a newer connection, or a refresh, has not
//! replaced. Another edge that has not seen the newer connection knows nothing of it.

use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;

use super::{
    expiring::{Entry, Expiring},
    grant::Grant,
};

/// Sessions in memory at most, 10 MB.
const MAX_KEPT: usize = 262_144;

/// See the module.
#[derive(Debug)]
pub struct Successions {
    /// The oldest generation that is good of each session, until the session ends.
    kept: Mutex<Expiring<u64, u32>>,
}

impl Successions {
    /// None yet. `forgotten` counts those that the bound made it forget.
    pub fn new(forgotten: Counter) -> Self {
        Self::at_most(MAX_KEPT, forgotten)
    }

    fn at_most(most: usize, forgotten: Counter) -> Self {
        Self { kept: Mutex::new(Expiring::new(most, forgotten)) }
    }

    /// Whether a token was replaced.
    pub fn replaced(&self, grant: &Grant) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&grant.session).is_some_and(|oldest| grant.generation < *oldest)
    }

    /// Only this generation of a session's tokens and later ones are good. `until`: the end of the session.
    pub fn begin(&self, session: u64, generation: u32, until: i64, now: i64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Old((oldest, end)) = kept.entry(session, generation, until, now) {
            (*oldest, *end) = (generation.max(*oldest), until.max(*end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_token_is_replaced_and_memory_is_bounded() {
        let forgotten = Counter::default();
        let sessions = Successions::at_most(100, forgotten.clone());
        let of = |session, generation| Grant { session, generation, ..Grant::default() };
        assert!(!sessions.replaced(&of(5, 0)));
        sessions.begin(5, 2, 1_000, 0);
        sessions.begin(5, 1, 1_000, 0);
        assert!(sessions.replaced(&of(5, 1)) && !sessions.replaced(&of(5, 2)) && !sessions.replaced(&of(6, 0)));
        for session in 10..1000 {
            sessions.begin(session, 1, 2_000 + session as i64, 0);
        }
        assert!(sessions.kept.lock().unwrap().len() <= 100 && forgotten.get() > 0);
        assert!(sessions.replaced(&of(999, 0)));
    }
}
