//! Queues of other owners that a business may fill. Anyone who knows a queue's name could declare it, so its owner has to open it to the
//! business, or the platform team to a namespace.

use std::str::FromStr;

use serde_json::{Map, Value};
use wirepost_core::topology::Topology;

/// Queue argument by which an owner opens a queue: business types, separated by commas.
pub const ACCEPT_ARGUMENT: &str = "x-wirepost-accept";

/// Whether a queue with these arguments is open to a business.
pub(crate) fn accepts(arguments: &Map<String, Value>, business: &str) -> bool {
    let accepted = arguments.get(ACCEPT_ARGUMENT).and_then(Value::as_str).unwrap_or_default();
    accepted.split(',').any(|one| one.trim() == business)
}

/// Queues that a platform team opens, by namespace and prefix of the name: `shop=shop-,shop=orders.,*=public.`. A `*` stands for every
/// namespace, an empty prefix for every queue. Default: none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenQueues(Vec<(String, String)>);

/// The text is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not NAMESPACE=PREFIX; write shop=shop- to open the queues whose names begin with shop- to namespace shop"
)]
pub struct OpenQueuesError(String);

impl FromStr for OpenQueues {
    type Err = OpenQueuesError;

    fn from_str(text: &str) -> Result<Self, OpenQueuesError> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let parse = |entry: &str| match entry.split_once('=') {
            Some((namespace, prefix)) if !namespace.is_empty() => Ok((namespace.to_owned(), prefix.to_owned())),
            _ => Err(OpenQueuesError(entry.to_owned())),
        };
        entries.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

impl OpenQueues {
    /// Marks in a topology which of its existing queues are open to its owner, `namespace/name`.
    pub fn mark(&self, owner: &str, topology: &mut Topology) {
        let namespace = owner.split_once('/').map_or("", |(namespace, _)| namespace);
        let is_open = |queue: &&String| {
            self.0.iter().any(|(of, prefix)| (of == "*" || of == namespace) && queue.starts_with(prefix.as_str()))
        };
        topology.open_queues = topology.existing_queues.iter().filter(is_open).cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_queue_is_open_by_its_argument_or_by_namespace_and_prefix() {
        let with = |value: Value| Map::from_iter([(ACCEPT_ARGUMENT.to_owned(), value)]);
        assert!(accepts(&with(json!("pay")), "pay") && accepts(&with(json!("shop, pay")), "pay"));
        for closed in [with(json!("payments")), with(json!("*")), with(json!(1)), with(json!("")), Map::new()] {
            assert!(!accepts(&closed, "pay"), "{closed:?}");
        }
        let open: OpenQueues = "shop=shop-, shop=orders.,*=public.".parse().unwrap();
        let names = ["shop-a", "orders.b", "public.c", "team-b-orders", "shop"];
        let marked = |owner: &str| {
            let existing_queues = names.map(str::to_owned).to_vec();
            let mut topology = Topology { existing_queues, ..Topology::default() };
            open.mark(owner, &mut topology);
            topology.open_queues
        };
        assert_eq!(marked("shop/pay"), ["shop-a", "orders.b", "public.c"]);
        assert_eq!(marked("other/pay"), ["public.c"]);
        for bad in ["shop", "=x", "shop=a,b"] {
            assert!(bad.parse::<OpenQueues>().is_err(), "{bad}");
        }
        assert_eq!("".parse(), Ok(OpenQueues::default()));
    }
}
