//! Waiting for a condition, with a deadline.
//!
//! A deadline is not a promise: it says only when a test gives up. It is long since a condition that holds ends the wait at once, and
//! since many tests run on few cores: with fifteen busy processes for each core, 20 s were too short for a broker's answer, and what an
//! operator has repaired within 30 s on an idle machine took 70 s. What a test does promise in time, it asserts itself.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// For what should happen immediately.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// For what an operator does within 30 s.
pub const OPERATOR_PATIENCE: Duration = Duration::from_secs(90);

/// The first pause between two looks.
const SHORTEST: Duration = Duration::from_millis(20);
/// The longest.
const LONGEST: Duration = Duration::from_millis(250);
/// A pause is this part of the wait so far.
const PART: u32 = 8;

/// Pauses between two looks at a condition: short at first, then an eighth of the wait so far. So nothing is noticed much later than it
/// happens, and a long wait costs little: tests that looked every 20 or 50 ms took half of the processor, together with what they asked.
#[derive(Debug)]
pub struct Pace {
    begun: Instant,
}

impl Pace {
    /// The wait begins now.
    #[expect(clippy::new_without_default, reason = "it is not empty: it has a beginning")]
    pub fn new() -> Self {
        Self { begun: Instant::now() }
    }

    /// Until the next look.
    pub async fn pause(&self) {
        sleep((self.begun.elapsed() / PART).clamp(SHORTEST, LONGEST)).await;
    }
}

/// Waits until `condition` is true. Errors after `limit`, naming `what`.
pub async fn eventually<F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let (end, pace) = (Instant::now() + limit, Pace::new());
    loop {
        match condition().await {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() < end => {}
            Ok(false) => bail!("not within {limit:?}: {what}"),
            Err(e) if Instant::now() >= end => return Err(e.context(format!("not within {limit:?}: {what}"))),
            Err(_) => {}
        }
        pace.pause().await;
    }
}
