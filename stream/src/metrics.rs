//! What the client has done, as counters that a caller exports in the form of its own metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }
}

/// A number that grows and shrinks.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds `n` and returns the sum.
    pub(crate) fn add(&self, n: u64) -> u64 {
        self.0.fetch_add(n, Ordering::Relaxed) + n
    }

    /// Takes `n` away and returns the rest. Every `sub` has its `add` before it.
    pub(crate) fn sub(&self, n: u64) -> u64 {
        self.0.fetch_sub(n, Ordering::Relaxed) - n
    }
}

/// Counters of one [`crate::Client`]. Counters start at 0 with the client.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections opened, handshake included.
    pub connects: Counter,
    /// Attempts to connect that failed.
    pub connect_failures: Counter,
    /// Open connections that ended for another reason than being idle or closed by us.
    pub connections_lost: Counter,
    /// Open connections.
    pub connections: Gauge,
    /// Living [`crate::Subscription`]s.
    pub subscriptions: Gauge,
    /// Attachments of subscriptions to a stream, the first ones included.
    pub attachments: Counter,
    /// Attachments that ended while the subscription lived: reader restarts.
    pub restarts: Counter,
    /// The restarts among them that the watchdog made, because the broker had messages and sent none.
    pub watchdog_restarts: Counter,
    /// [`crate::Event::Reset`]s.
    pub resets: Counter,
    /// [`crate::Event::Gap`]s.
    pub gaps: Counter,
    /// Chunks received.
    pub chunks: Counter,
    /// Messages in them.
    pub messages: Counter,
    /// Bytes of them.
    pub bytes: Counter,
    /// Messages skipped because they were unreadable: compressed sub-batches, truncated or malformed messages.
    pub skipped_messages: Counter,
    /// Chunks above `max_frame_bytes`, dropped; each shows as a [`crate::Event::Gap`].
    pub oversized_chunks: Counter,
    /// Bytes of chunks received and not yet given back: what `byte_budget` limits.
    pub held_bytes: Gauge,
    /// Credits kept back because `held_bytes` was above the budget.
    pub withheld_credits: Counter,
}
