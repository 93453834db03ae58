//! Where a client's message may go. Every route that matches its type decides on its own, and the message reaches
//! exactly the queues of the routes that admit it.

use std::sync::Arc;

use wirepost_core::{Envelope, SendType, content::ContentError, frames::NackCode};

use crate::business::{Business, Route};

/// Why no route admits it: the code, and an explanation.
pub type Refusal = (NackCode, String);

/// The queues, each once; `None` stands for all queues that the exchange has for the message. `first` is the route that
/// decides the direction.
///
/// # Errors
/// If no route admits it, the reason of the closest route: its content does not match a route for this sender, else no
/// route is for this sender.
pub fn queues(
    business: &Business,
    first: &Route,
    client_type: &str,
    envelope: &Envelope<'_>,
) -> Result<Vec<Option<Arc<str>>>, Refusal> {
    let message_type = envelope.message_type.as_deref().unwrap_or_default();
    if first.config.send_type == SendType::ClientToClient {
        // Each edge that delivers it uses the first route too, so no other route counts.
        return admits(first, client_type, message_type, envelope, 1).map(|()| vec![None]);
    }
    let checks = |route: &&Route| route.schema.is_some() && is_from(route, client_type);
    let checks = business.intake(message_type).filter(checks).count();
    let mut queues = Vec::new();
    let mut refusal: Option<Refusal> = None;
    // With an older operator's bindings it reaches the queue of every route, so each must admit it.
    let by_pattern = business.intake(message_type).any(|route| route.queue.is_none());
    for route in business.intake(message_type) {
        match admits(route, client_type, message_type, envelope, checks) {
            Ok(()) if queues.contains(&route.queue) => {}
            Ok(()) => queues.push(route.queue.clone()),
            // It is not known whether it is for that queue too: to omit the queue could lose the message there.
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

fn is_from(route: &Route, client_type: &str) -> bool {
    route.config.from.iter().any(|allowed| allowed == client_type)
}

/// `checks`: how many routes check its content.
fn admits(
    route: &Route,
    client_type: &str,
    message_type: &str,
    envelope: &Envelope<'_>,
    checks: usize,
) -> Result<(), Refusal> {
    if !is_from(route, client_type) {
        let reason = format!("clients of type {client_type:?} may not send {message_type:?}");
        return Err((NackCode::NotAllowed, reason));
    }
    route.check_share(envelope.content, checks).map_err(|unfit| {
        let code = match unfit {
            ContentError::Mismatch(_) => NackCode::SchemaMismatch,
            ContentError::TooComplex => NackCode::TooComplex,
        };
        (code, unfit.to_string())
    })
}
