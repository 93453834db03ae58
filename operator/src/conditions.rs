//! What is reported about a business: conditions and status, made without I/O. The types and reasons of conditions are in
//! [`wirepost_core::contract::condition`].

use wirepost_core::contract::condition::Reason;

mod findings;
mod patch;
mod progress;

pub use findings::{Facts, Findings, Policy};
pub use patch::{replacing, same_but_time, same_but_times};
pub use progress::{EdgeProgress, Share};

/// Sentences of many that a message contains; the rest is counted.
const NAMED: usize = 5;

/// What was found about one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionState {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// Why.
    pub reason: Reason,
    /// For people: what is wrong and what to do.
    pub message: String,
}

impl ConditionState {
    /// As it should be.
    pub fn met(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "True", reason, message: message.into() }
    }

    /// Not as it should be.
    pub fn not_met(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "False", reason, message: message.into() }
    }

    /// Not known.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason, message: message.into() }
    }

    /// Of a generation that is not accepted.
    pub fn not_accepted() -> Self {
        Self::unknown(
            Reason::NotAccepted,
            "this generation is not accepted; if another was accepted before, that one continues unchanged",
        )
    }

    /// For an accepted generation whose queue of the team's own is missing now.
    pub fn partly_in_force() -> Self {
        Self::unknown(
            Reason::NotAccepted,
            "a queue of the team's own is missing or not open (see Accepted): its routes wait for it, everything else of this generation is in force",
        )
    }

    /// Not known yet.
    pub fn pending(what: &str) -> Self {
        Self::unknown(Reason::Pending, format!("waiting for {what}"))
    }

    /// Whether it is as it should be.
    pub fn is_met(&self) -> bool {
        self.status == "True"
    }
}

/// The first of many sentences.
pub fn summarize(sentences: &[String]) -> String {
    let mut text = sentences.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if sentences.len() > NAMED {
        text = format!("{text}; and {} more", sentences.len() - NAMED);
    }
    text
}
