//! What a changed declaration would destroy on the broker: shown before it happens, by `wirepost diff` and by the operator, which waits for
//! confirmation.
//!
//! Only what is destroyed at once counts, so only streams. A queue that is no longer declared is unbound and kept until it is empty; a
//! smaller `maxLength` refuses new messages and drops none; a shorter time to live moves messages to `dead`.

use std::fmt;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    business::RetentionStatus,
    compile::{quantity, quantity_text},
    hex, names,
    topology::{Queue, QueueKind, Topology},
};

/// Annotation of a resource; what a person allows it to destroy, as [`allowance`] gives it.
pub const ALLOW: &str = "wirepost.dev/allow-destructive";

/// Characters of a [`digest`]: enough to tell the few changes apart that one business ever makes.
const DIGEST: usize = 8;

/// Keys of a stream's policy by which the broker drops the oldest messages when the value gets smaller.
const KEPT: [&str; 2] = [MAX_AGE, MAX_BYTES];
const MAX_AGE: &str = "max-age";
const MAX_BYTES: &str = "max-length-bytes";

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
/// `used`: see [`digest`].
pub fn allowance(generation: i64, destructions: &[Destruction], used: Option<&str>) -> String {
    format!("{generation}-{}", digest(destructions, used))
}

/// The [`digest`] that a value of [`ALLOW`] names, if it is for this generation.
pub fn allowed(value: &str, generation: i64) -> Option<&str> {
    let (of, digest) = value.split_once('-')?;
    of.parse::<i64>().is_ok_and(|of| of == generation).then_some(digest)
}

/// Names destructions, in any order, whatever the words are that describe them. `used`: the value of [`ALLOW`] that was carried out last. It
/// allows nothing more, so what comes again has another name.
pub fn digest(destructions: &[Destruction], used: Option<&str>) -> String {
    let fields = |destruction: &Destruction| match destruction {
        Destruction::Stream { stream } => json!([stream]).to_string(),
        Destruction::Cut { stream, key, from, to } => json!([stream, key, from, to]).to_string(),
    };
    let mut all: Vec<String> = destructions.iter().map(fields).collect();
    all.sort();
    all.extend(used.map(|used| json!({"after": used}).to_string()));
    let mut digest = hex(Sha256::digest(all.join("\n")));
    digest.truncate(DIGEST);
    digest
}

/// What is destroyed when `after` replaces `before`.
pub fn destructions(before: &Topology, after: &Topology) -> Vec<Destruction> {
    let mut all = Vec::new();
    // Receipts are copies of events, which the business has had.
    let keeps = |queue: &&Queue| queue.kind == QueueKind::Stream && !names::is_receipts_stream(&queue.name);
    for stream in before.queues.iter().filter(keeps) {
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

/// A number, or an age in seconds: RabbitMQ takes the units Y, M (30 days), D, h, m and s.
fn number(value: &Value) -> Option<u64> {
    let age = |text: &str| {
        let unit = text.chars().last()?;
        let seconds: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'D' => 86_400,
            'M' => 30 * 86_400,
            'Y' => 365 * 86_400,
            _ => return None,
        };
        text[..text.len() - unit.len_utf8()].parse::<u64>().ok()?.checked_mul(seconds)
    };
    value.as_u64().or_else(|| age(value.as_str()?))
}

impl RetentionStatus {
    /// What the policy of a stream keeps, before anything is left out of what a person must allow: `held` stays as it is.
    pub fn of(policy: &Map<String, Value>, held: &[Destruction]) -> Self {
        let mut kept = policy.clone();
        for destruction in held {
            let Destruction::Cut { stream: _, key, from, to: _ } = destruction else { continue };
            let value = from.as_ref().map(|from| from.parse::<u64>().map_or(json!(from), |n| json!(n)));
            match value {
                Some(value) => kept.insert((*key).to_owned(), value),
                None => kept.remove(*key),
            };
        }
        Self {
            seconds: kept.get(MAX_AGE).and_then(number).and_then(|seconds| i64::try_from(seconds).ok()),
            bytes: kept.get(MAX_BYTES).and_then(number).map(quantity_text),
        }
    }

    /// As the policy of a stream says it.
    pub fn definition(&self) -> Map<String, Value> {
        let age = self.seconds.map(|seconds| (MAX_AGE.to_owned(), json!(format!("{seconds}s"))));
        let bytes = self.bytes.as_deref().and_then(quantity).map(|bytes| (MAX_BYTES.to_owned(), json!(bytes)));
        age.into_iter().chain(bytes).collect()
    }
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
    fn receipts_may_go_without_a_persons_word() {
        let of = |kept: &str| Topology {
            queues: vec![Queue { name: kept.to_owned(), kind: QueueKind::Stream, dead_letter: None }],
            ..Topology::default()
        };
        assert_eq!(destructions(&of("wirepost.pay.receipts"), &Topology::default()), []);
        assert_eq!(destructions(&of("wirepost.pay.stream"), &Topology::default()).len(), 1);
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
    fn ages_are_compared_in_every_unit_of_the_broker() {
        let age = |text: &str| Map::from_iter([(MAX_AGE.to_owned(), json!(text))]);
        for (is, should, cut) in [
            ("7D", "86400s", true),
            ("1h", "3600s", false),
            ("1M", "29D", true),
            ("1Y", "364D", true),
            ("2m", "3m", false),
        ] {
            assert_eq!(!cuts("wirepost.pay.stream", &age(is), &age(should)).is_empty(), cut, "{is} → {should}");
        }
    }

    #[test]
    fn what_a_stream_keeps_is_what_its_policy_says_and_what_is_held_back() {
        let stream = || "wirepost.pay.stream".to_owned();
        let policy = topology(&json!({}), &json!({"name": "q"})).policy_of(&stream()).unwrap().definition.clone();
        let kept = RetentionStatus::of(&policy, &[]);
        assert_eq!(kept, RetentionStatus { seconds: Some(86_400), bytes: Some("1Gi".to_owned()) });
        assert_eq!(cuts(&stream(), &kept.definition(), &policy), []);
        let cut = |key, from: Option<&str>| Destruction::Cut {
            stream: stream(),
            key,
            from: from.map(str::to_owned),
            to: String::new(),
        };
        let held = [cut(MAX_AGE, Some("7D")), cut(MAX_BYTES, None)];
        assert_eq!(RetentionStatus::of(&policy, &held), RetentionStatus { seconds: Some(604_800), bytes: None });
        let more = cut(MAX_BYTES, Some("3000000000"));
        assert_eq!(RetentionStatus::of(&policy, &[more]).bytes.as_deref(), Some("3G"));
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
        let value = allowance(3, &[age(), bytes()], None);
        assert_eq!(allowed(&value, 3), Some(digest(&[bytes(), age()], None).as_str()));
        assert_ne!(allowed(&value, 3), Some(digest(&[bytes(), age()], Some(&value)).as_str()), "it was carried out");
        assert_eq!(allowed(&value, 1), None);
        for another in [vec![age()], vec![cut("max-age", "86400s", "3600s"), bytes()], vec![]] {
            assert_ne!(allowed(&value, 3), Some(digest(&another, None).as_str()));
        }
        for unreadable in ["3", "-3", "3-", "", "now"] {
            assert_ne!(allowed(unreadable, 3), Some(digest(&[age()], None).as_str()), "{unreadable}");
        }
    }
}
