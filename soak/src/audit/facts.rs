//! What the auditor's parts need to know of a record, gathered in one pass.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::record::{Class, ClientNo, ConnectionNo, MessageNo, Outcome, Record, To, What};

/// Around a hole in what the witness read, messages may have been stored unseen.
const AROUND_A_HOLE: Duration = Duration::from_secs(30);
/// What the broker did may show so much later: a redelivery, a copy of a connection that was frozen.
const AFTERMATH: Duration = Duration::from_secs(90);

/// What became of a message.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate {
    /// Times at which attempts began.
    pub(super) offered: Vec<Duration>,
    /// The first confirm.
    pub(super) confirmed: Option<Duration>,
    /// Attempts that did not arrive.
    pub(super) not_arrived: usize,
}

impl Fate {
    /// Copies that there may be.
    pub(super) fn possible(&self) -> usize {
        self.offered.len().saturating_sub(self.not_arrived)
    }

    /// When it was offered first.
    pub(super) fn begun(&self) -> Duration {
        self.offered.first().copied().unwrap_or(Duration::MAX)
    }
}

/// See [`crate::record::What::Declined`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Declined {
    pub(super) at: Duration,
    pub(super) refused: bool,
    pub(super) alone: bool,
}

/// A message in a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    /// `None`: nobody here sent it, such as the marker.
    pub(super) message: Option<MessageNo>,
    /// When the witness read it.
    pub(super) at: Duration,
}

/// What a business's declaration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule<'a> {
    Route { kind: &'a str, client_type: &'a str },
    Accept { from: usize },
}

/// See [`crate::record::What::RouteChanging`] and [`crate::record::What::AcceptChanging`].
#[derive(Clone, Debug)]
struct Change<'a> {
    at: Duration,
    business: usize,
    rule: Rule<'a>,
    allowed: bool,
    settled: bool,
}

