//! The audience of a push. The one place of this rule: pushes by HTTP, by AMQP and from clients all pass it.

use wirepost_core::{Envelope, SendType, edge_config, names};

use super::rejection::Rejection;
use crate::business::{Business, Route};

/// The clients that a push addresses; never "everyone" by omission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    /// The identities or tags.
    pub recipients: Recipients,
    /// Client types that get it, never empty.
    pub client_types: Vec<String>,
}

/// The identities or tags that a push names. Tags are sorted: each connection of a business looks its own up in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// All connections of the business.
    Everyone,
    /// All connections of one identity; if tags are named, those that have one of them.
    Identity {
        /// `uniqueId`.
        id: String,
        /// Empty = every connection of the identity.
        tags: Vec<String>,
    },
    /// All connections that have one of these.
    Tags(Vec<String>),
}

/// The route of a push: `ClientToClient` if the envelope says so, else `ServerToClient`.
///
/// # Errors
/// [`Rejection::UnknownRoute`] and [`Rejection::OtherBusiness`].
pub fn route<'b>(business: &'b Business, envelope: &Envelope<'_>) -> Result<&'b Route, Rejection> {
    if let Some(other) = envelope.business_type.as_deref().filter(|other| *other != business.name()) {
        return Err(Rejection::OtherBusiness(other.to_owned()));
    }
    let message_type = envelope.message_type.as_deref().unwrap_or_default();
    let unknown = || Rejection::UnknownRoute(message_type.to_owned());
    let direction = direction(envelope).ok_or_else(unknown)?;
    if is_reserved(message_type) {
        return Err(Rejection::Reserved(message_type.to_owned()));
    }
    business.route(direction, message_type).ok_or_else(unknown)
}

/// The direction of a push; `None`: it is not one to clients.
pub fn direction(envelope: &Envelope<'_>) -> Option<SendType> {
    match envelope.send_type {
        Some(SendType::ClientToClient) => Some(SendType::ClientToClient),
        Some(SendType::ServerToClient) | None => Some(SendType::ServerToClient),
        Some(SendType::ClientToServer) => None,
    }
}

/// Whether a message type is wirepost's own: no route, however wide its pattern, takes one.
pub fn is_reserved(message_type: &str) -> bool {
    message_type.starts_with(names::PREFIX)
}

/// The audience of an envelope on its route.
///
/// # Errors
/// [`Rejection`]: a retry does not help.
pub fn audience(route: &Route, envelope: &Envelope<'_>) -> Result<Audience, Rejection> {
    let client_types = match envelope.to_client_type.as_deref() {
        None => route.config.to.clone(),
        Some(one) if route.config.to.iter().any(|allowed| allowed == one) => vec![one.to_owned()],
        Some(other) => return Err(Rejection::ClientType(other.to_owned())),
    };
    let tags = || {
        let mut tags: Vec<_> = envelope.tags.iter().map(|tag| tag.as_ref().to_owned()).collect();
        tags.sort_unstable();
        tags.dedup();
        tags
    };
    let recipients = match envelope.to_unique_id.as_deref() {
        _ if !envelope.has_audience() => return Err(Rejection::Nobody),
        Some(_) if envelope.for_everyone() => {
            if route.config.audience != edge_config::Audience::Everyone {
                return Err(Rejection::EveryoneNotAllowed);
            }
            if envelope.tags.is_empty() { Recipients::Everyone } else { Recipients::Tags(tags()) }
        }
        Some(id) => Recipients::Identity { id: id.to_owned(), tags: tags() },
        None => Recipients::Tags(tags()),
    };
    Ok(Audience { recipients, client_types })
}
