//! What has arrived, and how long it took. A payload carries its number and the time at which it was due.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::sync::{Notify, Semaphore};

/// Bytes of a payload.
const BYTES: usize = 200;
/// How long nothing may arrive.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Deliveries {
    begun: Instant,
    /// By the number of a push: deliveries that are missing.
    missing: RefCell<Vec<usize>>,
    left: Cell<usize>,
    unasked: Cell<usize>,
    delays: RefCell<Vec<Duration>>,
    /// Pushes that may be on their way.
    pub(crate) window: Semaphore,
    last: Cell<Instant>,
    done: Notify,
}

impl Deliveries {
    /// So many pushes, each to so many clients.
    pub(crate) fn new(pushes: usize, receivers: usize, window: usize) -> Self {
        let begun = Instant::now();
        Self {
            begun,
            missing: RefCell::new(vec![receivers; pushes]),
            left: Cell::new(pushes * receivers),
            unasked: Cell::new(0),
            delays: RefCell::new(Vec::with_capacity(pushes * receivers)),
            window: Semaphore::new(window),
            last: Cell::new(begun),
            done: Notify::new(),
        }
    }

    pub(crate) fn payload(&self, number: usize, due: Instant) -> String {
        let mut text = format!("~{number}.{}~", due.saturating_duration_since(self.begun).as_micros());
        text.extend(std::iter::repeat_n('x', BYTES.saturating_sub(text.len())));
        text
    }

    /// Notes the pushes in a frame.
    pub(crate) fn note(&self, frame: &str) {
        let mut parts = frame.split("\"~");
        parts.next();
        let stamps = parts.filter_map(|part| part.split_once('~')?.0.split_once('.'));
        for (number, micros) in stamps.filter_map(|(number, micros)| Some((number.parse().ok()?, micros.parse().ok()?)))
        {
            self.arrived(number, Duration::from_micros(micros));
        }
    }

    fn arrived(&self, number: usize, due: Duration) {
        let (now, mut missing) = (Instant::now(), self.missing.borrow_mut());
        let Some(missing) = missing.get_mut(number).filter(|missing| **missing > 0) else {
            return self.unasked.set(self.unasked.get() + 1);
        };
        *missing -= 1;
        if *missing == 0 {
            self.window.add_permits(1);
        }
        self.delays.borrow_mut().push(now.saturating_duration_since(self.begun).saturating_sub(due));
        self.last.set(now);
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.done.notify_one();
        }
    }

    /// Waits for the last delivery; an error if it does not come, or if something came twice.
    pub(crate) async fn complete(&self) -> Result<()> {
        while self.left.get() > 0 {
            let left = self.left.get();
            let ended = tokio::time::timeout(PATIENCE, self.done.notified()).await.is_ok();
            ensure!(ended || self.left.get() < left, "{left} deliveries are missing");
        }
        ensure!(self.unasked.get() == 0, "{} deliveries too many", self.unasked.get());
        Ok(())
    }

    /// From `begun` to the last delivery.
    pub(crate) fn took(&self, begun: Instant) -> Duration {
        self.last.get().saturating_duration_since(begun)
    }

    /// All delays, sorted.
    pub(crate) fn delays(&self) -> Vec<Duration> {
        let mut delays = self.delays.borrow().clone();
        delays.sort_unstable();
        delays
    }
}
