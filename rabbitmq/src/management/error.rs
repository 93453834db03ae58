//! Errors of calls of the management API.

/// Why the API could not be used; every further call would fail as well.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ManagementError {
    /// The broker or the network failed; a retry may help.
    #[error("{doing}: the management API is not reachable: {cause}")]
    Unreachable {
        /// The call.
        doing: String,
        /// What failed.
        cause: String,
    },
    /// An administrator must act first.
    #[error("{doing}: refused: {reason}; {remedy}")]
    Refused {
        /// The call.
        doing: String,
        /// The broker's reason.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// The vhost does not exist: it was never created, or the broker was rebuilt empty. [`ManagementClient::create_vhost`] creates it.
    #[error("{doing}: vhost {vhost} does not exist; `rabbitmqctl add_vhost {vhost}` creates it")]
    NoVhost {
        /// The call.
        doing: String,
        /// Its name.
        vhost: String,
    },
}

impl ManagementError {
    /// Whether a retry may help without an administrator's action.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { .. } | Self::NoVhost { .. } => false,
        }
    }
}

/// How a single call failed.
#[derive(Debug)]
pub enum CallError {
    /// All further calls would fail as well.
    Fatal(ManagementError),
    /// This call failed or timed out while the API is reachable, for example for a queue whose leader is down. Others may succeed, and a retry
    /// may too.
    Failed(ManagementError),
    /// This object was refused; others may be accepted. The broker's reason.
    Object(String),
    /// This object does not exist. The broker's reason.
    NotFound(String),
}

impl CallError {
    /// For a call whose object must exist.
    pub fn into_error(self, doing: &str, remedy: &str) -> ManagementError {
        match self {
            Self::Fatal(error) | Self::Failed(error) => error,
            Self::Object(reason) | Self::NotFound(reason) => {
                ManagementError::Refused { doing: doing.to_owned(), reason, remedy: remedy.to_owned() }
            }
        }
    }
}
