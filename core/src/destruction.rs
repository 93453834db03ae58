//! What a changed declaration would destroy on the broker: shown before it happens, by `wirepost diff` and by the operator, which waits for
//! confirmation.
//!
//! Only what is destroyed at once counts, so only streams. A queue that is no longer declared is unbound and kept until it is empty; a
//! smaller `maxLength` refuses new messages and drops none; a shorter time to live moves messages to `dead`.

use std::fmt;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    hex,
    topology::{QueueKind, Topology},
};

/// Annotation of a resource; what a person allows it to destroy, as [`allowance`] gives it.
pub const ALLOW: &str = "wirepost.dev/allow-destructive";

/// Characters of a [`digest`]: enough to tell the few changes apart that one business ever makes.
const DIGEST: usize = 8;

/// Keys of a stream's policy by which the broker drops the oldest messages when the value gets smaller.
const KEPT: [&str; 2] = ["max-age", "max-length-bytes"];

/// Something that a change destroys. `Display` says what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destruction {
    /// The stream is deleted, with its messages.
    Stream {
        /// Its name.
        stream: String,
    },
    /// Messages are dropped that would be kept now.
    Cut {
        /// The stream.
        stream: String,
        /// The key of its policy.
        key: &'static str,
        /// As it is; none: without a bound.
        from: Option<String>,
        /// As it would be.
        to: String,
    },
}

impl fmt::Display for Destruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream { stream } => write!(f, "stream {stream} is deleted with its messages"),
            Self::Cut { stream, key, from, to } => {
                let from = from.as_deref().unwrap_or("unlimited");
                write!(f, "{stream} drops messages that it keeps now: {key} {from} → {to}")
            }
        }
    }
}

/// The value of [`ALLOW`] that allows a generation exactly this: `GENERATION-DIGEST`. The generation alone would allow whatever comes later, too:
/// a policy that is raised by hand while the generation stays, or a resource that was created again and counts from 1.
pub fn allowance(generation: i64, destructions: &[Destruction]) -> String {
    format!("{generation}-{}", digest(destructions))
}

/// The [`digest`] that a value of [`ALLOW`] names, if it is for this generation.
pub fn allowed(value: &str, generation: i64) -> Option<&str> {
    let (of, digest) = value.split_once('-')?;
    of.parse::<i64>().is_ok_and(|of| of == generation).then_some(digest)
}

/// Names destructions, in any order, whatever the words are that describe them.
pub fn digest(destructions: &[Destruction]) -> String {
    let fields = |destruction: &Destruction| match destruction {
        Destruction::Stream { stream } => json!([stream]).to_string(),
        Destruction::Cut { stream, key, from, to } => json!([stream, key, from, to]).to_string(),
    };
    let mut all: Vec<String> = destructions.iter().map(fields).collect();
    all.sort();
    let mut digest = hex(Sha256::digest(all.join("\n")));
    digest.truncate(DIGEST);
    digest
}

/// What is destroyed when `after` replaces `before`.
pub fn destructions(before: &Topology, after: &Topology) -> Vec<Destruction> {
    let mut all = Vec::new();
    for stream in before.queues.iter().filter(|queue| queue.kind == QueueKind::Stream) {
        if !after.queues.contains(stream) {
            all.push(Destruction::Stream { stream: stream.name.clone() });
            continue;
        }
        let definition = |topology: &Topology| topology.policy_of(&stream.name).map(|policy| policy.definition.clone());
        let (is, should) = (definition(before).unwrap_or_default(), definition(after).unwrap_or_default());
        all.extend(cuts(&stream.name, &is, &should));
    }
    all
}

/// What a stream loses when its policy changes.
pub fn cuts(stream: &str, is: &Map<String, Value>, should: &Map<String, Value>) -> Vec<Destruction> {
    let cut = |key: &'static str| {
        let to = should.get(key)?;
        let smaller = match is.get(key) {
            None => true,
            Some(is) => number(to).zip(number(is)).is_some_and(|(to, is)| to < is),
        };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        smaller.then(|| Destruction::Cut { stream: stream.to_owned(), key, from: is.get(key).map(text), to: text(to) })
    };
    KEPT.into_iter().filter_map(cut).collect()
}

/// `600s` and `600` alike.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.strip_suffix('s')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{business::WsBusiness, compile::compile_one};

    fn topology(push: &Value, queue: &Value) -> Topology {
        let business: WsBusiness = serde_json::from_value(json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "pay"},
            "spec": {
                "clientTypes": ["app"], "push": push,
                "routes": [{"messageType": "a", "sendType": "ClientToServer", "queue": queue}],
            },
        }))
        .unwrap();
        compile_one(&business).unwrap().topology
    }

    #[test]
    fn only_what_drops_messages_is_a_destruction() {
        let said = |before: (Value, Value), after: (Value, Value)| {
            let all = destructions(&topology(&before.0, &before.1), &topology(&after.0, &after.1));
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let (durable, queue) = (json!({"delivery": "Durable"}), json!({"name": "q"}));
        let day = || (durable.clone(), queue.clone());
        assert_eq!(
            said(day(), (json!({"delivery": "Transient"}), queue.clone())),
            ["stream wirepost.pay.stream is deleted with its messages"]
        );
        assert_eq!(
            said(day(), (json!({"retention": {"seconds": 60}}), json!({"name": "q", "messageTtlSeconds": 5}))),
            ["wirepost.pay.stream drops messages that it keeps now: max-age 86400s → 60s"]
        );
        for harmless in [
            (json!({"retention": {"seconds": 90_000, "bytes": "2Gi"}}), queue.clone()),
            (durable.clone(), json!({"name": "q", "maxLength": 1})),
            (durable.clone(), json!({"name": "other"})),
        ] {
            assert_eq!(said(day(), harmless), [""; 0]);
        }
    }

    #[test]
    fn a_person_allows_one_generation_one_change() {
        let cut = |key: &'static str, from: &str, to: &str| Destruction::Cut {
            stream: "wirepost.pay.stream".to_owned(),
            key,
            from: Some(from.to_owned()),
            to: to.to_owned(),
        };
        let age = || cut("max-age", "7200s", "3600s");
        let bytes = || cut("max-length-bytes", "2", "1");
        let value = allowance(3, &[age(), bytes()]);
        assert_eq!(allowed(&value, 3), Some(digest(&[bytes(), age()]).as_str()));
        assert_eq!(allowed(&value, 1), None);
        for another in [vec![age()], vec![cut("max-age", "86400s", "3600s"), bytes()], vec![]] {
            assert_ne!(allowed(&value, 3), Some(digest(&another).as_str()));
        }
        for unreadable in ["3", "-3", "3-", "", "now"] {
            assert_ne!(allowed(unreadable, 3), Some(digest(&[age()]).as_str()), "{unreadable}");
        }
    }
}
