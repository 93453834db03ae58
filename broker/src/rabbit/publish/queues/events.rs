//! Events that wait for the lane: they are sent soon, or dropped.

use std::{collections::VecDeque, sync::atomic::Ordering};

use super::Queues;
use crate::Publication;

impl Queues {
    /// Queues an event if it can be sent soon, and returns whether it did.
    pub(in crate::rabbit::publish) fn push_event(&self, event: Publication) -> bool {
        let mut state = self.lock();
        if !state.connected || state.closed || state.events.len() >= self.bounds.events {
            return false;
        }
        state.events.push_back(event);
        let first = state.events.len() == 1;
        self.events.store(state.events.len(), Ordering::Relaxed);
        drop(state);
        if first {
            self.wake.notify_one();
        }
        true
    }

    /// Whether events wait.
    pub(in crate::rabbit::publish) fn has_events(&self) -> bool {
        self.events.load(Ordering::Relaxed) > 0
    }

    /// Puts events that were taken back in front of the others.
    pub(in crate::rabbit::publish) fn put_back_events(&self, mut events: VecDeque<Publication>) {
        if events.is_empty() {
            return;
        }
        let mut state = self.lock();
        events.append(&mut state.events);
        state.events = events;
        self.events.store(state.events.len(), Ordering::Relaxed);
    }

    /// Takes the events that wait.
    pub(in crate::rabbit::publish) fn take_events(&self) -> VecDeque<Publication> {
        self.events.store(0, Ordering::Relaxed);
        std::mem::take(&mut self.lock().events)
    }

    /// Sets whether events can be sent from now on. If not, those that wait are dropped.
    pub(in crate::rabbit::publish) fn set_connected(&self, connected: bool) {
        let mut state = self.lock();
        state.connected = connected;
        if !connected {
            self.counters.dropped_events.add(state.events.len() as u64);
            state.events.clear();
            self.events.store(0, Ordering::Relaxed);
        }
    }
}
