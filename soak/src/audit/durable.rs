//! Clients of `Durable` businesses. Their cursors say where they are, and the witness says what is there: between two frames with cursors of
//! one connection nothing may be missing that had to come, unless a `gap` came before the second; and nothing comes twice.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound::{Excluded, Included};
use std::time::Duration;

use super::facts::Facts;
use super::rights::{Right, TagsOverTime};
use super::{Extent, Kind, Violation};
use crate::record::{Client, ClientNo, ConnectionNo, What};

pub(super) fn check(facts: &Facts<'_>, extent: Extent) -> Vec<Violation> {
    let mut found = Vec::new();
    for connection in 0..facts.record.connections.len() {
        let number = facts.record.connections[connection];
        let client = &facts.record.clients[number];
        if !facts.record.businesses[client.business].durable {
            continue;
        }
        let last = facts.last.get(&number) == Some(&connection);
        let mut walk = Walk::new(facts, number, client);
        let seen = walk.along(connection);
        if extent == Extent::Complete {
            if !seen {
                walk.violation(Kind::Broken, Duration::ZERO, None, "it is ahead of what the witness saw".to_owned());
            } else if last {
                walk.ends();
            }
        }
        found.append(&mut walk.found);
    }
    found
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Not told yet. With the cursor that it gave; all behind it has to come.
    Untold(Option<u64>),
    /// Behind this offset.
    Offset(u64),
    /// After a `gap`: what comes next says where it is.
    Anywhere,
}

/// What brings a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// It is the message there.
    Push,
    /// It stands for all up to there: the message there as well.
    Position,
}

struct Walk<'f, 'r> {
    facts: &'f Facts<'r>,
    number: ClientNo,
    client: &'f Client,
    at: At,
    /// When it was there.
    since: Duration,
    asked: Duration,
    welcomed: Option<Duration>,
    /// Whether `welcome` said that something may be missing, and nothing came since: a `gap` frame says the same again.
    said: bool,
    tags: TagsOverTime,
    got: HashSet<u64>,
    /// Offsets of pushes that were missing when a later one came, and their violations.
    missing: BTreeMap<u64, usize>,
    found: Vec<Violation>,
}

impl<'f, 'r> Walk<'f, 'r> {
    fn new(facts: &'f Facts<'r>, number: ClientNo, client: &'f Client) -> Self {
        Self {
            facts,
            number,
            client,
            at: At::Untold(None),
            since: Duration::ZERO,
            asked: Duration::ZERO,
            welcomed: None,
            said: false,
            tags: TagsOverTime::default(),
            got: HashSet::new(),
            missing: BTreeMap::new(),
            found: Vec::new(),
        }
    }

    fn violation(&mut self, kind: Kind, at: Duration, message: Option<usize>, mut what: String) -> usize {
        what.insert_str(0, &format!("{}: ", self.client.name));
        self.found.push(Violation { kind, at, message, client: Some(self.number), what });
        self.found.len() - 1
    }

    /// Whether it came to the end; not if it saw more than the witness has.
    fn along(&mut self, connection: ConnectionNo) -> bool {
        let end = self.facts.stored[self.client.business].keys().next_back().copied();
        for &index in &self.facts.by_connection[connection] {
            let entry = &self.facts.record.entries[index];
            let at = entry.at;
            match &entry.what {
                What::Asked { cursor, tags, .. } => {
                    (self.asked, self.since) = (at, at);
                    self.at = At::Untold(*cursor);
                    self.tags = TagsOverTime::new(tags.clone());
                }
                What::Welcome { resumed, cursor, .. } => self.welcome(at, *resumed, *cursor),
                What::Got { cursor: Some(offset), .. } | What::Position { cursor: offset, .. }
                    if Some(*offset) > end =>
                {
                    return false;
                }
                What::Got { message, cursor, .. } => self.got(at, *message, *cursor),
                What::Position { cursor, .. } => self.position(at, *cursor),
                What::Gap { reason, .. } => self.gap(at, reason),
                What::Refreshing { tags, .. } => self.tags.refreshing(tags.clone()),
                What::Refreshed { done, .. } => self.tags.refreshed(at, *done),
                _ => {}
            }
        }
        true
    }

    fn welcome(&mut self, at: Duration, resumed: Option<bool>, cursor: Option<u64>) {
        self.welcomed = Some(at);
        let At::Untold(given) = self.at else {
            self.violation(Kind::Broken, at, None, "a second welcome".to_owned());
            return;
        };
        match (resumed, given, cursor) {
            (Some(true), Some(given), Some(cursor)) => {
                self.at = At::Offset(given);
                self.passes(at, cursor, Frame::Position);
            }
            (Some(true), _, _) => {
                self.violation(Kind::Broken, at, None, "resumed from nowhere, or to nowhere".to_owned());
            }
            // What it had is given up with the frame itself.
            (Some(false), _, Some(cursor)) => {
                self.arrives(at, cursor);
                self.said = given.is_some();
            }
            (Some(false), _, None) => {
                self.violation(Kind::Broken, at, None, "not resumed, and no cursor".to_owned());
            }
            (None, _, _) => {}
        }
    }

    fn gap(&mut self, at: Duration, reason: &str) {
        let business = &self.facts.record.businesses[self.client.business];
        let possible = match reason {
            "unread" => self.at == At::Untold(None),
            "retention" => business.short_retention,
            _ => false,
        };
        if !possible {
            self.violation(Kind::FalseGap, at, None, format!("gap {reason}, and nothing in this run is a cause"));
        }
        if !std::mem::take(&mut self.said) {
            self.at = At::Anywhere;
            self.since = at;
        }
    }

