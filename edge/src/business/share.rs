//! What one business uses of an edge, and its limits: so many connections, messages, bytes and pushes a second. Its
//! memory is counted where it is used: on the way out in [`backlog`](crate::push::backlog), on the way in in
//! [`inbound`](crate::socket::inbound) and by the messages call.
//!
//! Counters of all its connections, so without locks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;
use wirepost_core::edge_config::{DEFAULT_BYTES_PER_SECOND, EdgeShare};

use crate::{
    bucket::Rate,
    metrics::{Metrics, label},
};

/// Questions who is here: a second, and in a burst. Each is asked at all edges.
const QUESTIONS: (u32, u32) = (20, 100);
/// Descriptions that are made: a second, and in a burst.
const DESCRIPTIONS: (u32, u32) = (5, 20);

/// One for each business, whatever becomes of its configuration.
#[derive(Debug)]
pub struct Share {
    connections: Arc<AtomicUsize>,
    messages: SharedBucket,
    /// Bytes of messages, and of pushes by HTTP.
    message_bytes: SharedBucket,
    push_bytes: SharedBucket,
    /// Pushes by HTTP.
    calls: SharedBucket,
    /// Pushes that are read.
    reads: SharedBucket,
    /// Questions who is here.
    questions: SharedBucket,
    /// Descriptions that are made.
    descriptions: SharedBucket,
    limited: Limited,
}

/// How often businesses were at their limits.
#[derive(Debug)]
struct Limited {
    messages: Counter,
    bytes: Counter,
    calls: Counter,
    reads: Counter,
    questions: Counter,
    descriptions: Counter,
}

/// It has had as much as it may for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// Of what: messages, pushes or bytes.
    pub unit: &'static str,
    /// When the next one fits.
    pub wait: Duration,
}

/// One connection of a business; returned when dropped.
#[derive(Debug)]
pub struct ShareOfConnection(Arc<AtomicUsize>);

impl Share {
    /// Nothing is in use.
    pub fn new(metrics: &Metrics) -> Self {
        let now = Instant::now();
        let limited = |kind| metrics.business_limited.get_or_create_owned(&label(kind));
        Self {
            connections: Arc::default(),
            messages: SharedBucket::new(now),
            message_bytes: SharedBucket::new(now),
            push_bytes: SharedBucket::new(now),
            calls: SharedBucket::new(now),
            reads: SharedBucket::new(now),
            questions: SharedBucket::new(now),
            descriptions: SharedBucket::new(now),
            limited: Limited {
                messages: limited("messages"),
                bytes: limited("bytes"),
                calls: limited("pushes"),
                reads: limited("reads"),
                questions: limited("presence"),
                descriptions: limited("descriptions"),
            },
        }
    }

    /// Connections that it has.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection; `None` if it has as many as it may.
    pub fn connection(&self, limits: &EdgeShare) -> Option<ShareOfConnection> {
        let max = limits.connections.map_or(usize::MAX, |max| max as usize);
        let more = |taken| (taken < max).then_some(taken + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(ShareOfConnection(Arc::clone(&self.connections)))
    }

    /// Charges it for a message of a client, stored once.
    ///
    /// # Errors
    /// All its clients together send too much.
    pub fn message(&self, bytes: usize, limits: &EdgeShare, now: Instant) -> Result<(), Beyond> {
        charge(&self.messages, 1, limits.messages_per_second, now).map_err(|wait| {
            self.limited.messages.inc();
            Beyond { unit: "messages", wait }
        })?;
        self.bytes(&self.message_bytes, bytes, limits, now)
    }

    /// Charges it for the further copies of a client's message; later messages wait for that.
    pub fn message_copies(&self, bytes: usize, limits: &EdgeShare, now: Instant) {
        self.message_bytes.add(kibibytes(bytes), byte_rate(limits), now);
    }

    /// Charges it for the further copies of a push.
    pub fn push_copies(&self, bytes: usize, limits: &EdgeShare, now: Instant) {
        self.push_bytes.add(kibibytes(bytes), byte_rate(limits), now);
    }

    /// Charges it for pushes of one call, each stored once.
    ///
    /// # Errors
    /// As above.
    pub fn pushes(&self, count: usize, bytes: usize, limits: &EdgeShare, now: Instant) -> Result<(), Beyond> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        charge(&self.calls, count, limits.pushes_per_second, now).map_err(|wait| {
            self.limited.calls.inc();
            Beyond { unit: "pushes", wait }
        })?;
        self.bytes(&self.push_bytes, bytes, limits, now)
    }

