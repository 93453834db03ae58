//! The revocations that are in force: by business, then identity or session, until the last session that they end would
//! have ended by itself.
//!
//! Bounded. Beyond the bound the older half of the largest business's revocations becomes one for all its sessions that
//! were issued before them: it ends more than was asked, and nothing that was asked is forgotten.
//!
//! Each also knows whether the control stream still holds it: a stream that replaced another one is empty, and edges
//! that start later would know nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use wirepost_core::contract::control::Revocation;

use crate::identity::grant::{self, Grant};

/// Revocations in memory at most: about 30 MB.
const MAX_KEPT: usize = 200_000;
/// Where a look at all of them at the bound leaves less than this part of the room free, a larger part is made free: the
/// next one must not look at all again.
const SCARCE: usize = 64;
const FREED: usize = 8;
/// Those that are over are removed when as many as this are kept, and again when their number has doubled.
const FIRST_SWEEP: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Revocations {
    known: RwLock<Known>,
    most: usize,
    kept: Gauge,
    widened: Counter,
}

#[derive(Debug)]
struct Known {
    /// No session of any business that was issued until then is known to be good.
    floor: i64,
    businesses: HashMap<String, OfBusiness>,
    count: usize,
    sweep_at: usize,
}

#[derive(Debug, Default)]
struct OfBusiness {
    /// Of all its sessions.
    all: Option<Mark>,
    identities: HashMap<String, Mark>,
    sessions: HashMap<u64, SessionMark>,
}

/// What ended of one session.
#[derive(Clone, Copy, Debug)]
struct SessionMark {
    /// All of it, if it was issued until then.
    whole: Option<i64>,
    /// Its tokens before this generation.
    generation: u32,
    mark: Mark,
}

impl SessionMark {
    fn covers(self, grant: &Grant) -> bool {
        grant.generation < self.generation || self.whole.is_some_and(|before| grant.issued_at <= before)
    }
}

/// Sessions that were issued until `before` have ended.
#[derive(Clone, Copy, Debug)]
struct Mark {
    before: i64,
    until: i64,
    /// The control stream holds it, or what ends as much.
    in_stream: bool,
}

impl Mark {
    fn covers(self, grant: &Grant) -> bool {
        grant.issued_at <= self.before
    }

    fn with(self, other: Self) -> Self {
        let (before, until) = (self.before.max(other.before), self.until.max(other.until));
        let holds = |mark: Self| mark.in_stream && mark.before == before && mark.until == until;
        let in_stream = (self.in_stream && other.in_stream) || holds(self) || holds(other);
        Self { before, until, in_stream }
    }

    /// As a revocation of a business, or of what the caller adds.
    fn revocation(self, business: &str) -> Revocation {
        Revocation {
            business: business.to_owned(),
            unique_id: None,
            session: None,
            generation: None,
            issued_before: self.before,
            until: self.until,
        }
    }
}

impl Default for Known {
    fn default() -> Self {
        Self { floor: i64::MIN, businesses: HashMap::new(), count: 0, sweep_at: FIRST_SWEEP }
    }
}

