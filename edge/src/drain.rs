//! Shutdown, as connections see it: not begun, or draining with a share of the window for each of them. A connection that
//! leaves for an even load has a share of its own.

use std::time::Duration;

use rand::RngExt;
use tokio::{sync::watch, time::Instant};

/// Part of the window in which clients are notified; the rest is their time to leave.
const TELL_PART: f64 = 0.75;
/// Pause between two checks whether messages still wait for their confirm.
const POSTPONE: Duration = Duration::from_millis(50);

/// Begins the drain.
#[derive(Debug, Default)]
pub struct Drain {
    phase: watch::Sender<Option<Window>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    begins: Instant,
    length: Duration,
    deadline: Instant,
}

impl Drain {
    /// Asks every connection to leave within `window`, at the latest at `deadline`.
    pub fn begin(&self, window: Duration, deadline: Instant) {
        self.phase.send_replace(Some(Window { begins: Instant::now(), length: window, deadline }));
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.phase.borrow().is_some()
    }

    /// For one connection.
    pub fn subscribe(&self) -> Draining {
        Draining { phase: self.phase.subscribe(), taken: false }
    }
}

/// One connection's view.
#[derive(Debug)]
pub struct Draining {
    phase: watch::Receiver<Option<Window>>,
    taken: bool,
}

impl Draining {
    /// The connection's share of the drain, once it begins; pending forever afterwards. Cancel safe.
    pub async fn share(&mut self) -> DrainShare {
        if !self.taken
            && let Ok(phase) = self.phase.wait_for(Option::is_some).await
            && let Some(window) = *phase
        {
            self.taken = true;
            return DrainShare::of(window);
        }
        std::future::pending().await
    }
}

/// One connection's part of the drain: notified at a random time in the window, closed a while later.
#[derive(Clone, Copy, Debug)]
pub struct DrainShare {
    /// When the next step is due.
    pub due: Instant,
    leave_within: Duration,
    announced: bool,
    deadline: Instant,
}

impl DrainShare {
    /// Of a connection that leaves alone, now: it has as long as in a drain of that window.
    pub fn alone(window: Duration, deadline: Instant) -> Self {
        let leave_within = window.saturating_sub(window.mul_f64(TELL_PART));
        Self { due: Instant::now(), leave_within, announced: false, deadline }
    }

    /// Whether the client was notified.
    pub fn is_announced(&self) -> bool {
        self.announced
    }

    fn of(window: Window) -> Self {
        let telling = window.length.mul_f64(TELL_PART);
        Self {
            due: window.begins + telling.mul_f64(rand::rng().random_range(0.0..1.0)),
            leave_within: window.length.saturating_sub(telling),
            announced: false,
            deadline: window.deadline,
        }
    }

    /// At the first call the time that the client has; afterwards `None`: close it.
    pub fn announce(&mut self, now: Instant) -> Option<Duration> {
        if self.announced {
            return None;
        }
        self.announced = true;
        self.due = now + self.leave_within;
        Some(self.leave_within)
    }

    /// Checks again a little later.
    pub fn postpone(&mut self, now: Instant) {
        self.due = now + POSTPONE;
    }

    /// Whether there is no time left to postpone.
    pub fn exhausted(&self, now: Instant) -> bool {
        now + POSTPONE * 2 >= self.deadline
    }
}
