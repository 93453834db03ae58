//! Names of broker objects. Everything of business `B` is called `wirepost.B.…`; the business type never contains a dot, so two businesses
//! can't collide and a name identifies its owner.

use sha2::{Digest, Sha256};

use crate::hex;

/// Names and routing keys are short strings in AMQP 0-9-1.
const MAX_SHORT: usize = 255;

/// The prefix of every broker object of ours. Objects without it are never touched.
pub const PREFIX: &str = "wirepost.";

/// Begins the names of the edges' users.
const EDGE_USER: &str = "wirepost-edge-";

/// Topic exchange for client → server messages; routing key = message type.
pub fn receive_exchange(business: &str) -> String {
    format!("{PREFIX}{business}.receive")
}

/// Fanout exchange for server → client and client → client messages.
pub fn push_exchange(business: &str) -> String {
    format!("{PREFIX}{business}.push")
}

/// Headers exchange for messages to the clients of several businesses: leads to the [`push_exchange`] of each that
/// accepts them and that a header of the message names. Exists while another business accepts any.
pub fn share_exchange(business: &str) -> String {
    format!("{PREFIX}{business}.share")
}

/// Whether this is the [`share_exchange`] of any business.
pub fn is_share_exchange(exchange: &str) -> bool {
    owner(exchange).is_some_and(|business| exchange[PREFIX.len() + business.len()..] == *".share")
}

/// The event, and so its routing key, that tells of a receipt.
pub const DELIVERED: &str = "delivered";

/// Topic exchange for connected, disconnected, census, delivered, undelivered and rejected; routing key = the event.
pub fn events_exchange(business: &str) -> String {
    format!("{PREFIX}{business}.events")
}

/// Stream that keeps a business's receipts for a while, where a route says `receiptsWithinSeconds`: by it edges find out
/// who gave none.
pub fn receipts_stream(business: &str) -> String {
    format!("{PREFIX}{business}.receipts")
}

/// Whether this is the [`receipts_stream`] of any business.
pub fn is_receipts_stream(stream: &str) -> bool {
    owner(stream).is_some_and(|business| stream[PREFIX.len() + business.len()..] == *".receipts")
}

/// Fanout exchange in front of [`receipts_stream`], for what the edge that judges writes there between the receipts.
pub fn judge_exchange(business: &str) -> String {
    format!("{PREFIX}{business}.judge")
}

/// Queue that the business declares itself, to consume its events.
pub fn events_queue(business: &str, queue: &str) -> String {
    format!("{PREFIX}{business}.events.{queue}")
}

/// Broker user of the business's own services; each rotation has another `suffix`.
pub fn user(business: &str, suffix: &str) -> String {
    format!("{PREFIX}{business}.{suffix}")
}

/// Broker user of the edges, which belongs to the installation; each seed has another `suffix`. Not an object of ours by [`owner`].
pub fn edge_user(suffix: &str) -> String {
    format!("{EDGE_USER}{suffix}")
}

/// Whether a user of this name is an [`edge_user`] of this or another installation.
pub fn is_edge_user(user: &str) -> bool {
    user.starts_with(EDGE_USER)
}

/// Stream that keeps what was pushed (delivery `Durable`).
pub fn stream(business: &str) -> String {
    format!("{PREFIX}{business}.stream")
}

/// Queue of one edge (delivery `Transient`), declared by that edge.
pub fn edge_queue(business: &str, edge: &str) -> String {
    format!("{PREFIX}{business}.edge.{edge}")
}

/// Another queue of the same edge, while the node of the one before is down.
pub fn spare_edge_queue(business: &str, edge: &str, number: u8) -> String {
    format!("{}~{number}", edge_queue(business, edge))
}

/// Queue of a route, unless the team owns an existing one.
pub fn route_queue(business: &str, queue: &str) -> String {
    format!("{PREFIX}{business}.q.{queue}")
}

/// Policy that leaves a route's queue more room than its declaration gives; `None` for any other object.
pub fn room_policy(queue: &str) -> Option<String> {
    let short = queue.strip_prefix(PREFIX)?.split_once('.')?.1.strip_prefix("q.")?;
    Some(format!("{PREFIX}{}.room.{short}", owner(queue)?))
}

/// Whether a policy of this name is a [`room_policy`].
pub fn is_room_policy(policy: &str) -> bool {
    policy.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).is_some_and(|(_, rest)| rest.starts_with("room."))
}

/// Whether a policy of this name sets the limits of a queue: its own, or the one that leaves it more room.
pub fn is_policy_of(policy: &str, queue: &str) -> bool {
    policy == queue || room_policy(queue).is_some_and(|room| room == policy)
}

