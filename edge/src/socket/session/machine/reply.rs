//! The answers to what a client sent, and the notices about its session.

use std::time::Duration;

use wirepost_core::frames::ServerFrame;

use crate::socket::receive::Nack;

/// The `op` of a receipt.
const RECEIVED: &str = "received";

/// A control frame to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::socket::session) enum Reply {
    /// The broker has the message with this id.
    Ack(String),
    /// It does not, or that is not known.
    Nack(Nack),
    /// Answer to `ping`.
    Pong,
    /// The session goes on until then (ms since the epoch).
    Refreshed { session_ends_at: i64, resume_token: String },
    /// A control frame was refused.
    Error { about: String, reason: String },
    /// Receipts that the business has.
    Receipt { ids: Vec<String> },
    /// Receipts that it does not get: never on this connection, or not now.
    NoReceipt { ids: Vec<String>, reason: String, retryable: bool },
    /// The session ends soon.
    Expiring { in_seconds: u64 },
    /// This edge drains.
    Drain { reconnect_within: Duration },
}

impl Reply {
    /// The frame's text.
    pub(in crate::socket::session) fn to_text(&self) -> String {
        match self {
            Self::Ack(id) => ServerFrame::Ack { id },
            Self::Nack(nack) => ServerFrame::Nack {
                id: nack.id.as_deref(),
                code: nack.code,
                reason: &nack.reason,
                retryable: nack.code.retryable(),
                may_have_arrived: nack.may_have_arrived,
                retry_after_ms: nack.retry_after_ms,
            },
            Self::Pong => ServerFrame::Pong,
            Self::Refreshed { session_ends_at, resume_token } => {
                ServerFrame::Refreshed { session_ends_at: *session_ends_at, resume_token }
            }
            Self::Error { about, reason } => ServerFrame::Error { about, reason, ids: &[], retryable: None },
            Self::Receipt { ids } => ServerFrame::Receipt { ids },
            Self::NoReceipt { ids, reason, retryable } => {
                ServerFrame::Error { about: RECEIVED, reason, ids, retryable: Some(*retryable) }
            }
            Self::Expiring { in_seconds } => ServerFrame::Expiring { in_seconds: *in_seconds },
            Self::Drain { reconnect_within } => {
                ServerFrame::Drain { reconnect_within_ms: reconnect_within.as_millis() as u64 }
            }
        }
        .to_text()
    }
}
