//! Who must, may and must not get a push.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::facts::Facts;
use crate::record::{Client, MessageNo, Tags, To};

/// Around an expiry the clocks of the edge and of the auditor, and the way between them, decide.
const EXPIRY_SLACK_MS: u64 = 2000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Must,
    May,
    MustNot,
}

/// Tags of one connection over time.
#[derive(Clone, Debug, Default)]
pub(super) struct TagsOverTime {
    now: Tags,
    /// When `refreshed` brought a tag. What was offered before that may have been passed over already.
    gained: BTreeMap<String, Duration>,
    asked: Option<Tags>,
    /// What held at any moment since [`TagsOverTime::passed`].
    since: BTreeSet<Tags>,
}

impl TagsOverTime {
    pub(super) fn new(tags: Tags) -> Self {
        Self { since: BTreeSet::from([tags.clone()]), now: tags, ..Self::default() }
    }

    pub(super) fn refreshing(&mut self, tags: Tags) {
        self.since.insert(tags.clone());
        self.asked = Some(tags);
    }

    pub(super) fn refreshed(&mut self, at: Duration, done: bool) {
        if let Some(asked) = self.asked.take()
            && done
        {
            for tag in asked.difference(&self.now) {
                self.gained.insert(tag.clone(), at);
            }
            self.now = asked;
        }
    }

    /// A frame with a cursor came: what was before it is decided.
    pub(super) fn passed(&mut self) {
        self.since = BTreeSet::from([self.now.clone()]);
        self.since.extend(self.asked.clone());
    }

    /// For a push that was offered at this time.
    fn always(&self, tag: &str, offered: Duration) -> bool {
        self.since.iter().all(|tags| tags.contains(tag)) && self.gained.get(tag).is_none_or(|at| *at < offered)
    }

    /// At this moment.
    fn perhaps(&self, tag: &str) -> bool {
        self.now.contains(tag) || self.asked.as_ref().is_some_and(|asked| asked.contains(tag))
    }
}

impl Facts<'_> {
    /// Whether a client had to get a push between these times. For one that came, `to` is that moment.
    pub(super) fn right(
        &self,
        message: MessageNo,
        client: &Client,
        tags: &TagsOverTime,
        from: Duration,
        to: Duration,
    ) -> Right {
        let push = &self.record.messages[message];
        if !push.is_for(client.business) {
            return Right::MustNot;
        }
        let offered = self.fates[message].begun();
        // It is decided at the hand-over, which may be long before a slow client reads it.
        let decided = from.min(offered);
        let mut by_declaration = Right::Must;
        for said in [
            self.route(client.business, &push.kind, &client.client_type, decided, to),
            self.accepted(client.business, push.business, decided, to),
        ] {
            match said {
                said if said == BTreeSet::from([true]) => {}
                said if said == BTreeSet::from([false]) => return Right::MustNot,
                _ => by_declaration = Right::May,
            }
        }
        let by_audience = match &push.to {
            To::Identity(id) if *id == client.unique_id => Right::Must,
            To::Everyone => Right::Must,
            To::Tag(tag) if tags.always(tag, offered) => Right::Must,
            To::Tag(tag) if tags.perhaps(tag) => Right::May,
            // Lost meanwhile: nothing of it may come any more, and nothing of it is missing.
            To::Identity(_) | To::Tag(_) | To::Queues(_) => return Right::MustNot,
        };
        let now_ms = self.record.began_ms + to.as_millis() as u64;
        let expires = push.expires_at.is_some_and(|at| at < now_ms + EXPIRY_SLACK_MS);
        if by_declaration == Right::May || by_audience == Right::May || expires { Right::May } else { Right::Must }
    }

    /// Whether a push had certainly expired when something began.
    pub(super) fn had_expired(&self, message: MessageNo, when: Duration) -> bool {
        let when_ms = self.record.began_ms + when.as_millis() as u64;
        self.record.messages[message].expires_at.is_some_and(|at| at + EXPIRY_SLACK_MS < when_ms)
    }
}
