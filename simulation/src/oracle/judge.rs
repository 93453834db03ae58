//! Judges every frame that a client gets.

use std::{hash::Hash, time::Duration};

use serde_json::Value;
use tokio::time::Instant;
use wirepost_core::Cursor;
use wirepost_runtime::clock;

use super::{
    Oracle,
    answers::{Answer, Sender},
    facts::Stored,
    view::View,
};

/// How long the client of a business that nothing happens to may wait, in ms: for a push, or the answer to what it sent,
/// once it and the edges have been there for some time; and for what it missed, from its connection on.
pub(super) const PROMPT: i64 = 500;
pub(super) const SETTLED: i64 = 5000;
const CAUGHT_UP: i64 = 1800;

impl Oracle {
    /// A client got this frame, which is the text.
    pub(crate) fn sees(&self, view: &mut View, text: &str, frame: &Value) {
        {
            let mut facts = self.lock();
            facts.frames += 1;
            (view.name.as_str(), clock::now_ms(), text).hash(&mut facts.trace);
        }
        let cursor = frame["cursor"].as_str();
        let offset = cursor.and_then(|cursor| cursor.parse::<Cursor>().ok()).map(|cursor| cursor.offset);
        let [what, id, reason] = ["op", "id", "reason"].map(|field| frame[field].as_str().unwrap_or_default());
        let (client, connection, resumed) = (&view.name, view.connection, frame["resumed"].as_bool());
        tracing::info!(client, connection, what, id, offset, resumed, reason, "got");
        match frame["op"].as_str() {
            Some("welcome") => self.welcomes(view, frame["resumed"].as_bool(), cursor),
            Some("position") => self.advances(view, cursor, None),
            Some("gap") => self.gap(view, frame["reason"].as_str().unwrap_or_default()),
            Some("refreshed") => {
                if let Some(tags) = view.asks.take() {
                    view.tags = tags;
                }
            }
            Some(op @ ("ack" | "nack")) => {
                let answer = match (op, frame["mayHaveArrived"].as_bool()) {
                    ("ack", _) => Answer::Ok,
                    (_, Some(true)) => Answer::Unknown,
                    _ => Answer::Refused,
                };
                let limited = frame["code"] == "rate_limited";
                let View { name, business, connection, calm, greeted, .. } = &*view;
                let sender = Sender { name, business, connection: *connection, calm: *calm, greeted: *greeted };
                self.answered(&sender, frame["id"].as_str().unwrap_or_default(), answer, &[], limited);
            }
            Some(_) => {}
            None if cursor.is_none() && self.is_transient(&view.business) => self.arrives(view, frame),
            None => self.advances(view, cursor, Some(frame)),
        }
    }

    fn welcomes(&self, view: &mut View, resumed: Option<bool>, cursor: Option<&str>) {
        view.greeted = Some(Instant::now());
        let since = self.lock().spared_since(&view.business);
        let settled = since.is_some_and(|since| view.connected >= since + Duration::from_millis(SETTLED as u64));
        if settled && view.connected.elapsed() > Duration::from_millis(CAUGHT_UP as u64) {
            let late = view.connected.elapsed();
            self.violation(format!("{}: greeted after {late:?}, and only another business is in trouble", view.name));
        }
        match resumed {
            Some(true) if cursor != view.cursor.as_deref() => {
                self.violation(format!("{}: resumed from {cursor:?} instead of its cursor", view.name));
            }
            Some(false) if view.asked => {
                (view.gap, view.owed) = (true, true);
                self.advances(view, cursor, None);
            }
            _ if cursor.is_some() => self.advances(view, cursor, None),
            _ => {}
        }
    }

    fn gap(&self, view: &mut View, reason: &str) {
        let mut facts = self.lock();
        facts.gaps += 1;
        let spared = facts.spared_since(&view.business).is_some();
        let of = facts.businesses.entry(view.business.clone()).or_default();
        let problem = match (reason, view.at) {
            ("incarnation", Some((life, _))) if of.life == Some(life) && !view.owed => {
                Some("a gap for a new incarnation, and it is the same stream")
            }
            ("retention", Some((life, at)))
                if of.life == Some(life) && of.lives[&life].deleted_below <= at && !view.owed =>
            {
                Some("a gap for retention, and nothing after its cursor was deleted")
            }
            ("unread", _) if view.asked => Some("it had a cursor"),
            ("retention" | "incarnation", _) if spared => Some("a gap, and only another business is in trouble"),
            _ => None,
        };
        drop(facts);
        if let Some(problem) = problem {
            self.violation(format!("{}: {problem} (it is at {:?})", view.name, view.at));
        }
        if std::mem::take(&mut view.owed) {
            return;
        }
        view.gap = true;
    }

