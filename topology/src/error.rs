//! Why a vhost could not be compared, or not be written.

use wirepost_rabbitmq::ManagementError;

/// The value of [`Installation::adopt`](crate::ownership::Installation::adopt) for a vhost with objects of ours and without a marker.
pub const UNMARKED: &str = "unmarked";

/// Why not everything could be compared and written. What was written so far stays; a retry continues from there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The management API can't be used.
    #[error(transparent)]
    Management(#[from] ManagementError),
    /// The caller's gate was closed before this write.
    #[error("{doing}: stopped, this process may no longer write")]
    Stopped {
        /// The step that was not done.
        doing: String,
    },
    /// The vhost belongs to another installation, or may.
    #[error(transparent)]
    NotOurs(#[from] NotOurs),
    /// It is not known yet which installation this is.
    #[error("it is not known yet which installation this is: the API server has to show namespace kube-system first")]
    UnknownInstallation,
    /// A bug of ours, which affects only this operation.
    #[error("{doing}: panicked: {cause}; this is a bug of wirepost")]
    Panicked {
        /// The operation.
        doing: String,
        /// What the panic says.
        cause: String,
    },
    /// The vhost, or a business in it, was not marked as that of its owner; a retry may help.
    #[error("{doing}: {cause}")]
    Unmarked {
        /// The operation.
        doing: String,
        /// What failed.
        cause: String,
    },
    /// The AMQP connection failed; a retry with a new connection may help.
    #[error("{doing}: {cause}")]
    Amqp {
        /// The operation.
        doing: String,
        /// What failed.
        cause: String,
    },
}

impl Error {
    /// Whether a retry may help without an administrator's action.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Management(error) => error.is_retryable(),
            Self::Amqp { .. } | Self::Unmarked { .. } | Self::UnknownInstallation | Self::Panicked { .. } => true,
            Self::Stopped { .. } | Self::NotOurs(_) => false,
        }
    }
}

/// The vhost may not be changed. `Display` says what an administrator can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// It has another installation's marker.
    #[error(
        "vhost {vhost} belongs to the wirepost installation {id} in namespace {place}: nothing in it is changed; give this one a vhost of its own, or, once that one is gone for good, take it over by --adopt-vhost={id} (chart: operator.adoptVhost)"
    )]
    Another {
        /// The vhost.
        vhost: String,
        /// The other one's id.
        id: String,
        /// Its namespace.
        place: String,
    },
    /// It has objects of ours and no marker, and this installation has no record of having made them.
    #[error(
        "vhost {vhost} has objects of wirepost ({objects}) that another installation may have made: nothing in it is changed; give this one a vhost of its own, or, if no other uses it, take it over by --adopt-vhost={UNMARKED} (chart: operator.adoptVhost)"
    )]
    Unmarked {
        /// The vhost.
        vhost: String,
        /// Some of the businesses.
        objects: String,
    },
}
