use std::time::Duration;

/// Errors of this crate. A retry on a new connection may help with each of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Cannot connect.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the operating system, TLS or the broker reported.
        cause: String,
    },
    /// The socket failed.
    #[error("connection lost: {0}")]
    Io(#[from] std::io::Error),
    /// No answer in time.
    #[error("{what}: no answer within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The broker closed the connection.
    #[error("the broker closed the connection: {text} (code {code})")]
    Closed {
        /// AMQP's reply code; 541 is an internal error of the broker. AMQP 1.0 has words instead: 0.
        code: u16,
        /// In the broker's words.
        text: String,
    },
    /// The broker closed the channel (0-9-1), or the link or session (1.0); the connection stays open.
    #[error("{text} (code {code})")]
    Channel {
        /// AMQP's reply code; 0 by AMQP 1.0.
        code: u16,
        /// In the broker's words.
        text: String,
    },
    /// The broker violated the protocol.
    #[error("protocol violation: {0}")]
    Malformed(&'static str),
    /// A name is longer than 255 bytes.
    #[error("longer than the 255 bytes that AMQP allows: {0}")]
    TooLong(String),
}

impl Error {
    /// Whether the named object does not exist.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Channel { code: 404, .. })
    }

    /// Whether the broker had an internal error: 541, with which it also closes a connection if it can't translate a message into the
    /// protocol of that connection.
    pub const fn is_internal(&self) -> bool {
        matches!(self, Self::Closed { code: 541, .. } | Self::Channel { code: 541, .. })
    }
}
