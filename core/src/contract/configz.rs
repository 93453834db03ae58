//! `GET /configz` on an edge's admin port: what the edge runs. The operator compares the hashes with what it wrote.
//!
//! The answer has an `ETag`. Asked with `If-None-Match` and `?wait=SECONDS`, the edge answers once something has changed, or with 304 when
//! the time is over.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// How long an edge that reports a configuration may still use the former one: it has decided which queue a message is for, then checks
/// its content (1.2 s at most), publishes it (2 s at most), and the broker gets it. After that it uses nothing of the former configuration.
pub const DECISIONS_VALID_FOR: Duration = Duration::from_secs(4);

/// The path.
pub const PATH: &str = "/configz";

/// The query.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Query {
    /// Seconds to wait for a change of what `If-None-Match` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
}

/// The body, as the edge writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configz {
    /// The part that the `ETag` stands for.
    #[serde(flatten)]
    pub loaded: Loaded,
    /// Of publishing and reading, the worse.
    pub broker: Broker,
    /// Businesses whose clients wait for pushes while none are read.
    pub unread: Vec<String>,
    /// Business that is read → messages that its reader is behind the broker; `null` = not known.
    pub lags: BTreeMap<String, Option<u64>>,
    /// Business with clients here → how many connections they have.
    pub connections: BTreeMap<String, u64>,
}

/// The part of the body that the operator reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Reported {
    /// What the edge has loaded.
    #[serde(flatten)]
    pub loaded: Loaded,
    /// Business with clients there → how many connections they have. `None`: it does not say, as versions before it.
    #[serde(default)]
    pub connections: Option<BTreeMap<String, u64>>,
}

/// What an edge has loaded. Health, lags and numbers of clients change all the time, and nobody waits for them here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// The edge's name.
    #[serde(default)]
    pub edge: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Business → [hash](super::edge_config::BusinessConfig::hash) of the configuration that runs.
    pub businesses: BTreeMap<String, String>,
    /// Ids of the [keys](super::key_file) that it takes, sorted. `None`: it does not say, as versions before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
}

/// How an edge is connected to its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Broker {
    /// It publishes and reads.
    Up,
    /// It publishes; the pushes of at least one business that has clients here are not read.
    Unread,
    /// The broker takes no messages now.
    Blocked,
    /// No connection.
    Away,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_body_is_flat_and_its_hashes_are_read_whatever_else_it_holds() {
        let loaded = Loaded {
            edge: "edge-1".to_owned(),
            version: "1.0.0".to_owned(),
            businesses: BTreeMap::from([("pay".to_owned(), "abc".to_owned())]),
            keys: Some(vec!["2026-11".to_owned()]),
        };
        let lags = BTreeMap::from([("pay".to_owned(), None)]);
        let connections = BTreeMap::from([("pay".to_owned(), 7)]);
        let body = Configz {
            loaded: loaded.clone(),
            broker: Broker::Unread,
            unread: vec!["pay".to_owned()],
            lags,
            connections,
        };
        let json = serde_json::to_value(&body).unwrap();
        assert_eq!(
            json,
            json!({"edge": "edge-1", "version": "1.0.0", "businesses": {"pay": "abc"}, "keys": ["2026-11"],
                "broker": "unread", "unread": ["pay"], "lags": {"pay": null}, "connections": {"pay": 7}})
        );
        assert_eq!(serde_json::from_value::<Loaded>(json.clone()).unwrap(), loaded);
        let connections = Some(BTreeMap::from([("pay".to_owned(), 7)]));
        assert_eq!(serde_json::from_value::<Reported>(json).unwrap(), Reported { loaded, connections });
        let newer = json!({"businesses": {}, "broker": "sideways", "other": 1});
        assert_eq!(serde_json::from_value::<Reported>(newer).unwrap(), Reported::default());
    }
}