    /// A message refused for its bytes still counts as a message: refusing costs as much as taking.
    fn bytes(&self, bucket: &SharedBucket, bytes: usize, limits: &EdgeShare, now: Instant) -> Result<(), Beyond> {
        let units = kibibytes(bytes);
        bucket.try_add(units, units, byte_rate(limits), now).map_err(|wait| {
            self.limited.bytes.inc();
            Beyond { unit: "bytes", wait }
        })
    }

    /// Charges it for a question who is here.
    ///
    /// # Errors
    /// How long to wait, as above.
    pub fn questions(&self, units: usize, now: Instant) -> Result<(), Duration> {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let rate = Rate::per_second(QUESTIONS.0, QUESTIONS.1);
        self.questions.try_add(units, 1, rate, now).inspect_err(|_| {
            self.limited.questions.inc();
        })
    }

    /// Charges it for a description that is made.
    ///
    /// # Errors
    /// How long to wait, as above.
    pub fn description(&self, now: Instant) -> Result<(), Duration> {
        let rate = Rate::per_second(DESCRIPTIONS.0, DESCRIPTIONS.1);
        self.descriptions.try_add(1, 1, rate, now).inspect_err(|_| {
            self.limited.descriptions.inc();
        })
    }

    /// Charges it for pushes that were read. Some: no more are to be read until then.
    pub fn reads(&self, count: usize, limits: &EdgeShare, now: Instant) -> Option<Instant> {
        let rate = per_second(limits.pushes_per_second?);
        let until = self.reads.add(u32::try_from(count).unwrap_or(u32::MAX), rate, now)?;
        self.limited.reads.inc();
        Some(until)
    }
}

impl Drop for ShareOfConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A limit for a second holds within each second: that much at once, too.
fn per_second(limit: u32) -> Rate {
    Rate::per_second(limit, limit)
}

