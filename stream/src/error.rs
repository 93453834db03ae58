//! Errors of the client.

use std::time::Duration;

use crate::codec::{Malformed, ResponseCode};

/// Errors of this crate. The text includes the cause, so that one log line is enough, and never a password.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No connection: the broker may be down, or a firewall in between.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the operating system, TLS or the handshake reported.
        reason: String,
    },
    /// The broker did not answer in time.
    #[error("no answer to {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The broker refused a request.
    #[error("broker refused {what}: {code}")]
    Refused {
        /// The request.
        what: &'static str,
        /// The broker's reason.
        code: ResponseCode,
    },
    /// The connection ended.
    #[error("connection lost: {0}")]
    ConnectionLost(String),
    /// The broker ended the subscription: the stream was deleted, moved, or the credit was not accepted.
    #[error("broker ended the subscription: {0}")]
    SubscriptionEnded(ResponseCode),
    /// The node has the stream but does not know its committed end yet: it has just started, or there is no leader.
    #[error("the stream is not ready on this node")]
    NotReady,
    /// The broker has messages and sends none.
    #[error("broker has messages up to offset {end} and sends none: subscribing again from {next}")]
    Stalled {
        /// The offset at which reading continues.
        next: u64,
        /// The committed end of the stream.
        end: u64,
    },
    /// The broker violated the protocol.
    #[error("protocol violation: {0}")]
    Protocol(#[from] Malformed),
    /// Reading panicked: a bug of this crate. It is logged, and the reader attaches again.
    #[error("reading {0}")]
    Panicked(String),
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
            Self::Panicked(_) => "panicked",
            Self::Closed => "closed",
        }
    }

    /// Whether the stream did not exist.
    pub const fn is_stream_absent(&self) -> bool {
        matches!(self.code(), Some(ResponseCode::STREAM_DOES_NOT_EXIST))
    }

    /// Whether this node has no replica of the stream.
    pub(crate) const fn is_elsewhere(&self) -> bool {
        matches!(self.code(), Some(ResponseCode::STREAM_NOT_AVAILABLE))
    }

    /// Whether a person must act: credentials, permissions, a missing virtual host.
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
