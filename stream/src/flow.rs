//! Credit: how many chunks the broker may send, and the budget of bytes that all subscriptions share.
//!
//! A chunk that arrives uses a credit of its subscription and counts against the budget until its [`ChunkPermit`] is
//! dropped. Then the credit returns to the broker at once, or, if the budget is exceeded, once it no longer is.
//!
//! Withholding has a floor: RabbitMQ sends nothing to a subscription whose credit is not above half of its initial
//! credit (`send_limit` in `rabbit_stream_reader.erl`; seen on 4.3.6: of 4 credits, 1 was left, and nothing came). So
//! each subscription keeps half its credits plus one, in flight or with its reader, however much the others use: one
//! slow reader that uses the whole budget delays the others and never stops them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::{connection::Shared, metrics::Counters};

/// Bytes of chunks in memory, of all subscriptions of a client.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    counters: Arc<Counters>,
    /// Subscriptions with withheld credits; at most one entry each.
    waiting: Mutex<VecDeque<Arc<Flow>>>,
}

impl Budget {
    pub(crate) fn new(limit: usize, counters: Arc<Counters>) -> Self {
        Self { limit: limit as u64, counters, waiting: Mutex::default() }
    }

    fn exceeded(&self) -> bool {
        self.counters.held_bytes.get() > self.limit
    }

    fn release(&self, bytes: u64) {
        if self.counters.held_bytes.sub(bytes) <= self.limit {
            let waiting = std::mem::take(&mut *lock(&self.waiting));
            for flow in waiting {
                flow.grant_withheld();
            }
        }
    }
}

/// The credit of one subscription on one connection.
#[derive(Debug)]
pub(crate) struct Flow {
    budget: Arc<Budget>,
    connection: Weak<Shared>,
    id: u8,
    /// Chunks in flight or with the reader whose credits are never withheld: with fewer credits the broker sends
    /// nothing.
    floor: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Credits that the broker has not used yet.
    granted: u32,
    /// Chunks received and not yet dropped.
    held: u32,
    /// Withheld credits.
    withheld: u32,
    /// The subscription has ended: its id may belong to another one.
    closed: bool,
}

impl Flow {
    /// For a subscription that is about to grant `credits` with its Subscribe request.
    pub(crate) fn new(budget: Arc<Budget>, connection: Weak<Shared>, id: u8, credits: u16) -> Self {
        let state = State { granted: u32::from(credits), held: 0, withheld: 0, closed: false };
        let floor = u32::from(credits / 2) + 1;
        Self { budget, connection, id, floor, state: Mutex::new(state) }
    }

    /// Accounts for a chunk that has arrived.
    pub(crate) fn arrived(self: &Arc<Self>, bytes: usize) -> ChunkPermit {
        let mut state = lock(&self.state);
        state.granted = state.granted.saturating_sub(1);
        state.held += 1;
        self.budget.counters.held_bytes.add(bytes as u64);
        ChunkPermit { flow: Arc::clone(self), bytes: bytes as u64 }
    }

    /// Whether the broker would send a chunk now if it had one. False means that the reader keeps too many.
    pub(crate) fn may_send(&self) -> bool {
        lock(&self.state).granted >= self.floor
    }

    /// Grants no more credit.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
    }

    fn chunk_done(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        state.held -= 1;
        if state.closed {
            return;
        }
        if state.granted + state.held < self.floor || !self.budget.exceeded() {
            self.grant(&mut state, 1);
            return;
        }
        state.withheld += 1;
        self.budget.counters.withheld_credits.increment();
        let first = state.withheld == 1;
        drop(state);
        if first {
            lock(&self.budget.waiting).push_back(Arc::clone(self));
        }
    }

    fn grant_withheld(&self) {
        let mut state = lock(&self.state);
        let credits = std::mem::take(&mut state.withheld);
        if credits > 0 && !state.closed {
            self.grant(&mut state, credits);
        }
    }

    fn grant(&self, state: &mut State, credits: u32) {
        state.granted += credits;
        if let Some(connection) = self.connection.upgrade() {
            connection.send_credit(self.id, credits as u16);
        }
    }
}

/// The bytes and the credit of one chunk, returned on drop.
#[derive(Debug)]
pub(crate) struct ChunkPermit {
    flow: Arc<Flow>,
    bytes: u64,
}

impl Drop for ChunkPermit {
    fn drop(&mut self) {
        self.flow.budget.release(self.bytes);
        self.flow.chunk_done();
    }
}

/// Locks a mutex that guards plain data: a panic elsewhere cannot have left it inconsistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(budget: &Arc<Budget>) -> Arc<Flow> {
        Arc::new(Flow::new(Arc::clone(budget), Weak::new(), 0, 3))
    }

    #[test]
    fn above_the_budget_half_the_credits_stay_in_flight_and_the_rest_waits() {
        let counters = Arc::new(Counters::default());
        let budget = Arc::new(Budget::new(100, Arc::clone(&counters)));
        let (hog, other) = (flow(&budget), flow(&budget));
        let big = hog.arrived(1000);
        let chunks: Vec<_> = (0..3).map(|_| other.arrived(10)).collect();
        assert!(!other.may_send());
        drop(chunks);
        // One of three credits was withheld, two were granted although the slow reader still uses the whole budget.
        assert_eq!(lock(&other.state).withheld, 1);
        assert_eq!(lock(&other.state).granted, 2);
        assert!(other.may_send());
        drop(big);
        assert_eq!(lock(&other.state).withheld, 0);
        assert_eq!(lock(&other.state).granted, 3);
        assert_eq!(lock(&hog.state).granted, 3);
        assert_eq!(counters.held_bytes.get(), 0);
        assert_eq!(counters.withheld_credits.get(), 1);
    }

    #[test]
    fn a_chunk_of_a_closed_subscription_frees_its_bytes_only() {
        let counters = Arc::new(Counters::default());
        let budget = Arc::new(Budget::new(100, Arc::clone(&counters)));
        let flow = flow(&budget);
        let permit = flow.arrived(10);
        flow.close();
        drop(permit);
        assert_eq!(lock(&flow.state).granted, 2);
        assert_eq!(counters.held_bytes.get(), 0);
    }
}
