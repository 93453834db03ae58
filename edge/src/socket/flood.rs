//! What a client pays for input that brings its business nothing: refused messages, control frames, pings, fragments, and connecting.
//!
//! An *account* is worked off at a steady pace and may be overdrawn by a burst; beyond it the client waits, [`LONGEST_WAIT`] at most. A connection's own account pays
//! for its frames: what is over the burst stays unread in the socket, so nothing is refused and TCP makes the client wait. What is not
//! worked off when a connection ends is kept here, for the next one of the same identity; so is what its connecting costs.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Identities whose accounts are kept at most. Beyond it a new one begins with an empty account at each connection.
const MAX_IDENTITIES: usize = 65_536;
/// Kept accounts are looked through when there are as many as this, and again when they have doubled.
const FIRST_SWEEP: usize = 1024;
/// Time between two looks at least.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// Units after which what a connection owes is kept, though it goes on: it may end slowly, and the next one begin before.
const KEEP_AFTER: u32 = 25;
/// The longest wait. What a client owes beyond it is forgiven: a fault that is mended must not be paid for all day.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a refused message that cost as much as a frame.
const BYTES_PER_UNIT: usize = 16 << 10;

/// How fast an account is worked off, and by how much it may be overdrawn.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Time that works off one unit.
    per_unit: Duration,
    /// Units at once.
    burst: u32,
}

/// Of a connection's frames: 50 a second, 200 at once.
const FRAMES: Pace = Pace { per_unit: Duration::from_millis(20), burst: 200 };

impl Pace {
    /// Of an identity's connecting: for one that may have `connections` at a time, 5 a second or a tenth of them, and at once as much as
    /// all of them four times over and 100 more.
    fn of_connecting(connections: u32) -> Self {
        let per_second = connections.div_ceil(10).max(5);
        Self { per_unit: Duration::from_secs(1) / per_second, burst: connections.saturating_mul(4).saturating_add(100) }
    }
}

/// The price of a frame.
fn units(bytes: usize) -> u32 {
    u32::try_from(1 + bytes / BYTES_PER_UNIT).unwrap_or(u32::MAX)
}

/// What one payer has still to work off.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// When all is worked off; `None` or past = nothing is owed.
    clear_at: Option<Instant>,
}

impl Account {
    /// Adds to it. Some: wait until then.
    fn charge(&mut self, units: u32, pace: Pace, now: Instant) -> Option<Instant> {
        let burst = pace.per_unit * pace.burst;
        let owed = self.clear_at.map_or(now, |at| at.max(now)) + pace.per_unit * units;
        let clear_at = owed.min(now + burst + LONGEST_WAIT);
        self.clear_at = Some(clear_at);
        clear_at.checked_sub(burst).filter(|until| *until > now)
    }

    fn is_clear(self, now: Instant) -> bool {
        self.clear_at.is_none_or(|at| at <= now)
    }

    fn or_later(self, other: Self) -> Self {
        Self { clear_at: self.clear_at.max(other.clear_at) }
    }
}

/// The account of one connection. What it owes is kept for the next connection of its identity, at the end and every now and then before.
#[derive(Debug)]
pub struct Tab {
    charges: Arc<Charges>,
    payer: Payer,
    account: Account,
    /// Charged since it was kept.
    unkept: u32,
}

impl Tab {
    /// Begins with what the identity's last connection owed.
    pub fn open(charges: &Arc<Charges>, payer: Payer) -> Self {
        Self { charges: Arc::clone(charges), payer, account: charges.owed(payer), unkept: 0 }
    }

    /// Charges a frame of so many bytes. Some: nothing more is read from the client until then.
    pub fn charge(&mut self, bytes: usize) -> Option<Instant> {
        let units = units(bytes);
        let until = self.account.charge(units, FRAMES, Instant::now());
        self.unkept = self.unkept.saturating_add(units);
        if self.unkept >= KEEP_AFTER {
            self.keep();
        }
        until
    }

    fn keep(&mut self) {
        self.unkept = 0;
        self.charges.keep(self.payer, self.account);
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        self.keep();
    }
}

/// An identity of a business, as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Payer(u64);

#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    frames: Account,
    connecting: Account,
}

/// The accounts of identities, between and beside their connections. Bounded; nothing is kept of who owes nothing.
#[derive(Debug)]
pub struct Charges {
    names: RandomState,
    kept: Mutex<Accounts>,
}

#[derive(Debug)]
struct Accounts {
    by_payer: HashMap<Payer, Kept>,
    sweep_at: usize,
    /// Not looked through before: what is full of debts stays full for a while.
    next_sweep: Instant,
}

impl Default for Charges {
    fn default() -> Self {
        let accounts = Accounts { by_payer: HashMap::new(), sweep_at: FIRST_SWEEP, next_sweep: Instant::now() };
        Self { names: RandomState::new(), kept: Mutex::new(accounts) }
    }
}

impl Charges {
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who pays for an identity's connections.
    pub fn payer(&self, business: &str, unique_id: &str) -> Payer {
        Payer(self.names.hash_one((business, unique_id)))
    }

