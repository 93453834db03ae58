//! The messages that wait for one exchange, and how well it keeps up.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::time::Instant;

use crate::{
    PublishError,
    rabbit::publish::{fair::FairQueue, gate::Gate, job::Job, pace::Pace},
};

/// One exchange.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) jobs: FairQueue<Job>,
    pub(super) in_flight: usize,
    pub(super) bytes_in_flight: u64,
    pub(super) pace: Pace,
    pub(super) gate: Arc<Gate>,
    pub(super) congested: bool,
    pub(super) used: Instant,
}

impl Waiting {
    pub(super) fn new(capacity: usize, now: Instant) -> Self {
        Self {
            jobs: FairQueue::new(capacity),
            in_flight: 0,
            bytes_in_flight: 0,
            pace: Pace::new(),
            gate: Arc::default(),
            congested: false,
            used: now,
        }
    }

    pub(super) fn load(&self) -> usize {
        self.jobs.len() + self.in_flight
    }

    /// Begins or ends to hold callers back, and admits them where there is room.
    pub(super) fn regulate(&mut self, now: Instant, congested: &AtomicUsize) {
        let room = self.pace.limit(now).saturating_sub(self.load());
        let held = self.gate.held();
        if self.congested && room > 0 && held == 0 {
            self.congested = false;
            congested.fetch_sub(1, Ordering::Relaxed);
        } else if !self.congested && room == 0 {
            self.congested = true;
            congested.fetch_add(1, Ordering::Relaxed);
        }
        if held > 0 {
            self.gate.admit(room, self.pace.turn(now));
        }
    }

    /// Refuses the waiting messages, and returns their number.
    pub(super) fn refuse(&mut self, error: &PublishError) -> usize {
        let all = self.jobs.drain();
        let count = all.len();
        for job in all {
            job.answer(Err(error.clone()));
        }
        count
    }
}
