//! The auditor: what docs/protocol.md promises, asked of a record.
//!
//! - [`publishing`]: what was confirmed is in the stream, what was refused is not, and each sender's messages are in order.
//! - [`durable`]: no cursor passes a message, and no client goes back.
//! - [`transient`]: the same by the senders' numbers, since there are no cursors.
//! - [`queues`]: what was confirmed reached the consumers.
//! - [`rights`]: who must, may and must not get a push.
//! - [`facts`]: what the other parts need to know of a record.

mod durable;
mod facts;
mod publishing;
mod queues;
mod rights;
mod transient;

use std::fmt;
use std::time::Duration;

use crate::record::{ClientNo, MessageNo, Record, What};
use facts::Facts;

/// What was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Confirmed, and nowhere.
    Lost,
    /// Missing, and no `gap` says so.
    SilentGap,
    /// More often than it was published.
    Doubled,
    /// In another order.
    Swapped,
    /// Came to somebody it is not for.
    Leaked,
    /// Came although it had expired.
    Expired,
    /// Refused as not arrived, and there all the same.
    Refused,
    /// A gap that nothing in this run can have caused.
    FalseGap,
    /// Anything else that must not happen.
    Broken,
}

/// One broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    pub kind: Kind,
    /// When it was observed.
    pub at: Duration,
    pub message: Option<MessageNo>,
    pub client: Option<ClientNo>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:.3} s: {}", self.kind, self.at.as_secs_f64(), self.what)
    }
}

/// How much of a run the record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// More comes: what is missing at the end may still be on its way.
    Running,
    /// Everybody has stopped, and everything had time to arrive.
    Complete,
}

/// All violations in a record, in the order of their observation.
pub fn audit(record: &Record, extent: Extent) -> Vec<Violation> {
    let facts = Facts::of(record);
    let mut found = Vec::new();
    for entry in &record.entries {
        if let What::Broken { what } = &entry.what {
            found.push(Violation { kind: Kind::Broken, at: entry.at, message: None, client: None, what: what.clone() });
        }
    }
    found.extend(publishing::check(&facts, extent));
    found.extend(queues::check(&facts, extent));
    found.extend(durable::check(&facts, extent));
    found.extend(transient::check(&facts, extent));
    found.sort_by_key(|violation| violation.at);
    found
}

#[cfg(test)]
mod tests;