/// The unit of bytes: a nanosecond for each would be too coarse.
fn kibibytes(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

fn byte_rate(limits: &EdgeShare) -> Rate {
    per_second(limits.bytes_per_second.unwrap_or(DEFAULT_BYTES_PER_SECOND) / 1024)
}

fn charge(bucket: &SharedBucket, units: u32, limit: Option<u32>, now: Instant) -> Result<(), Duration> {
    limit.map_or(Ok(()), |limit| bucket.try_add(units, 1, per_second(limit), now))
}

/// A [`Bucket`](crate::bucket::Bucket) that many fill.
#[derive(Debug)]
struct SharedBucket {
    begun: Instant,
    /// Nanoseconds after `begun`.
    empty_at: AtomicU64,
}

impl SharedBucket {
    fn new(begun: Instant) -> Self {
        Self { begun, empty_at: AtomicU64::new(0) }
    }

    fn nanos(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.begun))
    }

    /// Adds units if so many of them fit, or if it is empty; what is more than fits has to be waited for by the next.
    fn try_add(&self, units: u32, fitting: u32, rate: Rate, now: Instant) -> Result<(), Duration> {
        let (now, one, full) = (self.nanos(now), nanos(rate.per_unit), nanos(rate.full()));
        let room = one.saturating_mul(fitting.into()).min(full);
        let added = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let empty_at = empty_at.max(now);
            (empty_at + room <= now + full).then(|| empty_at.saturating_add(one.saturating_mul(units.into())))
        });
        added.map(drop).map_err(|empty_at| Duration::from_nanos((empty_at + room).saturating_sub(now + full)))
    }

    /// Adds units, whether they fit or not. Some: it overflows until then.
    fn add(&self, units: u32, rate: Rate, now: Instant) -> Option<Instant> {
        let (begun, one, full) = (self.nanos(now), nanos(rate.per_unit), nanos(rate.full()));
        let after = |empty_at: u64| empty_at.max(begun).saturating_add(one.saturating_mul(units.into()));
        let before = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(after(at)));
        let over = after(before.unwrap_or_default()).saturating_sub(begun + full);
        (over > 0).then(|| now + Duration::from_nanos(over))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> EdgeShare {
        EdgeShare {
            connections: Some(2),
            messages_per_second: Some(10),
            bytes_per_second: None,
            pushes_per_second: Some(10),
            memory_bytes: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_declared_is_what_it_gets() {
        let (share, limits) = (Share::new(&Metrics::default()), limits());
        let taken = [share.connection(&limits), share.connection(&limits)];
        assert!(taken.iter().all(Option::is_some) && share.connection(&limits).is_none());
        drop(taken);
        assert_eq!(share.connections(), 0);

        let now = Instant::now();
        let sent = |at| (0..100).filter(|_| share.message(0, &limits, at).is_ok()).count();
        assert_eq!(sent(now), 10);
        let beyond = Beyond { unit: "messages", wait: Duration::from_millis(100) };
        assert_eq!(share.message(0, &limits, now), Err(beyond));
        assert_eq!(sent(now + Duration::from_millis(500)), 5);
        assert_eq!(sent(now + Duration::from_mins(1)), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_call_is_taken_and_the_next_one_waits_for_it() {
        let (share, limits, now) = (Share::new(&Metrics::default()), limits(), Instant::now());
        assert_eq!(share.pushes(30, 0, &limits, now), Ok(()));
        let wait = Duration::from_millis(2100);
        assert_eq!(share.pushes(1, 0, &limits, now), Err(Beyond { unit: "pushes", wait }));
        assert_eq!(share.pushes(1, 0, &limits, now + wait), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn large_messages_are_limited_by_their_bytes_and_pushes_by_http_apart_from_them() {
        let (share, now) = (Share::new(&Metrics::default()), Instant::now());
        let limits = EdgeShare { bytes_per_second: Some(100 << 10), ..EdgeShare::default() };
        let taken = |at| (0..10).take_while(|_| share.message(40 << 10, &limits, at).is_ok()).count();
        assert_eq!(taken(now), 2);
        let beyond = share.message(40 << 10, &limits, now).unwrap_err();
        assert_eq!(beyond.unit, "bytes");
        assert!(beyond.wait.abs_diff(Duration::from_millis(200)) < Duration::from_millis(1), "{beyond:?}");
        assert_eq!(taken(now + beyond.wait), 1);
        // Where it is stored five times.
        let later = now + Duration::from_mins(1);
        assert_eq!(share.message(40 << 10, &limits, later), Ok(()));
        share.message_copies(4 * (40 << 10), &limits, later);
        assert_eq!(taken(later + Duration::from_secs(1)), 0);
        assert_eq!(taken(later + Duration::from_secs(2)), 2);

        assert_eq!(share.pushes(5, 200 << 10, &limits, now), Ok(()), "one call may be larger than all that fits");
        assert_eq!(share.pushes(1, 1, &limits, now).map_err(|beyond| beyond.unit), Err("bytes"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_rate_that_may_be_declared_is_not_rounded() {
        let (share, now) = (Share::new(&Metrics::default()), Instant::now());
        let limits = EdgeShare { bytes_per_second: Some(600_000_000), ..EdgeShare::default() };
        let taken = |at| (0..10_000).take_while(|_| share.message(1_000_000, &limits, at).is_ok()).count();
        assert!((590..=600).contains(&taken(now)));
        assert!((590..=601).contains(&taken(now + Duration::from_secs(1))));
    }

    #[tokio::test(start_paused = true)]
    async fn reading_pauses_until_the_rate_is_kept() {
        let (share, limits, now) = (Share::new(&Metrics::default()), limits(), Instant::now());
        assert_eq!(share.reads(10, &limits, now), None);
        assert_eq!(share.reads(10, &limits, now), Some(now + Duration::from_secs(1)));
        assert_eq!(share.reads(1000, &EdgeShare::default(), now), None);
    }
}
