//! What was stored, sent and declared of one business.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;
use wirepost_runtime::clock;

use super::view::View;
use crate::{broker::Message, declaration::Declared};

/// An edge applies what it is told within this time.
const APPLIED: Duration = Duration::from_secs(1);

/// Everything about one business.
#[derive(Default)]
pub(super) struct OfBusiness {
    /// The life of its stream now.
    pub(super) life: Option<u64>,
    pub(super) lives: BTreeMap<u64, Life>,
    /// By fingerprint.
    pub(super) positions: HashMap<(u64, u64), u64>,
    /// What was declared, by edge, and from when on.
    pub(super) declared: Vec<(Instant, String, Declared)>,
    /// It has no stream: its pushes are numbered here, as a life 0.
    pub(super) transient: bool,
    /// Ids in its queue and stream, in their order.
    pub(super) stored: Vec<String>,
    pub(super) stored_at: HashMap<String, usize>,
    /// Ids of messages that name it and that the broker does not copy to it: nothing leads there, or nobody is there.
    pub(super) not_copied: HashSet<String>,
    /// Of those that it copies later: what they go into is not there, or not bound.
    pub(super) later: BTreeSet<String>,
}

/// A stream from its declaration to its deletion.
#[derive(Default)]
pub(super) struct Life {
    pub(super) messages: BTreeMap<u64, Stored>,
    pub(super) deleted_below: u64,
}

/// A message of a stream, or a push into the queues of edges.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) id: String,
    /// The business that sent it, if it is another one.
    pub(super) from: Option<String>,
    /// It names this business, or none.
    pub(super) named: bool,
    pub(super) timestamp: i64,
    pub(super) at: Instant,
    /// `None`: a marker.
    pub(super) kind: Option<String>,
    pub(super) to: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) expires_at: Option<i64>,
}

impl OfBusiness {
    /// What was declared at an edge since then.
    pub(super) fn declared(&self, at_edge: &str, since: Instant) -> impl Iterator<Item = Declared> {
        let of_edge = move |(_, edge, _): &&(Instant, String, Declared)| edge == at_edge;
        let first = self.declared.iter().rposition(|of| of.0 < since && of_edge(&of)).unwrap_or(0);
        self.declared[first..].iter().filter(of_edge).map(|(.., declared)| *declared)
    }

    /// What was declared at the client's edge while a message may have been handed over to it.
    fn while_handed(&self, view: &View, message: &Stored) -> impl Iterator<Item = Declared> {
        self.declared(&view.edge, view.connected.max(message.at - APPLIED))
    }

    /// Pushes between two numbers that the client should have got.
    pub(super) fn missed<'a>(&'a self, view: &'a View, at: u64, to: u64) -> impl Iterator<Item = &'a str> {
        let now = clock::now_ms();
        let between = self.lives[&0].messages.range(at.saturating_add(1)..to.max(at.saturating_add(1)));
        between.filter(move |(_, message)| self.must_get(view, message, now)).map(|(_, message)| message.id.as_str())
    }

    pub(super) fn must_get(&self, view: &View, message: &Stored, now: i64) -> bool {
        let Some(kind) = &message.kind else { return false };
        message.expires_at.is_none_or(|at| at > now)
            && message.named
            && self
                .while_handed(view, message)
                .all(|declared| declared.gives(kind, &view.client_type, message.from.is_some()))
            && view.held.iter().all(|tags| message.is_for(&view.unique_id, tags))
    }

    pub(super) fn may_get(&self, view: &View, message: &Stored) -> bool {
        let Some(kind) = &message.kind else { return false };
        message.named
            && self
                .while_handed(view, message)
                .any(|declared| declared.gives(kind, &view.client_type, message.from.is_some()))
            && message.is_for(&view.unique_id, &view.tags)
    }
}

/// What counts of a message.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Body {
    id: String,
    message_type: Option<String>,
    to_unique_id: Option<String>,
    tags: Vec<String>,
    expires_at: Option<i64>,
    businesses: Vec<String>,
}

impl Stored {
    /// A message that is in the stream of `business`, or in its queues.
    pub(super) fn of(business: &str, message: &Message, timestamp: i64) -> Self {
        let body: Body = serde_json::from_slice(&message.body).unwrap_or_default();
        let businesses = &body.businesses;
        let mut named = businesses.is_empty() || businesses.iter().any(|name| name == business);
        let shared = message.shared.as_deref();
        let from = shared.filter(|shared| shared.from != business).map(|shared| shared.from.clone());
        if from.is_some() {
            named &= !businesses.is_empty();
        } else if let Some(shared) = shared {
            // Otherwise it came here because nothing else would take it.
            named &= shared.to.is_empty() || shared.to.iter().any(|to| to == business);
        }
        Self {
            id: body.id,
            from,
            named,
            timestamp,
            at: Instant::now(),
            kind: body.message_type.filter(|kind| kind != "wirepost.begin"),
            to: body.to_unique_id,
            tags: body.tags,
            expires_at: body.expires_at,
        }
    }

    pub(super) fn is_for(&self, unique_id: &str, tags: &[String]) -> bool {
        let tagged = || self.tags.iter().any(|tag| tags.contains(tag));
        match self.to.as_deref() {
            Some("*") => self.tags.is_empty() || tagged(),
            Some(id) => id == unique_id && (self.tags.is_empty() || tagged()),
            None => tagged(),
        }
    }
}
