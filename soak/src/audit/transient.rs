//! Clients of `Transient` businesses. There is no cursor: what was confirmed after a client was told that it is live has to come on that
//! connection, in each sender's order, unless a `gap` comes or the connection ends.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::facts::Facts;
use super::rights::{Right, TagsOverTime};
use super::{Extent, Kind, Violation};
use crate::record::{Client, ClientNo, ConnectionNo, MessageNo, To, What};

pub(super) fn check(facts: &Facts<'_>, extent: Extent) -> Vec<Violation> {
    let mut senders: BTreeMap<(usize, &str), Vec<MessageNo>> = BTreeMap::new();
    for (number, message) in facts.record.messages.iter().enumerate() {
        let transient = (0..facts.record.businesses.len()).filter(|of| !facts.record.businesses[*of].durable);
        for business in transient.filter(|business| message.is_for(*business) && !matches!(message.to, To::Queues(_))) {
            senders.entry((business, &message.sender)).or_default().push(number);
        }
    }
    let mut found = Vec::new();
    for connection in 0..facts.record.connections.len() {
        let number = facts.record.connections[connection];
        let client = &facts.record.clients[number];
        if facts.record.businesses[client.business].durable || client.plain {
            continue;
        }
        let mut listener = Listener::new(facts, number, client, &senders);
        listener.along(connection);
        if extent == Extent::Complete && facts.last.get(&number) == Some(&connection) {
            listener.ends();
        }
        found.append(&mut listener.found);
    }
    found
}

struct Listener<'f, 'r> {
    facts: &'f Facts<'r>,
    number: ClientNo,
    client: &'f Client,
    senders: &'f BTreeMap<(usize, &'r str), Vec<MessageNo>>,
    /// From when on it is owed everything.
    live: Option<Duration>,
    over: bool,
    tags: TagsOverTime,
    got: HashSet<MessageNo>,
    /// The newest of each sender.
    newest: BTreeMap<&'f str, MessageNo>,
    missing: BTreeMap<MessageNo, usize>,
    found: Vec<Violation>,
}

impl<'f, 'r> Listener<'f, 'r> {
    fn new(
        facts: &'f Facts<'r>,
        number: ClientNo,
        client: &'f Client,
        senders: &'f BTreeMap<(usize, &'r str), Vec<MessageNo>>,
    ) -> Self {
        Self {
            facts,
            number,
            client,
            senders,
            live: None,
            over: false,
            tags: TagsOverTime::default(),
            got: HashSet::new(),
            newest: BTreeMap::new(),
            missing: BTreeMap::new(),
            found: Vec::new(),
        }
    }

    fn violation(&mut self, kind: Kind, at: Duration, message: Option<MessageNo>, mut what: String) -> usize {
        what.insert_str(0, &format!("{}: ", self.client.name));
        self.found.push(Violation { kind, at, message, client: Some(self.number), what });
        self.found.len() - 1
    }

    fn along(&mut self, connection: ConnectionNo) {
        for &index in &self.facts.by_connection[connection] {
            let entry = &self.facts.record.entries[index];
            let at = entry.at;
            match &entry.what {
                What::Asked { tags, .. } => self.tags = TagsOverTime::new(tags.clone()),
                What::Welcome { resumed: Some(false), .. } => self.live = Some(at),
                What::Welcome { resumed: Some(true), .. } => {
                    self.violation(Kind::Broken, at, None, "resumed where nothing can be resumed".to_owned());
                }
                What::Got { message, .. } => self.got(at, *message),
                What::Gap { .. } => {
                    self.live = Some(at);
                    self.newest.clear();
                }
                What::Refreshing { tags, .. } => self.tags.refreshing(tags.clone()),
                What::Refreshed { done, .. } => self.tags.refreshed(at, *done),
                What::Ended { .. } => self.over = true,
                _ => {}
            }
        }
    }

    fn got(&mut self, at: Duration, message: Option<MessageNo>) {
        let Some(message) = message else {
            self.violation(Kind::Broken, at, None, "a push came that nobody sent".to_owned());
            return;
        };
        let (push, name) = (&self.facts.record.messages[message], self.facts.name(message));
        if self.facts.right(message, self.client, &self.tags, at, at) == Right::MustNot {
            self.violation(Kind::Leaked, at, Some(message), format!("{name} is not for it"));
            return;
        }
        let fate = &self.facts.fates[message];
        // The broker delivers again what it has no acknowledgement for, and a sender may have published twice.
        let again = fate.possible() > 1 || self.facts.broker_was_in_trouble(at);
        if !self.got.insert(message) {
            if !again {
                self.violation(Kind::Doubled, at, Some(message), format!("{name} came again"));
            }
            return;
        }
        let newest = self.newest.get(push.sender.as_str()).copied();
        match newest.map(|newest| self.facts.record.messages[newest].seq) {
            Some(seq) if seq > push.seq => {
                if let Some(violation) = self.missing.remove(&message) {
                    self.found[violation].kind = Kind::Swapped;
                    self.found[violation].what += "; it came later";
                } else if push.in_order && fate.confirmed.is_some() && !self.unbound(message) {
                    self.violation(Kind::Swapped, at, Some(message), format!("{name} came after number {seq}"));
                }
                return;
            }
            seq => {
                if push.in_order {
                    let since = seq.map_or(0, |seq| seq + 1);
                    let what = format!("{name} came");
                    self.misses(at, &push.sender, since..push.seq, &what, Kind::SilentGap);
                }
            }
        }
        self.newest.insert(push.sender.as_str(), message);
    }

    fn unbound(&self, message: MessageNo) -> bool {
        let fate = &self.facts.fates[message];
        self.facts.was_unbound(self.client.business, fate.begun(), fate.confirmed.unwrap_or(fate.begun()))
    }

    /// Messages of a sender that had to come before something.
    fn misses(&mut self, at: Duration, sender: &str, numbers: std::ops::Range<u64>, cause: &str, kind: Kind) {
        let Some(live) = self.live else { return };
        let Some(messages) = self.senders.get(&(self.client.business, sender)) else { return };
        let record = self.facts.record;
        let from = messages.partition_point(|&message| record.messages[message].seq < numbers.start);
        let owed: Vec<MessageNo> = messages[from..]
            .iter()
            .copied()
            .take_while(|&message| record.messages[message].seq < numbers.end)
            .filter(|message| !self.got.contains(message) && !self.missing.contains_key(message))
            .filter(|&message| {
                let fate = &self.facts.fates[message];
                fate.begun() > live
                    && fate.confirmed.is_some()
                    && !self.unbound(message)
                    && !self.facts.got_nothing(message, self.client.business)
            })
            .filter(|&message| {
                self.facts.right(message, self.client, &self.tags, self.facts.fates[message].begun(), at) == Right::Must
            })
            .collect();
        for message in owed {
            let what = format!("{cause}, and {} did not", self.facts.name(message));
            let violation = self.violation(kind, at, Some(message), what);
            self.missing.insert(message, violation);
        }
    }

    fn ends(&mut self) {
        if self.over {
            return;
        }
        let now = self.facts.record.entries.last().map_or(Duration::ZERO, |entry| entry.at);
        let senders: Vec<&str> = self
            .senders
            .keys()
            .filter(|(business, _)| *business == self.client.business)
            .map(|(_, sender)| *sender)
            .collect();
        for sender in senders {
            let newest = self.newest.get(sender).map_or(0, |&newest| self.facts.record.messages[newest].seq + 1);
            self.misses(now, sender, newest..u64::MAX, "everything had time to come", Kind::Lost);
        }
    }
}