impl Revocations {
    /// None yet. `kept` shows how many are known, `widened` counts how often the bound was met.
    pub fn new(kept: Gauge, widened: Counter) -> Self {
        Self { known: RwLock::default(), most: MAX_KEPT, kept, widened }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a session was ended.
    pub fn end(&self, business: &str, unique_id: &str, grant: &Grant) -> bool {
        let known = self.read();
        if grant.issued_at <= known.floor {
            return true;
        }
        known.businesses.get(business).is_some_and(|of| {
            let marks = [of.all.as_ref(), of.identities.get(unique_id)];
            marks.into_iter().flatten().any(|mark| mark.covers(grant))
                || of.sessions.get(&grant.session).is_some_and(|session| session.covers(grant))
        })
    }

    /// Takes note of one of the control stream. Returns businesses of which more ends than was asked for.
    pub fn add(&self, revocation: &Revocation, now: i64) -> HashSet<String> {
        let Revocation { business, unique_id, session, generation, issued_before, until } = revocation;
        let mark = Mark { before: *issued_before, until: *until, in_stream: true };
        let mut widened = HashSet::new();
        if mark.until <= now {
            return widened;
        }
        let known = &mut *self.write();
        let of = known.businesses.entry(business.clone()).or_default();
        let before = of.len();
        match (session, unique_id) {
            (Some(text), _) => {
                // Text that names no session ends none.
                if let Some(session) = grant::parse_session(text) {
                    of.end_session(session, *generation, mark);
                }
            }
            (None, Some(unique_id)) => {
                of.identities.entry(unique_id.clone()).and_modify(|old| *old = old.with(mark)).or_insert(mark);
            }
            (None, None) => of.end_all(mark),
        }
        known.count = (known.count + of.len()).saturating_sub(before);
        let looked = known.count >= known.sweep_at.min(self.most);
        if looked {
            known.sweep(now);
        }
        let scarce = looked && known.count > self.most - self.most.div_ceil(SCARCE);
        while scarce
            && known.count > self.most - self.most.div_ceil(FREED)
            && let Some(business) = known.widen()
        {
            self.widened.inc();
            widened.insert(business);
        }
        self.kept.set(i64::try_from(known.count).unwrap_or(i64::MAX));
        widened
    }

    /// The stream has lost what it held up to this time: whatever was issued until then may have been revoked.
    pub fn doubt(&self, until: i64) {
        let mut known = self.write();
        known.floor = known.floor.max(until);
    }

    /// The control stream was replaced by an empty one.
    pub fn stream_is_new(&self) {
        for of in self.write().businesses.values_mut() {
            of.marks_mut().for_each(|mark| mark.in_stream = false);
        }
    }

    /// Up to so many that are in force and that the control stream does not hold. They count as held from now on: the
    /// caller publishes them.
    pub fn to_publish(&self, most: usize, now: i64) -> Vec<Revocation> {
        let mut missing = Vec::new();
        for (business, of) in &mut self.write().businesses {
            of.take_missing(business, now, &mut missing, most);
        }
        missing
    }

    #[cfg(test)]
    fn at_most(most: usize) -> Self {
        Self { most, ..Self::new(Gauge::default(), Counter::default()) }
    }
}

impl Known {
    /// Forgets what is over.
    fn sweep(&mut self, now: i64) {
        self.businesses.retain(|_, of| {
            of.all = of.all.filter(|all| all.until > now);
            of.retain(|mark| mark.until > now);
            of.all.is_some() || of.len() > 0
        });
        self.count = self.businesses.values().map(OfBusiness::len).sum();
        self.sweep_at = (self.count * 2).max(FIRST_SWEEP);
    }

    /// Makes one of the older half of a business's revocations. Returns the business.
    fn widen(&mut self) -> Option<String> {
        let (name, of) = self.businesses.iter_mut().max_by_key(|(_, of)| of.len()).filter(|(_, of)| of.len() > 0)?;
        let mut befores: Vec<i64> = of.marks().map(|mark| mark.before).collect();
        let half = befores.len() / 2;
        let middle = *befores.select_nth_unstable(half).1;
        let older = of.marks().filter(|mark| mark.before <= middle);
        let until = older.map(|mark| mark.until).max().unwrap_or(i64::MIN);
        let length = of.len();
        of.end_all(Mark { before: middle, until, in_stream: false });
        self.count = (self.count + of.len()).saturating_sub(length);
        Some(name.clone())
    }
}

impl OfBusiness {
    fn len(&self) -> usize {
        self.identities.len() + self.sessions.len()
    }

    fn marks(&self) -> impl Iterator<Item = &Mark> {
        self.identities.values().chain(self.sessions.values().map(|session| &session.mark))
    }