/// The only key that a queue is bound to [`receive_exchange`] with: the edge decides which queue a message is for, not a pattern of routing
/// keys. Contains a space, so no message type equals it, and no wildcard.
pub fn queue_key(queue: &str) -> String {
    let key = format!("queue {queue}");
    if key.len() <= MAX_SHORT && !key.contains(['*', '#']) {
        return key;
    }
    format!("digest {}", hex(Sha256::digest(queue.as_bytes())))
}

/// Queue of messages that exceeded their delivery limit.
pub fn dead_queue(business: &str) -> String {
    format!("{PREFIX}{business}.dead")
}

/// Fanout exchange in front of [`dead_queue`].
pub fn dead_letter_exchange(business: &str) -> String {
    format!("{PREFIX}{business}.dlx")
}

/// Direct exchange that routes to each route's queue by its name: it requeues messages of [`dead_queue`].
pub fn replay_exchange(business: &str) -> String {
    format!("{PREFIX}{business}.replay")
}

/// Fanout exchange and queue of the same name: the alternate exchange of `receive`. Keeps messages whose binding is missing.
pub fn unrouted(business: &str) -> String {
    format!("{PREFIX}{business}.unrouted")
}

/// Fanout exchange: the alternate exchange of `push`. Leads to the queue [`unrouted`] with delivery `Durable`, nowhere with `Transient`.
pub fn push_unrouted(business: &str) -> String {
    format!("{PREFIX}{business}.push.unrouted")
}

/// Exchange that names the namespace which a business type belongs to, as long as anything of it is left.
pub fn owner_mark(business: &str) -> String {
    format!("{PREFIX}{business}.owner")
}

/// Exchange whose arguments name the installation that owns the vhost. It belongs to no business, and [`owner`] finds none.
pub const INSTALLATION: &str = "wirepost.installation";

/// Stream of the whole installation, which every edge reads: what all of them have to know at once
/// ([`control`](crate::contract::control)). It belongs to no business, and [`owner`] finds none.
pub const CONTROL: &str = "wirepost.control";

/// The business of a broker object of ours; `None` for an object that is not ours.
pub fn owner(object: &str) -> Option<&str> {
    let (business, rest) = object.strip_prefix(PREFIX)?.split_once('.')?;
    (!business.is_empty() && !rest.is_empty()).then_some(business)
}

/// A pattern for broker policies and permissions that matches this name alone. They are regular expressions, unanchored by default, in
/// which a dot is any character.
pub fn exact_pattern(name: &str) -> String {
    format!("^{}$", escape(name))
}

/// `name` with everything escaped that is special in a regular expression.
pub fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        if !(c.is_ascii_alphanumeric() || c == '-' || c == '_' || !c.is_ascii()) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_tells_its_owner() {
        assert_eq!(owner("wirepost.pay.q.orders.eu"), Some("pay"));
        assert_eq!(owner("wirepost.pay"), None);
        assert_eq!((owner(INSTALLATION), owner(CONTROL)), (None, None));
        let room = room_policy("wirepost.pay.q.orders.eu").unwrap();
        assert_eq!((room.as_str(), owner(&room)), ("wirepost.pay.room.orders.eu", Some("pay")));
        assert!(is_room_policy(&room) && !is_room_policy("wirepost.pay.q.room"));
        assert_eq!(room_policy("wirepost.pay.dead"), None);
        assert_eq!(owner("amq.topic"), None);
        assert_eq!(owner(&edge_user("0a1b")), None);
        assert!(is_edge_user(&edge_user("0a1b")) && !is_edge_user("wirepost.edge.0a1b"));
        assert!(is_share_exchange(&share_exchange("pay")));
        assert!(["wirepost.pay.push", "wirepost.share", "share"].iter().all(|other| !is_share_exchange(other)));
        assert!(is_receipts_stream(&receipts_stream("pay")) && !is_receipts_stream("wirepost.pay.q.receipts"));
    }

    #[test]
    fn the_key_of_a_queue_fits_and_is_no_pattern() {
        assert_eq!(queue_key("wirepost.pay.q.orders"), "queue wirepost.pay.q.orders");
        for odd in ["a.*.b", "#", &"x".repeat(255)] {
            let key = queue_key(odd);
            assert!(key.len() <= MAX_SHORT && !key.contains(['*', '#']) && key.starts_with("digest "), "{key}");
        }
        assert_ne!(queue_key("a.*"), queue_key("a.#"));
    }

    #[test]
    fn a_pattern_matches_no_neighbour() {
        assert_eq!(exact_pattern("wirepost.pay.push"), r"^wirepost\.pay\.push$");
    }
}