    /// Charges an identity for connecting; it may have `connections` at a time.
    ///
    /// # Errors
    /// How long to wait: it connects too often.
    pub fn connect(&self, payer: Payer, connections: u32) -> Result<(), Duration> {
        let now = Instant::now();
        let pace = Pace::of_connecting(connections);
        let mut accounts = self.lock();
        let Some(kept) = accounts.entry(payer, now) else { return Ok(()) };
        let before = kept.connecting;
        let Some(until) = kept.connecting.charge(1, pace, now) else { return Ok(()) };
        // Who is refused pays nothing: it gets in as soon as its wait is over.
        kept.connecting = before;
        Err(until - now)
    }

    /// What a new connection of an identity begins with.
    fn owed(&self, payer: Payer) -> Account {
        self.lock().by_payer.get(&payer).map_or_else(Account::default, |kept| kept.frames)
    }

    fn keep(&self, payer: Payer, account: Account) {
        let now = Instant::now();
        if account.is_clear(now) {
            return;
        }
        let mut accounts = self.lock();
        if let Some(kept) = accounts.entry(payer, now) {
            kept.frames = kept.frames.or_later(account);
        }
    }
}

impl Accounts {
    fn entry(&mut self, payer: Payer, now: Instant) -> Option<&mut Kept> {
        if self.by_payer.len() >= self.sweep_at && now >= self.next_sweep {
            self.by_payer.retain(|_, kept| !(kept.frames.is_clear(now) && kept.connecting.is_clear(now)));
            self.by_payer.shrink_to(FIRST_SWEEP);
            self.next_sweep = now + SWEEP_INTERVAL;
            self.sweep_at = (self.by_payer.len() * 2).clamp(FIRST_SWEEP, MAX_IDENTITIES);
        }
        if self.by_payer.len() >= MAX_IDENTITIES && !self.by_payer.contains_key(&payer) {
            return None;
        }
        Some(self.by_payer.entry(payer).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn beyond_the_burst_the_pace_counts() {
        let mut account = Account::default();
        let now = Instant::now();
        for _ in 0..FRAMES.burst {
            assert_eq!(account.charge(1, FRAMES, now), None);
        }
        assert_eq!(account.charge(1, FRAMES, now), Some(now + FRAMES.per_unit));
        let later = now + FRAMES.per_unit * (FRAMES.burst + 1);
        assert!(account.is_clear(later));
        assert_eq!(account.charge(FRAMES.burst, FRAMES, later), None, "worked off");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_owed_has_a_ceiling() {
        let charges = Arc::new(Charges::default());
        let alice = charges.payer("pay", "alice");
        for _ in 0..10_000 {
            let until = Tab::open(&charges, alice).charge(1 << 20);
            assert!(until.is_none_or(|until| until - Instant::now() <= LONGEST_WAIT));
        }
        tokio::time::advance(LONGEST_WAIT + FRAMES.per_unit * FRAMES.burst).await;
        assert_eq!(charges.owed(alice).charge(FRAMES.burst, FRAMES, Instant::now()), None, "all is worked off");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconnect_does_not_clear_an_account() {
        let charges = Arc::new(Charges::default());
        let open = |business, unique_id| Tab::open(&charges, charges.payer(business, unique_id));
        let mut first = open("pay", "alice");
        assert!((0..FRAMES.burst).all(|_| first.charge(0).is_none()));
        assert!(open("pay", "alice").charge(0).is_some(), "also while the first one goes on");
        drop(first);
        assert!(open("pay", "alice").charge(0).is_some());
        assert!(open("pay", "bob").charge(0).is_none(), "another identity");
        assert!(open("other", "alice").charge(0).is_none(), "another business");
        tokio::time::advance(FRAMES.per_unit * 2 * FRAMES.burst).await;
        assert!(open("pay", "alice").charge(0).is_none(), "worked off");
    }

    #[tokio::test(start_paused = true)]
    async fn who_connects_too_often_waits_and_then_gets_in() {
        let charges = Charges::default();
        let alice = charges.payer("pay", "alice");
        let got_in = (0..1000).filter(|_| charges.connect(alice, 8).is_ok()).count();
        assert_eq!(got_in, 132);
        let wait = charges.connect(alice, 8).unwrap_err();
        assert!(charges.connect(charges.payer("pay", "bob"), 8).is_ok());
        tokio::time::advance(wait).await;
        assert!(charges.connect(alice, 8).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_are_bounded_and_given_back() {
        let charges = Charges::default();
        for n in 0..MAX_IDENTITIES + 10 {
            assert!(charges.connect(Payer(n as u64), 8).is_ok());
        }
        assert_eq!(charges.lock().by_payer.len(), MAX_IDENTITIES);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(charges.connect(Payer(0), 8).is_ok());
        assert_eq!(charges.lock().by_payer.len(), 1, "nobody owes anything");
        assert!(charges.lock().by_payer.capacity() < 4 * FIRST_SWEEP);
    }
}
