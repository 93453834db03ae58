//! How many tests may run at the same time.

use std::time::{Duration, Instant};

use crate::load::Load;

/// For each core, to begin with and at least.
const LEAST_PER_CORE: usize = 3;
/// For each core at most. With six from the beginning the processors were 97 % busy and the load 30, so that leases of three seconds ran out.
const MOST_PER_CORE: usize = 6;
/// Between two looks at the processors: about as long as a test needs to start its servers and programs.
const INTERVAL: Duration = Duration::from_secs(3);
/// Percent. Less busy processors could do more: tests wait most of the time.
const IDLE: u64 = 75;
/// Percent. More busy ones make promises of two seconds late.
const BUSY: u64 = 92;

/// A number that follows the load of the machine, or a fixed one.
#[derive(Debug)]
pub(crate) struct Slots {
    least: usize,
    most: usize,
    now: usize,
    looked: (Instant, Load),
}

impl Slots {
    /// This many.
    pub(crate) fn fixed(slots: usize) -> Self {
        let slots = slots.max(1);
        Self { least: slots, most: slots, now: slots, looked: (Instant::now(), Load::now()) }
    }

    /// As many as keep this machine busy, and not more.
    pub(crate) fn by_load() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { most: cores * MOST_PER_CORE, ..Self::fixed(cores * LEAST_PER_CORE) }
    }

    /// The present number; one more or one fewer than before from time to time.
    pub(crate) fn now(&mut self) -> usize {
        let (looked, then) = self.looked;
        if looked.elapsed() >= INTERVAL {
            let load = Load::now();
            self.looked = (Instant::now(), load);
            self.now = match load.busy_since(then) {
                ..IDLE => (self.now + 1).min(self.most),
                IDLE..=BUSY => self.now,
                _ => (self.now - 1).max(self.least),
            };
        }
        self.now
    }

    /// The bounds, for people.
    pub(crate) fn bounds(&self) -> String {
        if self.least == self.most { self.least.to_string() } else { format!("{} to {}", self.least, self.most) }
    }
}
