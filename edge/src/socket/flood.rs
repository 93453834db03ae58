//! Limits what an identity sends: its messages, what brings a business nothing (refused messages, control frames, pings,
//! fragments), and connecting.
//!
//! Each connection has a [`Bucket`] for its frames. When it overflows, the socket is not read until it has room,
//! [`MAX_WAIT`] at most: nothing is refused, and TCP makes the client wait. What is in the bucket when the connection
//! ends is kept here for the next connection of the same identity, so that a reconnect gains nothing. Connecting has a
//! bucket of its own for each identity; so have messages, which all its connections fill.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::bucket::{Bucket, Rate};

/// Identities whose buckets are kept at most. Beyond it a new one begins with an empty bucket at each connection.
const MAX_IDENTITIES: usize = 65_536;
/// Empty buckets are removed when as many as this are kept, and again when their number has doubled.
const FIRST_SWEEP: usize = 1024;
/// Least time between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// Units after which a connection's bucket is kept although the connection continues: it may end slowly, after the next
/// one has begun.
const KEEP_AFTER: u32 = 25;
/// The longest wait. What a client owes beyond it is forgiven: a fault that is repaired must not be paid for all day.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a refused message that cost as much as a frame.
const BYTES_PER_UNIT: usize = 16 << 10;
/// Frames of a connection: 50 a second, 200 at the same time.
const FRAMES: Rate = Rate { per_unit: Duration::from_millis(20), burst: 200 };

/// How often an identity may connect that may have `connections` at a time: 5 a second or a tenth of them, and in a
/// burst all of them four times and 100 more.
fn connecting(connections: u32) -> Rate {
    Rate::per_second(connections.div_ceil(10).max(5), connections.saturating_mul(4).saturating_add(100))
}

/// The units of a frame.
fn units(bytes: usize) -> u32 {
    u32::try_from(1 + bytes / BYTES_PER_UNIT).unwrap_or(u32::MAX)
}

/// The bucket of one connection's frames. Its content is kept for the next connection of the identity: when it is
/// dropped, and now and then before.
#[derive(Debug)]
pub struct ConnectionBucket {
    limiter: Arc<FloodLimiter>,
    key: IdentityKey,
    bucket: Bucket,
    /// Added since it was kept.
    unkept: u32,
    /// Of the identity's messages; `None` until it sends one here.
    messages: Option<Arc<MessageBucket>>,
}

/// Filled by the messages of all connections of an identity. The lock is of that identity alone.
#[derive(Debug, Default)]
struct MessageBucket(Mutex<Bucket>);

impl MessageBucket {
    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionBucket {
    /// Begins with what the identity's last connection left.
    pub fn open(limiter: &Arc<FloodLimiter>, key: IdentityKey) -> Self {
        Self { limiter: Arc::clone(limiter), key, bucket: limiter.kept(key), unkept: 0, messages: None }
    }

    /// Charges the identity for a message.
    ///
    /// # Errors
    /// How long to wait: it sends too fast, and is not charged.
    pub fn message(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let Self { limiter, key, messages, .. } = self;
        messages.get_or_insert_with(|| limiter.messages(*key)).lock().try_add(rate, now)
    }

    /// Charges a frame of this size. Some: nothing more is read from the client until then.
    pub fn charge(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let units = units(bytes);
        let until = self.bucket.add(units, FRAMES, MAX_WAIT, now);
        self.unkept = self.unkept.saturating_add(units);
        if self.unkept >= KEEP_AFTER {
            self.keep();
        }
        until
    }

    fn keep(&mut self) {
        self.unkept = 0;
        self.limiter.keep(self.key, self.bucket);
    }
}

impl Drop for ConnectionBucket {
    fn drop(&mut self) {
        self.keep();
    }
}

/// An identity of a business, as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdentityKey(u64);

#[derive(Debug, Default)]
struct IdentityBuckets {
    frames: Bucket,
    connecting: Bucket,
    messages: Option<Arc<MessageBucket>>,
}

impl IdentityBuckets {
    /// Whether a new one would be the same.
    fn is_empty(&self, now: Instant) -> bool {
        let used = |messages: &Arc<MessageBucket>| Arc::strong_count(messages) > 1 || !messages.lock().is_empty(now);
        self.frames.is_empty(now) && self.connecting.is_empty(now) && !self.messages.as_ref().is_some_and(used)
    }
}

/// The buckets of identities, between and beside their connections. Bounded; empty ones are not kept.
#[derive(Debug)]
pub struct FloodLimiter {
    names: RandomState,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    by_key: HashMap<IdentityKey, IdentityBuckets>,
    sweep_at: usize,
    /// No sweep before: where hardly any bucket is empty, that stays so for a while.
    next_sweep: Instant,
}

impl Default for FloodLimiter {
    fn default() -> Self {
        let buckets = Buckets { by_key: HashMap::new(), sweep_at: FIRST_SWEEP, next_sweep: Instant::now() };
        Self { names: RandomState::new(), buckets: Mutex::new(buckets) }
    }
}

impl FloodLimiter {
    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an identity's buckets are kept by.
    pub fn key(&self, business: &str, unique_id: &str) -> IdentityKey {
        IdentityKey(self.names.hash_one((business, unique_id)))
    }