    fn marks_mut(&mut self) -> impl Iterator<Item = &mut Mark> {
        let sessions = self.sessions.values_mut().map(|session| &mut session.mark);
        self.all.iter_mut().chain(self.identities.values_mut()).chain(sessions)
    }

    fn take_missing(&mut self, business: &str, now: i64, to: &mut Vec<Revocation>, most: usize) {
        let mut room = most.saturating_sub(to.len());
        let mut take = |mark: &mut Mark| {
            let taken = !mark.in_stream && mark.until > now && room > 0;
            room -= usize::from(taken);
            mark.in_stream |= taken;
            taken.then(|| mark.revocation(business))
        };
        to.extend(self.all.as_mut().and_then(&mut take));
        for (unique_id, mark) in &mut self.identities {
            to.extend(take(mark).map(|of_all| Revocation { unique_id: Some(unique_id.clone()), ..of_all }));
        }
        for (session, SessionMark { whole, generation, mark }) in &mut self.sessions {
            let Some(of_all) = take(mark) else { continue };
            let of_session = Revocation { session: Some(grant::session_text(*session)), ..of_all };
            if let Some(issued_before) = *whole {
                to.push(Revocation { issued_before, ..of_session.clone() });
            }
            if *generation > 0 {
                to.push(Revocation { generation: Some(*generation), ..of_session });
            }
        }
    }

    fn end_session(&mut self, session: u64, generation: Option<u32>, mark: Mark) {
        let whole = generation.is_none().then_some(mark.before);
        let new = SessionMark { whole, generation: generation.unwrap_or(0), mark };
        let merged = |old: &mut SessionMark| {
            let (whole, generation) = (old.whole.max(new.whole), old.generation.max(new.generation));
            *old = SessionMark { whole, generation, mark: old.mark.with(mark) };
        };
        self.sessions.entry(session).and_modify(merged).or_insert(new);
    }

    /// Ends all sessions that were issued before it, and forgets what it covers.
    fn end_all(&mut self, mark: Mark) {
        let all = self.all.map_or(mark, |old| old.with(mark));
        self.all = Some(all);
        self.retain(|mark| mark.before > all.before);
    }

