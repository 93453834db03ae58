use std::time::Duration;

/// Why something did not work. A retry on a new connection may help with each of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("cannot connect to {place}: {cause}")]
    Connect {
        /// Host and port.
        place: String,
        /// What the operating system, TLS or the broker says.
        cause: String,
    },
    /// The socket broke.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// No answer in time.
    #[error("{what}: no answer within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The broker ended the connection.
    #[error("the broker closed the connection: {text} (code {code})")]
    Closed {
        /// AMQP's reply code; 541 is an internal error of the broker. AMQP 1.0 has words instead: 0.
        code: u16,
        /// In the broker's words.
        text: String,
    },
    /// The broker ended the channel (0-9-1) or the link or session (1.0); the connection lives.
    #[error("{text} (code {code})")]
    Channel {
        /// AMQP's reply code; 0 by AMQP 1.0.
        code: u16,
        /// In the broker's words.
        text: String,
    },
    /// The broker sent what the protocol does not know.
    #[error("not understood: {0}")]
    Malformed(&'static str),
    /// A name is longer than 255 bytes.
    #[error("longer than the 255 bytes that AMQP allows: {0}")]
    TooLong(String),
}

impl Error {
    /// Whether the object that was named does not exist.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Channel { code: 404, .. })
    }

    /// Whether the broker failed at something of its own: with 541, which is how it ends a connection for a message that it can't translate
    /// into the protocol of the connection.
    pub const fn is_internal(&self) -> bool {
        matches!(self, Self::Closed { code: 541, .. } | Self::Channel { code: 541, .. })
    }
}
