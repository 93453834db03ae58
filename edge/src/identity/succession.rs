//! Which resume tokens of a session are still good at this edge: those that a newer connection, or a refresh, has not
//! replaced. Another edge that has not seen the newer connection knows nothing of it.

use prometheus_client::metrics::counter::Counter;

use super::{
    expiring::{Entry, Expiring},
    grant::Grant,
};

/// Sessions in memory at most, 10 MB.
const MAX_KEPT: usize = 262_144;

/// See the module.
#[derive(Debug)]
pub struct Successions(
    /// The oldest generation that is good of each session, until the session ends.
    Expiring<u64, u32>,
);

impl Successions {
    /// None yet. `forgotten` counts those that the bound made it forget.
    pub fn new(forgotten: &Counter) -> Self {
        Self::at_most(MAX_KEPT, forgotten)
    }

    fn at_most(most: usize, forgotten: &Counter) -> Self {
        Self(Expiring::new(most, forgotten))
    }

    /// Whether a token was replaced.
    pub fn replaced(&self, business: &str, grant: &Grant) -> bool {
        let outdated = |oldest: &u32| grant.generation < *oldest;
        self.0.read(business, &grant.session, grant.session, outdated).unwrap_or_default()
    }

    /// Only this generation of a session's tokens and later ones are good. `until`: the end of the session.
    pub fn begin(&self, business: &str, session: u64, generation: u32, until: i64, now: i64) {
        self.0.add(business, session, session, Entry { value: generation, until }, now, |old, new| {
            (old.value, old.until) = (old.value.max(new.value), old.until.max(new.until));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_token_is_replaced_and_memory_is_bounded() {
        let forgotten = Counter::default();
        let sessions = Successions::at_most(1_600, &forgotten);
        let of = |session, generation| Grant { session, generation, ..Grant::default() };
        let replaced = |session, generation| sessions.replaced("pay", &of(session, generation));
        assert!(!replaced(5, 0));
        sessions.begin("pay", 5, 2, 1_000, 0);
        sessions.begin("pay", 5, 1, 1_000, 0);
        assert!(replaced(5, 1) && !replaced(5, 2) && !replaced(6, 0));
        assert!(!sessions.replaced("chat", &of(5, 1)), "another business's");
        for session in 10..10_000 {
            sessions.begin("pay", session, 1, 2_000 + session as i64, 0);
        }
        assert!(sessions.0.len() <= 1_600 && forgotten.get() > 0);
        assert!(replaced(9_999, 0));
    }
}