pub(super) struct Facts<'a> {
    pub(super) record: &'a Record,
    pub(super) fates: Vec<Fate>,
    /// Streams by business and offset.
    pub(super) stored: Vec<BTreeMap<u64, Stored>>,
    /// Entries of each connection, by their index.
    pub(super) by_connection: Vec<Vec<usize>>,
    /// The last connection of each client that was upgraded.
    pub(super) last: BTreeMap<ClientNo, ConnectionNo>,
    changes: Vec<Change<'a>>,
    /// By message and business, the attempts that brought that one nothing.
    declined: BTreeMap<(MessageNo, usize), Vec<Declined>>,
    unbound: Vec<(usize, Duration, Duration)>,
    holes: Vec<(usize, Duration, Duration)>,
    broker: Vec<(Duration, Duration)>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        let businesses = record.businesses.len();
        let mut facts = Self {
            record,
            fates: vec![Fate::default(); record.messages.len()],
            stored: vec![BTreeMap::new(); businesses],
            by_connection: vec![Vec::new(); record.connections.len()],
            last: BTreeMap::new(),
            changes: Vec::new(),
            declined: BTreeMap::new(),
            unbound: Vec::new(),
            holes: Vec::new(),
            broker: Vec::new(),
        };
        for (index, entry) in record.entries.iter().enumerate() {
            facts.take(index, entry.at, &entry.what);
        }
        facts
    }

    fn take(&mut self, index: usize, at: Duration, what: &'a What) {
        match what {
            What::Offered { message } => self.fates[*message].offered.push(at),
            What::Answered { message, outcome } => {
                let fate = &mut self.fates[*message];
                match outcome {
                    Outcome::Confirmed => fate.confirmed = fate.confirmed.or(Some(at)),
                    Outcome::NotArrived => fate.not_arrived += 1,
                    Outcome::Unknown => {}
                }
            }
            What::Stored { business, offset, message } => {
                self.stored[*business].insert(*offset, Stored { message: *message, at });
            }
            What::Unwitnessed { business, .. } => {
                let last = self.stored[*business].values().next_back().map_or(Duration::ZERO, |stored| stored.at);
                self.holes.push((*business, last.saturating_sub(AROUND_A_HOLE), at + AROUND_A_HOLE));
            }
            What::Asked { connection, .. }
            | What::Welcome { connection, .. }
            | What::Got { connection, .. }
            | What::Position { connection, .. }
            | What::Gap { connection, .. }
            | What::Refreshing { connection, .. }
            | What::Refreshed { connection, .. }
            | What::Ended { connection, .. } => self.by_connection[*connection].push(index),
            What::Opened { connection } => {
                self.last.insert(self.record.connections[*connection], *connection);
            }
            What::RouteChanging { business, kind, client_type, allowed }
            | What::RouteSettled { business, kind, client_type, allowed } => self.changes.push(Change {
                at,
                business: *business,
                rule: Rule::Route { kind, client_type },
                allowed: *allowed,
                settled: matches!(what, What::RouteSettled { .. }),
            }),
            What::AcceptChanging { business, from, accepts } | What::AcceptSettled { business, from, accepts } => {
                self.changes.push(Change {
                    at,
                    business: *business,
                    rule: Rule::Accept { from: *from },
                    allowed: *accepts,
                    settled: matches!(what, What::AcceptSettled { .. }),
                });
            }
            What::Declined { message, business, refused, alone } => {
                let declined = Declined { at, refused: *refused, alone: *alone };
                self.declined.entry((*message, *business)).or_default().push(declined);
            }
            What::Unbound { business } => self.unbound.push((*business, at, Duration::MAX)),
            What::Rebound { business } => {
                if let Some(window) = self.unbound.iter_mut().rev().find(|window| window.0 == *business) {
                    window.2 = at + AFTERMATH;
                }
            }
            What::Fault { class: Class::Broker | Class::Team, .. } => self.broker.push((at, Duration::MAX)),
            What::Healed { class: Class::Broker | Class::Team, .. } => {
                // Faults of one class may overlap; what is over ends the oldest that is open.
                if let Some(window) = self.broker.iter_mut().find(|window| window.1 == Duration::MAX) {
                    window.1 = at + AFTERMATH;
                }
            }
            What::Consumed { .. } | What::Fault { .. } | What::Healed { .. } | What::Broken { .. } => {}
        }
    }

    /// Whether a binding of the business was missing at any time between these two.
    pub(super) fn was_unbound(&self, business: usize, from: Duration, to: Duration) -> bool {
        self.unbound.iter().any(|window| window.0 == business && window.1 <= to && from <= window.2)
    }

    /// Whether the witness may have missed what was published between these times.
    pub(super) fn was_unwitnessed(&self, business: usize, from: Duration, to: Duration) -> bool {
        self.holes.iter().any(|hole| hole.0 == business && hole.1 <= to && from <= hole.2)
    }

    /// Whether the broker, or the way to it, was or had just been in trouble.
    pub(super) fn broker_was_in_trouble(&self, at: Duration) -> bool {
        self.broker.iter().any(|window| window.0 <= at && at <= window.1)
    }

    /// What a route said of a client type between two times.
    pub(super) fn route(
        &self,
        business: usize,
        kind: &str,
        client_type: &str,
        from: Duration,
        to: Duration,
    ) -> BTreeSet<bool> {
        let Some(declared) = self.record.businesses[business].to.get(kind) else { return BTreeSet::from([false]) };
        let at_first = declared.iter().any(|declared| declared == client_type);
        self.said(business, Rule::Route { kind, client_type }, at_first, (from, to))
    }

    /// The attempts of a message that brought a business nothing.
    pub(super) fn declined(&self, message: MessageNo, business: usize) -> &[Declined] {
        self.declined.get(&(message, business)).map_or(&[], Vec::as_slice)
    }

    /// Whether the attempt that was confirmed brought a business nothing.
    pub(super) fn got_nothing(&self, message: MessageNo, business: usize) -> bool {
        let fate = &self.fates[message];
        let Some(confirmed) = fate.confirmed else { return false };
        let offered = fate.offered.iter().rev().find(|at| **at <= confirmed).copied().unwrap_or_default();
        self.declined(message, business).iter().any(|declined| (offered..=confirmed).contains(&declined.at))
    }

    /// Whether a business accepted the messages of another one, between two times.
    pub(super) fn accepted(&self, business: usize, of: usize, from: Duration, to: Duration) -> BTreeSet<bool> {
        let at_first = business == of || self.record.businesses[business].accepts.contains(&of);
        self.said(business, Rule::Accept { from: of }, at_first, (from, to))
    }

    fn said(
        &self,
        business: usize,
        rule: Rule<'_>,
        at_first: bool,
        (from, to): (Duration, Duration),
    ) -> BTreeSet<bool> {
        let mut now = BTreeSet::from([at_first]);
        let mut said = now.clone();
        let changes =
            self.changes.iter().filter(|change| change.business == business && change.rule == rule && change.at <= to);
        for change in changes {
            if change.settled {
                now = BTreeSet::from([change.allowed]);
            } else {
                now.insert(change.allowed);
            }
            if change.at <= from {
                said.clone_from(&now);
            } else {
                said.extend(now.iter().copied());
            }
        }
        said
    }

    /// `shop` note 7 of amqp-0, with its id.
    pub(super) fn name(&self, message: MessageNo) -> String {
        let message = &self.record.messages[message];
        let to = match &message.to {
            To::Identity(id) => format!("to {id}"),
            To::Tag(tag) => format!("for tag {tag}"),
            To::Everyone => "for everyone".to_owned(),
            To::Queues(queues) => format!("for queue {}", queues.join(" and ")),
        };
        format!("'{}' ({} {to}, number {} of {})", message.id, message.kind, message.seq, message.sender)
    }
}
