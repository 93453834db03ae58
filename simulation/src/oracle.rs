//! What must hold: no cursor passes a message, nobody goes back, nobody gets what is not addressed to them, each publish has
//! one outcome that is true. The oracle knows what the broker stored; clients show it every frame that they get.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;
use wirepost_runtime::clock;
use wirepost_stream::fingerprint;

use crate::{broker::Message, declaration::Declared};

mod answers;
mod facts;
mod judge;
mod view;

use answers::Sent;
pub(crate) use answers::{Answer, RECOVERY, Sender, Sends};
use facts::{Life, OfBusiness, Stored};
pub(crate) use view::View;

/// See the module. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Oracle(Arc<Mutex<Facts>>);

#[derive(Default)]
struct Facts {
    lives: u64,
    businesses: BTreeMap<String, OfBusiness>,
    /// By id.
    sent: HashMap<String, Sent>,
    violations: Vec<String>,
    /// By name, the one that is there now.
    edges: HashMap<String, String>,
    /// A business that nothing happens to: its pushes arrive in time, whatever happens to others.
    spared: Option<(String, Instant)>,
    /// Of everything that clients saw, and when.
    trace: DefaultHasher,
    frames: u64,
    pushes: u64,
    gaps: u64,
    acks: u64,
    nacks: u64,
}

impl Facts {
    /// Since when nothing happens to this business, if it is the one that is spared.
    fn spared_since(&self, business: &str) -> Option<Instant> {
        self.spared.as_ref().filter(|(spared, _)| spared == business).map(|(_, since)| *since)
    }
}

