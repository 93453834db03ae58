//! Why something did not work.

use std::time::Duration;

use crate::codec::{Malformed, ResponseCode};

/// Errors of this crate. The text holds the cause, so that one log line is enough; it never holds a password.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No connection could be made; the broker may be away, or a firewall in between.
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: String, reason: String },
    /// The broker did not answer in time.
    #[error("no answer to {what} within {after:?}")]
    Timeout { what: &'static str, after: Duration },
    /// The broker refused a request.
    #[error("broker refused {what}: {code}")]
    Refused { what: &'static str, code: ResponseCode },
    /// The connection that carried this ended.
    #[error("connection lost: {0}")]
    ConnectionLost(String),
    /// The broker ended the subscription: the stream was deleted, moved, or the credit was not accepted.
    #[error("broker ended the subscription: {0}")]
    SubscriptionEnded(ResponseCode),
    /// The node has the stream and does not know yet how far it is committed: it has just started, or has no leader.
    #[error("the stream is not ready on this node")]
    NotReady,
    /// The broker had messages and sent none.
    #[error("broker has messages up to offset {end} and sends none: subscribing anew from {next}")]
    Stalled { next: u64, end: u64 },
    /// The broker sent something that is not the protocol.
    #[error("protocol violation: {0}")]
    Protocol(#[from] Malformed),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl Error {
    /// A stable name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Timeout { .. } => "timeout",
            Self::Refused { .. } => "refused",
            Self::ConnectionLost(_) => "connection_lost",
            Self::SubscriptionEnded(_) => "subscription_ended",
            Self::NotReady => "not_ready",
            Self::Stalled { .. } => "stalled",
            Self::Protocol(_) => "protocol",
            Self::Closed => "closed",
        }
    }

    /// Whether the stream did not exist when this happened.
    pub const fn is_stream_absent(&self) -> bool {
        matches!(self.code(), Some(ResponseCode::STREAM_DOES_NOT_EXIST))
    }

    /// Whether this node has no replica of the stream.
    pub(crate) const fn is_elsewhere(&self) -> bool {
        matches!(self.code(), Some(ResponseCode::STREAM_NOT_AVAILABLE))
    }

    /// Whether it takes a person to repair it: credentials, permissions, a missing virtual host.
    pub const fn is_access(&self) -> bool {
        matches!(
            self.code(),
            Some(
                ResponseCode::ACCESS_REFUSED
                    | ResponseCode::AUTHENTICATION_FAILURE
                    | ResponseCode::AUTHENTICATION_FAILURE_LOOPBACK
                    | ResponseCode::VHOST_ACCESS_FAILURE
            )
        )
    }

    const fn code(&self) -> Option<ResponseCode> {
        match self {
            Self::Refused { code, .. } | Self::SubscriptionEnded(code) => Some(*code),
            _ => None,
        }
    }
}