    fn position(&mut self, at: Duration, cursor: u64) {
        match self.at {
            At::Offset(here) if cursor < here => {
                self.violation(Kind::Swapped, at, None, format!("position {cursor} after {here}"));
                self.arrives(at, cursor);
            }
            At::Untold(None) => {
                self.newcomer(at, cursor);
                self.arrives(at, cursor);
            }
            _ => self.passes(at, cursor, Frame::Position),
        }
    }

    /// It had no cursor, and `position` alone says that nothing is missing since its welcome.
    fn newcomer(&mut self, at: Duration, cursor: u64) {
        let Some(welcomed) = self.welcomed else { return };
        let stored = self.facts.stored[self.client.business].range(..=cursor);
        let owed: Vec<u64> = stored
            .filter(|(_, stored)| stored.message.is_some_and(|message| self.facts.fates[message].begun() > welcomed))
            .map(|(&offset, _)| offset)
            .collect();
        for offset in owed {
            self.misses(at, offset, self.since, cursor);
        }
    }

    fn got(&mut self, at: Duration, message: Option<usize>, cursor: Option<u64>) {
        let Some(message) = message else {
            self.violation(Kind::Broken, at, None, "a push came that nobody sent".to_owned());
            return;
        };
        let name = self.facts.name(message);
        if self.facts.right(message, self.client, &self.tags, self.since, at) == Right::MustNot {
            self.violation(Kind::Leaked, at, Some(message), format!("{name} is not for it"));
            return;
        }
        if self.facts.had_expired(message, self.asked) {
            self.violation(Kind::Expired, at, Some(message), format!("{name} had expired before it connected"));
        }
        let Some(offset) = cursor else {
            self.violation(Kind::Broken, at, Some(message), format!("{name} has no cursor"));
            return;
        };
        let stored = self.facts.stored[self.client.business].get(&offset);
        if stored.is_some_and(|stored| stored.message != Some(message)) {
            self.violation(
                Kind::Broken,
                at,
                Some(message),
                format!("{name} came as {offset}, where another message is"),
            );
        }
        match self.at {
            At::Offset(here) if offset <= here => {
                if let Some(violation) = self.missing.remove(&offset) {
                    self.found[violation].kind = Kind::Swapped;
                    self.found[violation].what += "; it came later";
                } else if self.got.contains(&offset) {
                    self.violation(Kind::Doubled, at, Some(message), format!("{name} came again, as {offset}"));
                } else {
                    self.violation(Kind::Swapped, at, Some(message), format!("{name} came as {offset} after {here}"));
                }
            }
            At::Untold(None) if !self.client.plain => {
                self.violation(Kind::Broken, at, Some(message), format!("{name} came before its position"));
                self.arrives(at, offset);
            }
            _ => self.passes(at, offset, Frame::Push),
        }
        self.got.insert(offset);
    }

    /// It is at `cursor` now, and everything before that is decided.
    fn passes(&mut self, at: Duration, cursor: u64, frame: Frame) {
        if let At::Offset(here) | At::Untold(Some(here)) = self.at
            && here < cursor
        {
            let between = (Excluded(here), Excluded(cursor));
            let owed: Vec<u64> =
                self.facts.stored[self.client.business].range(between).map(|(&offset, _)| offset).collect();
            for offset in owed {
                self.misses(at, offset, self.since, cursor);
            }
            if frame == Frame::Position {
                self.misses(at, cursor, self.since, cursor);
            }
        }
        let here = if let At::Offset(here) = self.at { here } else { 0 };
        self.arrives(at, cursor.max(here));
    }

    fn arrives(&mut self, at: Duration, cursor: u64) {
        self.at = At::Offset(cursor);
        self.since = at;
        self.said = false;
        self.tags.passed();
    }

    fn misses(&mut self, at: Duration, offset: u64, since: Duration, cursor: u64) {
        let Some(message) = self.facts.stored[self.client.business].get(&offset).and_then(|stored| stored.message)
        else {
            return;
        };
        if self.is_deaf() || self.facts.right(message, self.client, &self.tags, since, at) != Right::Must {
            return;
        }
        let what = format!("cursor {cursor} came, and {} at {offset} did not", self.facts.name(message));
        let violation = self.violation(Kind::SilentGap, at, Some(message), what);
        self.missing.insert(offset, violation);
    }

    /// A plain client can't be told of a gap, so one that the retention passed goes on from now and hears nothing.
    fn is_deaf(&self) -> bool {
        self.client.plain && self.facts.record.businesses[self.client.business].short_retention
    }

    /// Nothing more comes.
    fn ends(&mut self) {
        if self.is_deaf() {
            return;
        }
        let (here, offered) = match self.at {
            At::Offset(here) | At::Untold(Some(here)) => (here, Duration::ZERO),
            // Nothing came after the gap: then nothing was to come.
            At::Anywhere => (0, self.since),
            At::Untold(None) if self.client.plain => return,
            At::Untold(None) => {
                self.violation(Kind::Broken, self.since, None, "it was never told where it is".to_owned());
                return;
            }
        };
        let now = self.facts.record.entries.last().map_or(self.since, |entry| entry.at);
        let behind: Vec<(u64, usize)> = self.facts.stored[self.client.business]
            .range((Excluded(here), Included(u64::MAX)))
            .filter_map(|(&offset, stored)| Some((offset, stored.message?)))
            .filter(|(_, message)| self.facts.fates[*message].begun() >= offered)
            .collect();
        for (offset, message) in behind {
            if self.facts.right(message, self.client, &self.tags, self.since, now) == Right::Must {
                let what = format!("{} at {offset} never came; it is at {here}", self.facts.name(message));
                self.violation(Kind::Lost, now, Some(message), what);
            }
        }
    }
}
