//! Which resume tokens of a session are still good at this edge: those that a newer connection, or a refresh, has not
//! replaced. Another edge that has not seen the newer connection knows nothing of it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use prometheus_client::metrics::counter::Counter;

use super::grant::Grant;

/// Sessions in memory at most, 10 MB.
const MAX_KEPT: usize = 262_144;
/// Those that are over are removed when as many as this are kept, and again when their number has doubled.
const FIRST_SWEEP: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Successions {
    kept: Mutex<Kept>,
    most: usize,
    forgotten: Counter,
}

#[derive(Debug)]
struct Kept {
    by_session: HashMap<u64, Succession>,
    sweep_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Succession {
    /// The oldest generation that is good.
    generation: u32,
    /// End of the session, ms since the epoch.
    until: i64,
}

impl Successions {
    /// None yet. `forgotten` counts those that the bound made it forget.
    pub fn new(forgotten: Counter) -> Self {
        let kept = Mutex::new(Kept { by_session: HashMap::new(), sweep_at: FIRST_SWEEP });
        Self { kept, most: MAX_KEPT, forgotten }
    }

    /// Whether a token was replaced.
    pub fn replaced(&self, grant: &Grant) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.by_session.get(&grant.session).is_some_and(|session| grant.generation < session.generation)
    }

    /// Only this generation of a session's tokens and later ones are good.
    pub fn begin(&self, session: u64, generation: u32, until: i64, now: i64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.by_session.len() >= kept.sweep_at.min(self.most) {
            kept.by_session.retain(|_, session| session.until > now);
            if kept.by_session.len() >= self.most {
                // Those that end first: their old tokens are good for the shortest time.
                let half = kept.by_session.len() / 2;
                let mut ends: Vec<i64> = kept.by_session.values().map(|session| session.until).collect();
                let middle = *ends.select_nth_unstable(half).1;
                let before = kept.by_session.len();
                kept.by_session.retain(|_, session| session.until > middle);
                self.forgotten.inc_by((before - kept.by_session.len()) as u64);
            }
            kept.sweep_at = (kept.by_session.len() * 2).max(FIRST_SWEEP);
        }
        let new = Succession { generation, until };
        let session = kept.by_session.entry(session).or_insert(new);
        *session = Succession { generation: session.generation.max(generation), until: session.until.max(until) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_token_is_replaced_and_memory_is_bounded() {
        let sessions = Successions { most: 100, ..Successions::new(Counter::default()) };
        let of = |session, generation| Grant { session, generation, ..Grant::default() };
        assert!(!sessions.replaced(&of(5, 0)));
        sessions.begin(5, 2, 1_000, 0);
        sessions.begin(5, 1, 1_000, 0);
        assert!(sessions.replaced(&of(5, 1)) && !sessions.replaced(&of(5, 2)) && !sessions.replaced(&of(6, 0)));
        for session in 10..1000 {
            sessions.begin(session, 1, 2_000 + session as i64, 0);
        }
        assert!(sessions.kept.lock().unwrap().by_session.len() <= 100 && sessions.forgotten.get() > 0);
        assert!(sessions.replaced(&of(999, 0)));
    }
}
