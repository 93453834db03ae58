//! Where a message of a client may go. Every route that takes its type judges for itself, and the message reaches exactly the queues of
//! those that admit it.

use std::sync::Arc;

use wirepost_core::{Envelope, SendType, content::ContentError, frames::NackCode};

use crate::business::{Business, Route};

/// Why no route admits it: the code, and the same for a person.
pub type Refusal = (NackCode, String);

/// The queues, each once; `None` stands for all that the exchange has for the message. `first` is the route that gives the direction.
///
/// # Errors
/// Where no route admits it, what the sender came closest with: content that a route for this sender does not take, else that no route is
/// for this sender.
pub fn queues(
    business: &Business,
    first: &Route,
    client_type: &str,
    envelope: &Envelope<'_>,
) -> Result<Vec<Option<Arc<str>>>, Refusal> {
    let message_type = envelope.message_type.as_deref().unwrap_or_default();
    if first.config.send_type == SendType::ClientToClient {
        // Each edge that delivers it takes the first route too, so no other one has a say.
        return admits(first, client_type, message_type, envelope).map(|()| vec![None]);
    }
    let mut queues = Vec::new();
    let mut refusal: Option<Refusal> = None;
    // By an older operator's bindings it reaches the queue of every route, so each must admit it.
    let by_pattern = business.intake(message_type).any(|route| route.queue.is_none());
    for route in business.intake(message_type) {
        match admits(route, client_type, message_type, envelope) {
            Ok(()) if queues.contains(&route.queue) => {}
            Ok(()) => queues.push(route.queue.clone()),
            // Nobody knows whether it is for that queue too: to leave it out would be to lose it there.
            Err(undecided) if undecided.0 == NackCode::TooComplex => return Err(undecided),
            Err(new) => {
                let closer = |old: &Refusal| old.0 == NackCode::NotAllowed && new.0 != NackCode::NotAllowed;
                if refusal.as_ref().is_none_or(closer) {
                    refusal = Some(new);
                }
            }
        }
    }
    match refusal {
        Some(refusal) if queues.is_empty() || by_pattern => Err(refusal),
        _ if by_pattern => Ok(vec![None]),
        _ => Ok(queues),
    }
}

fn admits(route: &Route, client_type: &str, message_type: &str, envelope: &Envelope<'_>) -> Result<(), Refusal> {
    if !route.config.from.iter().any(|allowed| allowed == client_type) {
        let reason = format!("clients of type {client_type:?} may not send {message_type:?}");
        return Err((NackCode::NotAllowed, reason));
    }
    route.check_content(envelope.content).map_err(|unfit| {
        let code = match unfit {
            ContentError::Mismatch(_) => NackCode::SchemaMismatch,
            ContentError::TooComplex => NackCode::TooComplex,
        };
        (code, unfit.to_string())
    })
}