    /// Charges an identity for connecting; it may have `connections` at a time.
    ///
    /// # Errors
    /// How long to wait: it connects too often. The refused attempt is not charged, so it gets in as soon as the wait
    /// is over.
    pub fn connect(&self, key: IdentityKey, connections: u32) -> Result<(), Duration> {
        let now = Instant::now();
        let mut buckets = self.lock();
        match buckets.entry(key, now) {
            Some(identity) => identity.connecting.try_add(connecting(connections), now),
            None => Ok(()),
        }
    }

    /// The bucket of an identity's messages.
    fn messages(&self, key: IdentityKey) -> Arc<MessageBucket> {
        match self.lock().entry(key, Instant::now()) {
            Some(identity) => Arc::clone(identity.messages.get_or_insert_default()),
            None => Arc::default(),
        }
    }

    /// What a new connection of an identity begins with.
    fn kept(&self, key: IdentityKey) -> Bucket {
        self.lock().by_key.get(&key).map_or_else(Bucket::default, |identity| identity.frames)
    }

    fn keep(&self, key: IdentityKey, bucket: Bucket) {
        let now = Instant::now();
        if bucket.is_empty(now) {
            return;
        }
        let mut buckets = self.lock();
        if let Some(identity) = buckets.entry(key, now) {
            identity.frames = identity.frames.fuller(bucket);
        }
    }
}

impl Buckets {
    fn entry(&mut self, key: IdentityKey, now: Instant) -> Option<&mut IdentityBuckets> {
        if self.by_key.len() >= self.sweep_at && now >= self.next_sweep {
            self.by_key.retain(|_, identity| !identity.is_empty(now));
            self.by_key.shrink_to(FIRST_SWEEP);
            self.next_sweep = now + SWEEP_INTERVAL;
            self.sweep_at = (self.by_key.len() * 2).clamp(FIRST_SWEEP, MAX_IDENTITIES);
        }
        if self.by_key.len() >= MAX_IDENTITIES && !self.by_key.contains_key(&key) {
            return None;
        }
        Some(self.by_key.entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_is_longer_than_the_longest() {
        let limiter = Arc::new(FloodLimiter::default());
        let alice = limiter.key("pay", "alice");
        for _ in 0..10_000 {
            let until = ConnectionBucket::open(&limiter, alice).charge(1 << 20, now());
            assert!(until.is_none_or(|until| until - now() <= MAX_WAIT));
        }
        tokio::time::advance(MAX_WAIT + FRAMES.full()).await;
        assert_eq!(limiter.kept(alice).add(FRAMES.burst, FRAMES, MAX_WAIT, now()), None, "the bucket is empty");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconnect_does_not_empty_the_bucket() {
        let limiter = Arc::new(FloodLimiter::default());
        let open = |business, unique_id| ConnectionBucket::open(&limiter, limiter.key(business, unique_id));
        let mut first = open("pay", "alice");
        assert!((0..FRAMES.burst).all(|_| first.charge(0, now()).is_none()));
        assert!(open("pay", "alice").charge(0, now()).is_some(), "also while the first one goes on");
        drop(first);
        assert!(open("pay", "alice").charge(0, now()).is_some());
        assert!(open("pay", "bob").charge(0, now()).is_none(), "another identity");
        assert!(open("other", "alice").charge(0, now()).is_none(), "another business");
        tokio::time::advance(FRAMES.full() * 2).await;
        assert!(open("pay", "alice").charge(0, now()).is_none(), "empty again");
    }

    #[tokio::test(start_paused = true)]
    async fn all_connections_of_an_identity_share_the_rate_of_its_messages() {
        let limiter = Arc::new(FloodLimiter::default());
        let open = |unique_id| ConnectionBucket::open(&limiter, limiter.key("pay", unique_id));
        let rate = Rate::per_second(10, 20);
        let mut sent = 0;
        for _ in 0..10 {
            let (mut first, mut second) = (open("alice"), open("alice"));
            sent += (0..10).filter(|_| first.message(rate, now()).is_ok()).count();
            sent += (0..10).filter(|_| second.message(rate, now()).is_ok()).count();
        }
        assert_eq!(sent, 20);
        assert!(open("bob").message(rate, now()).is_ok());
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(open("alice").message(rate, now()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_connects_too_often_waits_and_then_gets_in() {
        let limiter = FloodLimiter::default();
        let alice = limiter.key("pay", "alice");
        let got_in = (0..1000).filter(|_| limiter.connect(alice, 8).is_ok()).count();
        assert_eq!(got_in, 132);
        let wait = limiter.connect(alice, 8).unwrap_err();
        assert!(limiter.connect(limiter.key("pay", "bob"), 8).is_ok());
        tokio::time::advance(wait).await;
        assert!(limiter.connect(alice, 8).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn buckets_are_bounded_and_empty_ones_are_removed() {
        let limiter = FloodLimiter::default();
        for n in 0..MAX_IDENTITIES + 10 {
            assert!(limiter.connect(IdentityKey(n as u64), 8).is_ok());
        }
        assert_eq!(limiter.lock().by_key.len(), MAX_IDENTITIES);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(limiter.connect(IdentityKey(0), 8).is_ok());
        assert_eq!(limiter.lock().by_key.len(), 1, "all are empty");
        assert!(limiter.lock().by_key.capacity() < 4 * FIRST_SWEEP);
    }
}
