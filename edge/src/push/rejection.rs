//! Why a push is not delivered.

use wirepost_core::{content::ContentError, contract::headers};

use super::time_unit;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not an envelope.
    #[error("not an envelope: {0}")]
    Invalid(String),
    /// The broker can't deliver it.
    #[error("{0}")]
    Unreadable(String),
    /// Larger than `pushBytes`.
    #[error("{bytes} bytes, more than the business's pushBytes of {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// No message type, or none that is declared.
    #[error("no route of the business takes messageType {0:?} to clients; declare one in its WsBusiness")]
    UnknownRoute(String),
    /// No audience.
    #[error("toUniqueId and tags are absent or empty, which addresses nobody; name an identity or tags")]
    Nobody,
    /// Everyone, on a route that does not allow it.
    #[error("toUniqueId \"*\" addresses everyone, which the route does not allow; declare audience: Everyone on it")]
    EveryoneNotAllowed,
    /// A client type that the route does not serve.
    #[error("toClientType {0:?} is not among the route's `to`")]
    ClientType(String),
    /// Expired when it was accepted.
    #[error("{}", time_unit::expired(*.at, *.taken))]
    Expired {
        /// Its `expiresAt`.
        at: i64,
        /// When the broker or the edge accepted it.
        taken: i64,
    },
    /// `content` does not match the route's schema.
    #[error("does not fit the route's schema: {0}")]
    SchemaMismatch(String),
    /// `content` is too large to be checked.
    #[error("{}", ContentError::TooComplex)]
    TooComplex,
    /// A message type that is reserved for wirepost.
    #[error("messageType {0:?} begins with \"wirepost.\", which is reserved; give it another name")]
    Reserved(String),
    /// Another business does not accept it.
    #[error(
        "business {by:?} does not accept messageType {message_type:?} from this one; its team lists both in acceptFrom of its WsBusiness"
    )]
    NotAccepted {
        /// Which business.
        by: String,
        /// Its message type.
        message_type: String,
    },
    /// Another business accepts it and has no route for it.
    #[error("business {by:?} has no route that takes messageType {message_type:?} to clients")]
    NoRouteThere {
        /// Which business.
        by: String,
        /// Its message type.
        message_type: String,
    },
    /// Another business would take it, and the broker was not asked to copy it there.
    #[error(
        "business {business:?} would take it, but the broker was not asked to copy it there: publish to the exchange for several businesses, wirepost.….share, with the header {header}{business}: {value} for each of `businesses`, or push by HTTP", header = headers::TO_BUSINESS, value = headers::TO_BUSINESS_VALUE
    )]
    NotCopied {
        /// Which business.
        business: String,
    },
    /// Names another business.
    #[error("businessType {0:?} is not the business of this exchange")]
    OtherBusiness(String),
}

impl Rejection {
    /// All labels in metrics.
    pub const LABELS: [&str; 14] = [
        "invalid",
        "unreadable",
        "too_large",
        "unknown_route",
        "nobody",
        "not_allowed",
        "other_business",
        "expired",
        "schema_mismatch",
        "too_complex",
        "not_accepted",
        "not_copied",
        Self::FOREIGN,
        Self::EVENT,
    ];

    /// The label of any message of another business: the reasons that count are those of its own edges.
    pub const FOREIGN: &str = "foreign";

    /// The label of an event that came in as a push.
    pub const EVENT: &str = "event";

    /// The label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Unreadable(_) => "unreadable",
            Self::TooLarge { .. } => "too_large",
            Self::UnknownRoute(_) => "unknown_route",
            Self::Nobody => "nobody",
            Self::EveryoneNotAllowed | Self::ClientType(_) | Self::Reserved(_) => "not_allowed",
            Self::Expired { .. } => "expired",
            Self::SchemaMismatch(_) => "schema_mismatch",
            Self::TooComplex => "too_complex",
            Self::OtherBusiness(_) => "other_business",
            Self::NotAccepted { .. } | Self::NoRouteThere { .. } => "not_accepted",
            Self::NotCopied { .. } => "not_copied",
        }
    }

    /// The envelope's field at fault, where one is.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Invalid(_) | Self::Unreadable(_) | Self::TooLarge { .. } => None,
            Self::UnknownRoute(_) | Self::Reserved(_) => Some("messageType"),
            Self::Expired { .. } => Some("expiresAt"),
            Self::SchemaMismatch(_) | Self::TooComplex => Some("content"),
            Self::Nobody | Self::EveryoneNotAllowed => Some("toUniqueId"),
            Self::ClientType(_) => Some("toClientType"),
            Self::OtherBusiness(_) => Some("businessType"),
            Self::NotAccepted { .. } | Self::NoRouteThere { .. } | Self::NotCopied { .. } => Some("businesses"),
        }
    }
}

impl From<ContentError> for Rejection {
    fn from(unfit: ContentError) -> Self {
        match unfit {
            ContentError::Mismatch(reason) => Self::SchemaMismatch(reason),
            ContentError::TooComplex => Self::TooComplex,
        }
    }
}