    fn retain(&mut self, keep: impl Fn(&Mark) -> bool) {
        self.identities.retain(|_, mark| keep(mark));
        self.sessions.retain(|_, session| keep(&session.mark));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(unique_id: &str, issued_before: i64) -> Revocation {
        let (business, unique_id) = ("pay".to_owned(), Some(unique_id.to_owned()));
        Revocation { business, unique_id, session: None, generation: None, issued_before, until: issued_before + 1000 }
    }

    fn issued(issued_at: i64) -> Grant {
        Grant { issued_at, session: 5, ..Grant::default() }
    }

    #[test]
    fn a_revocation_ends_what_it_names_and_was_issued_before_it() {
        let known = Revocations::at_most(100);
        known.add(&of("alice", 50), 50);
        assert!(known.end("pay", "alice", &issued(50)) && known.end("pay", "alice", &issued(0)));
        for (business, unique_id, at) in [("pay", "alice", 51), ("pay", "bob", 50), ("bank", "alice", 50)] {
            assert!(!known.end(business, unique_id, &issued(at)), "{business} {unique_id} {at}");
        }
        let session = Revocation { unique_id: None, session: Some(grant::session_text(5)), ..of("", 50) };
        known.add(&session, 50);
        assert!(known.end("pay", "bob", &issued(50)) && !known.end("pay", "bob", &Grant { session: 6, ..issued(50) }));
        known.add(&Revocation { unique_id: None, ..of("", 40) }, 50);
        assert!(
            known.end("pay", "carol", &Grant { session: 7, ..issued(40) }) && !known.end("pay", "carol", &issued(60))
        );
        known.doubt(45);
        assert!(known.end("bank", "alice", &issued(45)) && !known.end("bank", "alice", &issued(46)));
    }

    #[test]
    fn tokens_before_a_generation_end_alone() {
        let known = Revocations::at_most(100);
        let outdated =
            Revocation { unique_id: None, session: Some(grant::session_text(5)), generation: Some(3), ..of("", 50) };
        known.add(&outdated, 50);
        let end = |generation| known.end("pay", "alice", &Grant { generation, ..issued(50) });
        assert!(end(2) && !end(3) && !end(4));
        known.add(&Revocation { generation: None, ..outdated }, 50);
        assert!(end(4) && !known.end("pay", "alice", &Grant { generation: 4, ..issued(51) }), "all that was issued");
    }

    #[test]
    fn an_older_repeat_takes_nothing_back() {
        let known = Revocations::at_most(100);
        known.add(&of("alice", 50), 50);
        known.add(&of("alice", 10), 50);
        assert!(known.end("pay", "alice", &issued(50)));
    }

    #[test]
    fn at_the_bound_more_ends_than_was_asked_and_never_less() {
        let known = Revocations::at_most(10);
        let mut widened = HashSet::new();
        for at in 0..100 {
            widened.extend(known.add(&of(&format!("user-{at}"), at), at));
        }
        assert_eq!(widened, HashSet::from(["pay".to_owned()]));
        assert!(known.read().count < 10, "{known:?}");
        for at in 0..100 {
            assert!(known.end("pay", &format!("user-{at}"), &issued(at)), "user-{at}");
        }
        assert!(known.end("pay", "other", &issued(50)) && !known.end("pay", "other", &issued(99)));
        assert!(!known.end("bank", "other", &issued(50)), "another business has its own");
    }

    #[test]
    fn where_as_many_end_as_come_nothing_is_widened() {
        let known = Revocations::at_most(1000);
        for at in 0..20_000 {
            let revocation = Revocation { until: at + 900, ..of(&format!("user-{at}"), at) };
            assert!(known.add(&revocation, at).is_empty(), "900 in force, and room for 1,000: {at}");
        }
    }

    #[test]
    fn what_a_new_stream_does_not_hold_is_published_once_and_ends_as_much() {
        let known = Revocations::at_most(100);
        let of_session = |session, generation| Revocation {
            unique_id: None,
            session: Some(grant::session_text(session)),
            generation,
            ..of("", 50)
        };
        for revocation in [
            of("alice", 50),
            of("bob", 50),
            Revocation { unique_id: None, ..of("", 20) },
            of_session(5, None),
            of_session(5, Some(3)),
            Revocation { until: 60, ..of("over", 50) },
        ] {
            known.add(&revocation, 50);
        }
        assert!(known.to_publish(100, 60).is_empty(), "the stream has it all");
        known.stream_is_new();
        known.add(&of("bob", 50), 60);
        let other = Revocations::at_most(100);
        let mut published = 0;
        loop {
            let part = known.to_publish(1, 60);
            if part.is_empty() {
                break;
            }
            published += part.len();
            for revocation in &part {
                drop(other.add(revocation, 60));
            }
        }
        assert_eq!(published, 4, "alice, all, and two of the session; another edge has published bob");
        let grant = |issued_at, session, generation| Grant { session, generation, ..issued(issued_at) };
        for known in [&known, &other] {
            let end = |unique_id: &str, grant| known.end("pay", unique_id, &grant);
            assert!(end("alice", grant(50, 6, 0)) && !end("alice", grant(51, 6, 0)));
            assert!(end("carol", grant(20, 6, 0)) && !end("carol", grant(21, 6, 0)));
            assert!(end("carol", grant(50, 5, 9)) && end("carol", grant(51, 5, 2)) && !end("carol", grant(51, 5, 3)));
        }
        known.stream_is_new();
        assert_eq!(known.to_publish(100, 60).len(), 5, "again, if it is replaced again");
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let known = Revocations::at_most(10);
        for at in 0..1000 {
            let at = at * 1000;
            assert!(known.add(&of(&format!("user-{at}"), at), at).is_empty());
        }
        assert!(known.read().count < 10, "{known:?}");
    }
}
