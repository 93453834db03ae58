//! Wall-clock time as the wire has it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Ms since the epoch; 0 where the clock stands before it.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