impl Oracle {
    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that must not be.
    pub(crate) fn violation(&self, text: String) {
        tracing::error!(text, "VIOLATION");
        self.lock().violations.push(text);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// A number that two runs of a seed have in common, and what it stands for.
    pub(crate) fn summary(&self) -> (u64, String) {
        let facts = self.lock();
        let Facts { frames, pushes, gaps, acks, nacks, .. } = *facts;
        let stored: usize = facts.businesses.values().map(|business| business.stored.len()).sum();
        (
            facts.trace.finish(),
            format!("{stored} stored, {frames} frames, {pushes} pushes, {gaps} gaps, {acks} acks, {nacks} nacks"),
        )
    }

    /// Nothing happens to this business.
    pub(crate) fn spare(&self, business: &str) {
        self.lock().spared = Some((business.to_owned(), Instant::now()));
    }

    /// Whether there is such a business.
    pub(crate) fn spares(&self) -> bool {
        self.lock().spared.is_some()
    }

    pub(crate) fn is_spared(&self, business: &str) -> bool {
        self.lock().spared_since(business).is_some()
    }

    // --- the broker

    pub(crate) fn new_life(&self, business: &str) -> u64 {
        let mut facts = self.lock();
        facts.lives += 1;
        let life = facts.lives;
        let of = facts.businesses.entry(business.to_owned()).or_default();
        of.life = Some(life);
        of.lives.insert(life, Life::default());
        tracing::info!(business, life, "stream declared");
        life
    }

    pub(crate) fn life_ended(&self, business: &str) {
        tracing::info!(business, "stream deleted");
        self.lock().businesses.entry(business.to_owned()).or_default().life = None;
    }

    pub(crate) fn deleted_below(&self, business: &str, life: u64, first: u64) {
        tracing::info!(business, first, "retention");
        if let Some(life) = self.lock().businesses.entry(business.to_owned()).or_default().lives.get_mut(&life) {
            life.deleted_below = life.deleted_below.max(first);
        }
    }

    /// A message came into the stream of a business, as these bytes.
    pub(crate) fn stored(
        &self,
        business: &str,
        (life, offset, timestamp): (u64, u64, i64),
        bytes: &Bytes,
        message: &Message,
    ) {
        let print = fingerprint(offset, timestamp, bytes);
        let stored = Stored::of(business, message, timestamp);
        tracing::info!(business, life, offset, ?stored, "stored");
        self.note(business, &stored.id);
        let mut facts = self.lock();
        let of = facts.businesses.entry(business.to_owned()).or_default();
        of.positions.insert((offset, print), life);
        of.lives.entry(life).or_default().messages.insert(offset, stored);
    }

    /// A message came into the queue of a business.
    pub(crate) fn queued(&self, business: &str, body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        tracing::info!(business, id = body["id"].as_str(), "queued");
        self.note(business, body["id"].as_str().unwrap_or_default());
    }

    fn note(&self, business: &str, id: &str) {
        let mut facts = self.lock();
        let refused = facts.sent.get(id).is_some_and(|sent| {
            sent.outcome == Some(Answer::Refused) || sent.refused.iter().any(|refused| refused == business)
        });
        let of = facts.businesses.entry(business.to_owned()).or_default();
        let place = of.stored.len();
        of.stored.push(id.to_owned());
        let twice = of.stored_at.insert(id.to_owned(), place).is_some();
        drop(facts);
        if refused {
            self.violation(format!("{id} appears after its sender was told that it does not"));
        }
        // An edge asks whether a queue is down as often as it has to: that is nobody's message.
        if twice && id != "is-down" {
            self.violation(format!("{id} is stored twice"));
        }
    }

    /// A business has no stream.
    pub(crate) fn transient(&self, business: &str) {
        let mut facts = self.lock();
        let of = facts.businesses.entry(business.to_owned()).or_default();
        of.transient = true;
        of.lives.insert(0, Life::default());
    }

    /// A push came into the queues of a `Transient` business.
    pub(crate) fn pushed(&self, business: &str, message: &Message) {
        let stored = Stored::of(business, message, clock::now_ms());
        tracing::info!(business, ?stored, "pushed");
        if stored.kind.is_some() {
            self.note(business, &stored.id);
        }
        let mut facts = self.lock();
        if let Some(life) = facts.businesses.entry(business.to_owned()).or_default().lives.get_mut(&0) {
            let number = life.messages.len() as u64;
            life.messages.insert(number, stored);
        }
    }

    /// The broker does not copy a message to a business that it names.
    pub(crate) fn not_copied(&self, business: &str, body: &[u8]) {
        let id = id_of(body);
        tracing::info!(business, id, "not copied");
        self.lock().businesses.entry(business.to_owned()).or_default().not_copied.insert(id);
    }

    /// It copies it later.
    pub(crate) fn copied_later(&self, business: &str, body: &[u8]) {
        let id = id_of(body);
        tracing::info!(business, id, "kept");
        self.lock().businesses.entry(business.to_owned()).or_default().later.insert(id);
    }

    /// A message was lost with a stream, or with its leader, before it was committed.
    pub(crate) fn lost(&self, business: &str, body: &[u8]) {
        let id = id_of(body);
        if let Some(of) = self.lock().businesses.get_mut(business)
            && of.later.remove(&id)
        {
            of.not_copied.insert(id);
        }
    }

    // --- edges, and what they are told

    /// An edge of this name begins: whoever connects to the name from now on reaches it.
    pub(crate) fn edge_begins(&self, name: &str, life: &str) {
        self.lock().edges.insert(name.to_owned(), life.to_owned());
    }

    /// The edge that whoever connects to this name reaches.
    pub(crate) fn edge(&self, name: &str) -> String {
        self.lock().edges.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn declared(&self, business: &str, edge: &str, declared: Declared) {
        tracing::info!(business, edge, ?declared, "declared");
        let mut facts = self.lock();
        facts.businesses.entry(business.to_owned()).or_default().declared.push((
            Instant::now(),
            edge.to_owned(),
            declared,
        ));
    }

    // --- the end

    /// A client that was connected for long must know the end of its stream.
    pub(crate) fn is_at_end(&self, view: &View, newest: Option<(u64, u64)>) {
        if self.is_transient(&view.business) {
            let facts = self.lock();
            let of = &facts.businesses[&view.business];
            let missed: Vec<_> = match view.at {
                Some((_, at)) => of.missed(view, at, u64::MAX).map(str::to_owned).collect(),
                None => Vec::new(),
            };
            drop(facts);
            for missed in missed {
                self.violation(format!("{}: {missed} did not come", view.name));
            }
            return;
        }
        if view.at != newest {
            self.violation(format!("{}: at {:?} in the end, and the stream ends at {newest:?}", view.name, view.at));
        }
    }

    /// What was acknowledged and kept for a stream has come into it.
    pub(crate) fn check_kept(&self) {
        let mut facts = self.lock();
        let Facts { businesses, sent, violations, .. } = &mut *facts;
        for (name, of) in businesses {
            for id in of.later.iter().filter(|id| !of.stored_at.contains_key(*id)) {
                if sent.get(id).is_some_and(|sent| sent.outcome == Some(Answer::Ok)) {
                    violations.push(format!("{id} is acknowledged and never came into the stream of {name}"));
                }
            }
        }
    }

    /// Acknowledged messages of one connection keep their order.
    pub(crate) fn check_order(&self) {
        let mut facts = self.lock();
        let mut problems = Vec::new();
        let acked: Vec<(&String, &Sent)> =
            facts.sent.iter().filter(|(_, sent)| sent.outcome == Some(Answer::Ok)).collect();
        let mut by_key: BTreeMap<_, BTreeMap<u64, (&String, usize)>> = BTreeMap::new();
        for (name, of) in &facts.businesses {
            for (id, sent) in &acked {
                if let Some(place) = of.stored_at.get(*id) {
                    let key = (sent.connection, name.as_str(), id.contains(":push:"));
                    by_key.entry(key).or_default().insert(sent.number, (id, *place));
                }
            }
        }
        for messages in by_key.values() {
            for pair in messages.values().collect::<Vec<_>>().windows(2) {
                if pair[0].1 > pair[1].1 {
                    problems.push(format!("{} was sent before {} and stored behind it", pair[0].0, pair[1].0));
                }
            }
        }
        facts.violations.extend(problems);
    }

    /// Messages of this connection, or call, that have no answer.
    pub(crate) fn unanswered(&self, connection: u64) -> Vec<String> {
        let facts = self.lock();
        let mut open: Vec<String> = facts
            .sent
            .iter()
            .filter(|(_, sent)| sent.connection == connection && sent.outcome.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        open.sort();
        open
    }
}

fn id_of(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body["id"].as_str().unwrap_or_default().to_owned()
}
