//! What senders are told: each message has one answer, and it is true for every business that it names.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    Facts, Oracle,
    facts::OfBusiness,
    judge::{PROMPT, SETTLED},
};

/// Everything works again after a calm this long.
pub(crate) const RECOVERY: Duration = Duration::from_secs(5);

/// Who sent what is answered.
pub(crate) struct Sender<'a> {
    pub(crate) name: &'a str,
    pub(crate) business: &'a str,
    /// Of the client, or the number of a call.
    pub(crate) connection: u64,
    /// Since when nothing is wrong any more.
    pub(crate) calm: Option<Instant>,
    /// When a client was greeted: nothing is read from it before that. `None`: of a call.
    pub(crate) greeted: Option<Instant>,
}

/// A message that a client or a service sends.
pub(crate) struct Sends<'a> {
    pub(crate) business: &'a str,
    pub(crate) edge: &'a str,
    /// Its connection, or the number of its call.
    pub(crate) connection: u64,
    pub(crate) number: u64,
    pub(crate) kind: &'a str,
    /// The businesses that it names.
    pub(crate) to: &'a [String],
    /// It was decided by what was declared at that edge since then.
    pub(crate) since: Instant,
}

/// A message that was sent.
pub(super) struct Sent {
    pub(super) connection: u64,
    pub(super) number: u64,
    pub(super) at: Instant,
    pub(super) outcome: Option<Answer>,
    business: String,
    edge: String,
    kind: String,
    pub(super) to: Vec<String>,
    since: Instant,
    /// Of these, those that do not take it, as its sender was told.
    pub(super) refused: Vec<String>,
}

/// Whether a business accepted something, as an edge knew it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    Always,
    Never,
    /// It changed.
    Perhaps,
}

/// What a sender was told about a message of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    /// It never appears.
    Refused,
    Unknown,
}

impl Oracle {
    pub(crate) fn sends(&self, id: &str, sends: &Sends<'_>) {
        tracing::info!(id, edge = sends.edge, to = ?sends.to, "sends");
        self.lock().sent.insert(id.to_owned(), Sent::of(sends));
    }

    /// A message has its answer. `told`: businesses that it names and that do not take it, as its sender was told.
    /// `excused`: a refusal is right whatever happens.
    pub(crate) fn answered(&self, sender: &Sender<'_>, id: &str, answer: Answer, told: &[String], excused: bool) {
        let problems = self.lock().problems_of(sender, id, answer, told, excused);
        for problem in problems {
            self.violation(format!("{}: {problem}", sender.name));
        }
    }
}

impl Facts {
    fn problems_of(
        &mut self,
        sender: &Sender<'_>,
        id: &str,
        answer: Answer,
        told: &[String],
        excused: bool,
    ) -> Vec<String> {
        match answer {
            Answer::Ok => self.acks += 1,
            _ => self.nacks += 1,
        }
        let spared = self.spared_since(sender.business);
        let Some(sent) = self.sent.get_mut(id) else {
            return vec![format!("an answer to {id}, which nobody sent")];
        };
        let mut problems = Vec::new();
        let (before, same) = (sent.outcome.replace(answer), sent.connection == sender.connection);
        if before.is_some() || !same {
            problems.push(format!("a second answer to {id}, {answer:?} after {before:?}"));
        }
        sent.refused.extend_from_slice(told);
        let recovered = sender.calm.is_some_and(|calm| sent.at >= calm + RECOVERY);
        let spared = spared.is_some_and(|since| sent.at >= since + Duration::from_millis(SETTLED as u64));
        let own = [sender.business.to_owned()];
        let mut accepting = Vec::new();
        for to in if sent.to.is_empty() { &own[..] } else { &sent.to } {
            let accepted = sent.accepted(&self.businesses, to);
            accepting.push(accepted == Accepted::Always);
            let (refused, of) = (told.contains(to) || answer == Answer::Refused, self.businesses.get(to));
            let appeared = of.is_some_and(|of| of.stored_at.contains_key(id));
            let copied = of.is_none_or(|of| !of.not_copied.contains(id) && !of.later.contains(id));
            if refused && appeared {
                problems.push(format!("{id} is refused and stored in {to}"));
            } else if told.contains(to) && accepted == Accepted::Always && !excused {
                problems.push(format!("{id} is refused for {to}, which accepts it"));
            } else if answer == Answer::Ok && !refused && accepted == Accepted::Never {
                problems.push(format!("{id} is acknowledged for {to}, which does not accept it"));
            } else if answer == Answer::Ok && !refused && copied && !appeared {
                problems.push(format!("{id} is acknowledged and not stored in {to}"));
            }
        }
        // All or nothing for a client; by a call each that accepts it gets it.
        let by_call = sender.greeted.is_none();
        let none = if by_call { accepting.iter().all(|yes| !yes) } else { !accepting.iter().all(|yes| *yes) };
        let right = excused || (answer == Answer::Refused && none);
        if recovered && answer != Answer::Ok && !right {
            problems.push(format!("{id} is {answer:?} though nothing is wrong"));
        }
        let late = sender.greeted.map_or(sent.at, |greeted| greeted.max(sent.at)).elapsed().as_millis() as i64;
        if spared && (late > PROMPT || (answer != Answer::Ok && !right)) {
            problems.push(format!("{id} is {answer:?} after {late} ms, and only another business is in trouble"));
        }
        problems
    }
}

impl Sent {
    pub(super) fn of(sends: &Sends<'_>) -> Self {
        let Sends { business, edge, connection, number, kind, to, since } = *sends;
        Self {
            connection,
            number,
            at: Instant::now(),
            outcome: None,
            business: business.to_owned(),
            edge: edge.to_owned(),
            kind: kind.to_owned(),
            to: to.to_vec(),
            since,
            refused: Vec::new(),
        }
    }

    /// Whether one of the businesses that it names takes such messages, as its edge knew it meanwhile.
    pub(super) fn accepted(&self, businesses: &BTreeMap<String, OfBusiness>, to: &str) -> Accepted {
        if to == self.business {
            return Accepted::Always;
        }
        let declared = |business: &str| {
            businesses.get(business).into_iter().flat_map(|of: &OfBusiness| of.declared(&self.edge, self.since))
        };
        let (mut own, mut theirs) = (declared(&self.business).peekable(), declared(to).peekable());
        if own.peek().is_none() || theirs.peek().is_none() {
            return Accepted::Never;
        }
        let (own, theirs): (Vec<bool>, Vec<bool>) =
            (own.map(|own| own.accepted).collect(), theirs.map(|other| other.takes(&self.kind)).collect());
        if own.iter().chain(&theirs).all(|yes| *yes) {
            Accepted::Always
        } else if own.iter().all(|yes| !yes) || theirs.iter().all(|yes| !yes) {
            Accepted::Never
        } else {
            Accepted::Perhaps
        }
    }
}
