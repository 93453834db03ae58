//! What a client sends: one message at a time, repeated with the same id until it is acknowledged. One that floods sends more, and repeats
//! none of that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::Instant;
use wirepost_testing::client::Client;

use super::IDENTITIES;
use crate::chance::Chance;
use crate::plan::PLANS;
use crate::record::{Message, MessageNo, Outcome, Tags, To, What};
use crate::world::World;

/// Far above the burst that a client may send.
const FLOOD: usize = 90;
/// Between two floods.
const FLOODS: (f64, f64) = (8.0, 25.0);
/// One message in this many to another client names all businesses that it can be for.
const SHARED: usize = 3;
/// Before a repeat, where the answer names no time.
const RETRY: Duration = Duration::from_millis(700);

struct Pending {
    message: MessageNo,
    id: String,
    frame: Value,
    in_flight: bool,
    due: Instant,
}

pub(super) struct Sends {
    world: Arc<World>,
    business: usize,
    name: String,
    seq: u64,
    pending: Option<Pending>,
    next: Instant,
    /// Messages of a flood without an answer.
    flood: HashMap<String, MessageNo>,
    next_flood: Instant,
    /// Tags that it has asked for.
    pub(super) refreshing: Option<Tags>,
}

impl Sends {
    pub(super) fn new(world: &Arc<World>, business: usize, name: &str) -> Self {
        let now = Instant::now();
        Self {
            world: Arc::clone(world),
            business,
            name: name.to_owned(),
            seq: 0,
            pending: None,
            next: now,
            flood: HashMap::new(),
            next_flood: now,
            refreshing: None,
        }
    }

    /// Whether an answer is due on this connection.
    pub(super) fn waits(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.in_flight)
    }

    /// The connection is over: what has no answer may have arrived.
    pub(super) fn lost(&mut self) {
        self.refreshing = None;
        if let Some(pending) = self.pending.as_mut().filter(|pending| pending.in_flight) {
            (pending.in_flight, pending.due) = (false, Instant::now());
            self.world.answered(pending.message, Outcome::Unknown);
        }
        for (_, message) in self.flood.drain() {
            self.world.answered(message, Outcome::Unknown);
        }
    }

    /// An `ack` or `nack`; the next message comes after this pause.
    pub(super) fn answer(&mut self, frame: &Value, pace: Duration) {
        let acked = frame["op"] == "ack";
        let outcome = match (acked, frame["mayHaveArrived"].as_bool()) {
            (true, _) => Outcome::Confirmed,
            (false, Some(false)) => Outcome::NotArrived,
            (false, _) => Outcome::Unknown,
        };
        if !acked && frame["retryable"] != true {
            self.world.journal.broken(format!("{}: refused for good: {frame}", self.name));
        }
        let id = frame["id"].as_str().unwrap_or_default();
        if let Some(message) = self.flood.remove(id) {
            self.world.answered(message, outcome);
            return;
        }
        let Some(pending) = self.pending.as_mut().filter(|pending| pending.in_flight && pending.id == id) else {
            self.world.journal.broken(format!("{}: an answer without a question: {frame}", self.name));
            return;
        };
        self.world.answered(pending.message, outcome);
        if acked || frame["retryable"] != true {
            self.pending = None;
            self.next = Instant::now() + pace;
            self.world.closes();
        } else {
            pending.in_flight = false;
            let retry = frame["retryAfterMs"].as_u64().map_or(RETRY, Duration::from_millis);
            pending.due = Instant::now() + retry;
        }
    }

    /// Sends what is due: a new message only while everybody talks.
    pub(super) async fn send(
        &mut self,
        client: &mut Client,
        talking: bool,
        floods: bool,
        chance: &mut Chance,
    ) -> Result<()> {
        let now = Instant::now();
        if self.pending.is_none() && talking && self.next < now {
            let (message, id, frame) = self.message(chance, true);
            self.world.opens();
            self.pending = Some(Pending { message, id, frame, in_flight: false, due: now });
        }
        if let Some(pending) = self.pending.as_mut().filter(|pending| !pending.in_flight && pending.due <= now) {
            pending.in_flight = true;
            self.world.journal.note(What::Offered { message: pending.message });
            client.send(&pending.frame).await?;
        }
        if floods && self.next_flood < now && self.flood.is_empty() {
            self.next_flood = now + chance.seconds(FLOODS.0, FLOODS.1);
            for _ in 0..FLOOD {
                let (message, id, frame) = self.message(chance, false);
                self.flood.insert(id, message);
                self.world.journal.note(What::Offered { message });
                client.send(&frame).await?;
            }
        }
        Ok(())
    }

    fn message(&mut self, chance: &mut Chance, in_order: bool) -> (MessageNo, String, Value) {
        let queues = |short: &[&str]| To::Queues(short.iter().map(|queue| (*queue).to_owned()).collect());
        let mut shared = Vec::new();
        let (kind, to) = match chance.below(4) {
            0 => ("visit", queues(&["orders", "visits"])),
            1 if in_order => {
                // Businesses that accept it at any time: all or nothing.
                let others = PLANS[self.business].accepted_by();
                let others: Vec<usize> = others.into_iter().filter(|other| !PLANS[*other].changes).collect();
                if !others.is_empty() && chance.once_in(SHARED) {
                    shared.push(self.business);
                    shared.extend(others);
                }
                let to = chance.pick(&IDENTITIES).map_or_else(String::new, |id| (*id).to_owned());
                ("chat", To::Identity(to))
            }
            _ => ("order", queues(&["orders"])),
        };
        let id = format!("{}-{}", self.name, self.seq);
        let mut frame = json!({"id": id, "messageType": kind, "content": {"n": self.seq}});
        if let To::Identity(identity) = &to {
            frame["toUniqueId"] = json!(identity);
        }
        if !shared.is_empty() {
            frame["businesses"] = shared.iter().map(|business| PLANS[*business].name).collect();
        }
        let message = self.world.journal.message(Message {
            id: id.clone(),
            business: self.business,
            shared,
            sender: self.name.clone(),
            seq: self.seq,
            in_order,
            kind: kind.to_owned(),
            to,
            expires_at: None,
        });
        self.seq += 1;
        (message, id, frame)
    }
}
