//! Counters of the client, which the caller exports as its own metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The current value.
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

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds `n` and returns the sum.
    pub(crate) fn add(&self, n: u64) -> u64 {
        self.0.fetch_add(n, Ordering::Relaxed) + n
    }

    /// Subtracts `n` and returns the rest. Every `sub` follows its `add`.
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
    /// Connections that ended for another reason than being idle or closed by us.
    pub connections_lost: Counter,
    /// Open connections.
    pub connections: Gauge,
    /// Current [`crate::Subscription`]s.
    pub subscriptions: Gauge,
    /// Attachments of subscriptions to a stream, the first ones included.
    pub attachments: Counter,
    /// Attachments that ended before their subscription: reader restarts.
    pub restarts: Counter,
    /// The restarts among them that the watchdog made, because the broker had messages and sent none.
    pub watchdog_restarts: Counter,
    /// [`crate::Event::Reset`]s.
    pub resets: Counter,
    /// [`crate::Event::Gap`]s.
    pub gaps: Counter,
    /// Chunks received.
    pub chunks: Counter,
    /// Messages received.
    pub messages: Counter,
    /// Bytes of chunks received.
    pub bytes: Counter,
    /// Messages skipped because they were unreadable: compressed sub-batches, truncated or malformed messages.
    pub skipped_messages: Counter,
    /// Chunks above `max_frame_bytes`, dropped; each shows as a [`crate::Event::Gap`].
    pub oversized_chunks: Counter,
    /// Bytes of chunks in memory, which `byte_budget` limits.
    pub held_bytes: Gauge,
    /// Credits kept back because `held_bytes` was above the budget.
    pub withheld_credits: Counter,
}
