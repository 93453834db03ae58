//! Throttles log lines that others can cause at any rate: one line in each pause for each subject, with the number of
//! omitted ones.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Subjects that are remembered: a few for each business. Beyond it the oldest pauses are dropped, so a line may come
/// early.
const SUBJECTS: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct LogThrottle {
    pause: Duration,
    /// By subject and business.
    pauses: Mutex<HashMap<(&'static str, String), Pause>>,
}

#[derive(Debug)]
struct Pause {
    since: Instant,
    left_out: u64,
}

impl LogThrottle {
    /// `pause`: least time between two lines about the same subject.
    pub fn new(pause: Duration) -> Self {
        Self { pause, pauses: Mutex::default() }
    }

    /// Some: log a line about this now; the number of lines omitted since the last one.
    pub fn permit(&self, what: &'static str, business: &str) -> Option<u64> {
        let now = Instant::now();
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        if pauses.len() >= SUBJECTS {
            pauses.retain(|_, pause| now - pause.since < self.pause);
            if pauses.len() >= SUBJECTS {
                pauses.clear();
            }
        }
        match pauses.get_mut(&(what, business.to_owned())) {
            Some(pause) if now - pause.since < self.pause => {
                pause.left_out += 1;
                None
            }
            Some(pause) => {
                pause.since = now;
                Some(std::mem::take(&mut pause.left_out))
            }
            None => {
                pauses.insert((what, business.to_owned()), Pause { since: now, left_out: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_comes_once_a_minute_for_each_subject() {
        let pause = Duration::from_mins(1);
        let throttle = LogThrottle::new(pause);
        assert_eq!(throttle.permit("origin", "pay"), Some(0));
        assert_eq!((throttle.permit("origin", "pay"), throttle.permit("origin", "pay")), (None, None));
        assert_eq!((throttle.permit("origin", "chat"), throttle.permit("tags", "pay")), (Some(0), Some(0)));
        tokio::time::advance(pause).await;
        assert_eq!(throttle.permit("origin", "pay"), Some(2));
        assert_eq!(throttle.permit("origin", "pay"), None);
    }
}
