//! What was stored, sent and declared of one business.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use tokio::time::Instant;
use wirepost_runtime::clock;

use super::view::View;
use crate::declaration::Variant;

/// Everything about one business.
#[derive(Default)]
pub(super) struct OfBusiness {
    /// The life of its stream now.
    pub(super) life: Option<u64>,
    pub(super) lives: BTreeMap<u64, Life>,
    /// By fingerprint.
    pub(super) positions: HashMap<(u64, u64), u64>,
    /// What was declared, by edge, and from when on.
    pub(super) declared: Vec<(Instant, String, Variant)>,
    /// It has no stream: its pushes are numbered here, as a life 0.
    pub(super) transient: bool,
    /// Ids in its queue and stream, in their order.
    pub(super) stored: Vec<String>,
    pub(super) stored_at: HashMap<String, usize>,
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
    pub(super) timestamp: i64,
    /// `None`: a marker.
    pub(super) kind: Option<String>,
    pub(super) to: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) expires_at: Option<i64>,
}

/// A message that a client or a service sent.
pub(super) struct Sent {
    pub(super) connection: u64,
    pub(super) number: u64,
    pub(super) at: Instant,
    pub(super) outcome: Option<Answer>,
}

/// What a sender was told about a message of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    /// It never appears.
    Refused,
    Unknown,
}

impl OfBusiness {
    /// What was declared at the client's edge since it connected.
    pub(super) fn variants(&self, view: &View) -> Vec<Variant> {
        let of_edge: Vec<_> = self.declared.iter().filter(|(_, edge, _)| *edge == view.edge).collect();
        let first = of_edge.iter().rposition(|(at, ..)| *at < view.connected).unwrap_or(0);
        of_edge[first..].iter().map(|(.., variant)| *variant).collect()
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
            && self.variants(view).iter().all(|variant| variant.gives(kind, &view.client_type))
            && view.held.iter().all(|tags| message.is_for(&view.unique_id, tags))
    }

    pub(super) fn may_get(&self, view: &View, message: &Stored) -> bool {
        let Some(kind) = &message.kind else { return false };
        self.variants(view).iter().any(|variant| variant.gives(kind, &view.client_type))
            && message.is_for(&view.unique_id, &view.tags)
    }
}

impl Stored {
    pub(super) fn of(body: &[u8], timestamp: i64) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |field: &str| body[field].as_str().map(str::to_owned);
        Self {
            id: text("id").unwrap_or_default(),
            timestamp,
            kind: text("messageType").filter(|kind| kind != "wirepost.begin"),
            to: text("toUniqueId"),
            tags: body["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect(),
            expires_at: body["expiresAt"].as_i64(),
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