    /// The client has a new cursor, with a push or alone.
    fn advances(&self, view: &mut View, cursor: Option<&str>, push: Option<&Value>) {
        let problems = self.problems(view, cursor, push);
        for problem in problems {
            self.violation(format!("{}: {problem}", view.name));
        }
    }

    fn problems(&self, view: &mut View, cursor: Option<&str>, push: Option<&Value>) -> Vec<String> {
        let mut facts = self.lock();
        facts.pushes += u64::from(push.is_some());
        let spared = facts.spared_since(&view.business).is_some();
        let of = facts.businesses.entry(view.business.clone()).or_default();
        let mut problems = Vec::new();
        let Some(text) = cursor else { return vec![format!("no cursor in {push:?}")] };
        let Ok(parsed) = text.parse::<Cursor>() else { return vec![format!("{text} is no cursor")] };
        let offset = parsed.offset;
        let Some(life) = of.positions.get(&(offset, parsed.fingerprint)).copied() else {
            return vec![format!("a cursor at {offset} that no message has")];
        };
        if push.is_some() && view.owed {
            problems.push("a push, and no gap after a welcome that did not resume".to_owned());
        }
        if let Some(frame) = push {
            let message = &of.lives[&life].messages[&offset];
            if frame["id"].as_str() != Some(&message.id) {
                problems.push(format!("{} with the cursor of {}", frame["id"], message.id));
            }
            problems.extend(not_whose(view, message, frame));
            problems.extend(too_late(view, message).filter(|_| spared));
            if !of.may_get(view, message) {
                problems.push(format!("{} at {offset} is not for it: tags {:?}", message.id, view.tags));
            }
        }
        if let Some((before, at)) = view.at {
            // In a stream that is gone an edge may stand further back, until it notices: after a gap that is no harm.
            let gone = view.gap && of.life != Some(life);
            if before == life && !gone && (offset < at || (offset == at && push.is_some())) {
                problems.push(format!("back from {at} to {offset}"));
            } else if before != life && !view.gap {
                problems.push(format!("from {at} of life {before} to {offset} of life {life} without a gap"));
            } else if before == life && !view.gap {
                let now = clock::now_ms();
                let skipped = of.lives[&life].messages.range(at + 1..offset.max(at + 1));
                problems.extend(
                    skipped
                        .filter(|(_, message)| of.must_get(view, message, now))
                        .map(|(missed, message)| format!("{offset} passes {} at {missed}, after {at}", message.id)),
                );
            }
        }
        view.cursor = Some(text.to_owned());
        view.is_now_at(life, offset);
        problems
    }

    pub(crate) fn is_transient(&self, business: &str) -> bool {
        self.lock().businesses.get(business).is_some_and(|of| of.transient)
    }

    /// A client got a push of a `Transient` business. Some may come again.
    fn arrives(&self, view: &mut View, frame: &Value) {
        let mut facts = self.lock();
        facts.pushes += 1;
        let spared = facts.spared_since(&view.business).is_some();
        let of = facts.businesses.entry(view.business.clone()).or_default();
        let id = frame["id"].as_str().unwrap_or_default();
        let found = of.lives[&0].messages.iter().rev().find(|(_, message)| message.id == id);
        let mut problems = Vec::new();
        match found {
            None => problems.push(format!("{id} was never pushed")),
            Some((number, message)) => {
                if !of.may_get(view, message) {
                    problems.push(format!("{id} is not for it: tags {:?}", view.tags));
                }
                problems.extend(not_whose(view, message, frame));
                problems.extend(too_late(view, message).filter(|_| spared));
                let number = *number;
                if let Some((_, at)) = view.at.filter(|_| !view.gap) {
                    problems
                        .extend(of.missed(view, at, number).map(|missed| format!("{id} came, and {missed} did not")));
                }
                if view.at.is_none_or(|(_, at)| at < number) {
                    view.is_now_at(0, number);
                }
            }
        }
        drop(facts);
        for problem in problems {
            self.violation(format!("{}: {problem}", view.name));
        }
    }
}

/// That a push does not say whose it is.
fn not_whose(view: &View, message: &Stored, frame: &Value) -> Option<String> {
    let whose = message.from.as_ref().unwrap_or(&view.business);
    (frame["businessType"] != **whose).then(|| format!("{} of {whose} says {}", message.id, frame["businessType"]))
}

/// That a push took too long, for a business that nothing happens to.
fn too_late(view: &View, message: &Stored) -> Option<String> {
    let settled = message.timestamp > view.connected_ms + SETTLED;
    let late = clock::now_ms() - message.timestamp.max(view.connected_ms);
    (late > if settled { PROMPT } else { CAUGHT_UP })
        .then(|| format!("{} came after {late} ms, and only another business is in trouble", message.id))
}
