//! What an edge may do on the broker. `tests/tests/edge/broker_rights.rs` takes each right away and sees what fails, and tries everything
//! that is not among them.

use wirepost_core::names;

/// What a permission of RabbitMQ is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Declaring and deleting.
    Configure,
    /// Publishing to an exchange, binding a queue.
    Write,
    /// Consuming a queue or stream, binding to an exchange.
    Read,
}

/// One right of the edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeRight {
    /// To do what.
    pub access: Access,
    /// With which objects: `B` stands for any business, `*` at the end for anything.
    pub objects: &'static str,
    /// What an edge can't do without it.
    pub why: &'static str,
}

const fn right(access: Access, objects: &'static str, why: &'static str) -> EdgeRight {
    EdgeRight { access, objects, why }
}

/// All rights of the edges. None of them lets an edge read what clients have sent to services, or change a topology.
pub const EDGE_RIGHTS: [EdgeRight; 13] = [
    right(Access::Configure, "wirepost.B.edge.*", "declare its own queue for `Transient` pushes, and delete it"),
    right(Access::Write, "wirepost.B.edge.*", "bind that queue"),
    right(Access::Read, "wirepost.B.edge.*", "consume that queue"),
    right(Access::Write, "wirepost.B.receive", "publish what clients send to services"),
    right(
        Access::Write,
        "wirepost.B.push",
        "publish what clients send to clients, pushes by HTTP, and the first message of a stream",
    ),
    right(Access::Write, "wirepost.B.share", "publish what goes to the clients of several businesses"),
    right(Access::Read, "wirepost.B.push", "bind its own queue to the pushes"),
    right(Access::Write, "wirepost.B.events", "publish events: connected, rejected, …"),
    right(Access::Read, "wirepost.B.stream", "read `Durable` pushes"),
    right(Access::Write, "wirepost.B.judge", "say that it judges who gave no receipt, and how far it is"),
    right(Access::Read, "wirepost.B.receipts", "read the receipts, and what another edge has judged"),
    right(Access::Write, "wirepost.control", "tell all edges that sessions are revoked"),
    right(Access::Read, "wirepost.control", "hear of it"),
];

/// The pattern of all objects of these rights with this access; one that matches nothing if there are none.
pub(super) fn pattern(rights: &[EdgeRight], access: Access) -> String {
    let part = |part: &str| match part {
        "B" => r"[^.]+".to_owned(),
        "*" => ".+".to_owned(),
        fixed => names::escape(fixed),
    };
    let of = |right: &EdgeRight| right.objects.split('.').map(part).collect::<Vec<_>>().join(r"\.");
    let objects: Vec<String> = rights.iter().filter(|right| right.access == access).map(of).collect();
    if objects.is_empty() { "^$".to_owned() } else { format!("^({})$", objects.join("|")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_anchored_and_escaped_and_a_business_has_no_dot() {
        assert_eq!(pattern(&EDGE_RIGHTS, Access::Configure), r"^(wirepost\.[^.]+\.edge\..+)$");
        assert_eq!(
            pattern(&EDGE_RIGHTS, Access::Read),
            r"^(wirepost\.[^.]+\.edge\..+|wirepost\.[^.]+\.push|wirepost\.[^.]+\.stream|wirepost\.[^.]+\.receipts|wirepost\.control)$"
        );
        assert_eq!(pattern(&[], Access::Read), "^$");
    }
}
