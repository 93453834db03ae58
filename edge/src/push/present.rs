//! Who is here: the connections of one business on this edge, looked at a few at a time, so that the hub's lock is held
//! shortly.

use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use super::{hub::Hub, mailbox::Mailbox};

/// Identities or connections that are looked at under one lock.
const STEP: usize = 512;

/// Which connections are meant: those that fit all three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// Of one of these identities; empty: of any.
    pub unique_ids: Vec<String>,
    /// With one of these tags; empty: with any or none.
    pub tags: Vec<String>,
    /// Of one of these types; empty: of any.
    pub client_types: Vec<String>,
}

impl Filter {
    /// Whether it takes every connection.
    pub fn is_everyone(&self) -> bool {
        self.unique_ids.is_empty() && self.tags.is_empty() && self.client_types.is_empty()
    }

    fn takes_type(&self, mailbox: &Mailbox) -> bool {
        self.client_types.is_empty() || self.client_types.iter().any(|one| **one == *mailbox.client_type)
    }
}

/// A connection that fits.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// The connection.
    pub mailbox: &'a Mailbox,
    /// Its tags.
    pub tags: &'a [String],
    /// Which of [`Filter::unique_ids`] it belongs to; 0 where none is named.
    pub identity: usize,
}

impl Hub {
    /// Calls `visit` once for each connection that fits. One that comes or goes meanwhile is seen or not.
    pub async fn visit_present(&self, filter: &Filter, mut visit: impl FnMut(Present<'_>) + Send) {
        if !filter.unique_ids.is_empty() {
            for (step, ids) in filter.unique_ids.chunks(STEP).enumerate() {
                self.visit_identities(filter, step * STEP, ids, &mut visit);
                yield_now().await;
            }
            return;
        }
        // Without a tag: everyone, in one walk.
        let walks = if filter.tags.is_empty() { 1 } else { filter.tags.len() };
        for walk in 0..walks {
            let (tag, before) = (filter.tags.get(walk).map(String::as_str), &filter.tags[..walk]);
            let mut after = None;
            loop {
                after = self.visit_step(filter, tag, before, after, &mut visit);
                if after.is_none() {
                    break;
                }
                yield_now().await;
            }
        }
    }

    fn visit_identities(&self, filter: &Filter, first: usize, ids: &[String], visit: &mut impl FnMut(Present<'_>)) {
        let state = self.lock();
        for (at, id) in ids.iter().enumerate() {
            for mailbox in state.registry.of_identity(id) {
                let tags = state.registry.tags_of(mailbox);
                let tagged = filter.tags.is_empty() || tags.iter().any(|tag| filter.tags.contains(tag));
                if tagged && filter.takes_type(mailbox) {
                    visit(Present { mailbox, tags, identity: first + at });
                }
            }
        }
    }

    /// The number of the last connection that was looked at; `None`: there are no more. `before`: tags whose connections
    /// were visited already.
    fn visit_step(
        &self,
        filter: &Filter,
        tag: Option<&str>,
        before: &[String],
        after: Option<u64>,
        visit: &mut impl FnMut(Present<'_>),
    ) -> Option<u64> {
        let state = self.lock();
        let (mut seen, mut last) = (0, None);
        for mailbox in state.registry.after(after, tag).take(STEP) {
            seen += 1;
            last = Some(mailbox.number);
            let tags = state.registry.tags_of(mailbox);
            if filter.takes_type(mailbox) && !tags.iter().any(|tag| before.contains(tag)) {
                visit(Present { mailbox, tags, identity: 0 });
            }
        }
        last.filter(|_| seen == STEP)
    }

    /// The oldest connections that are not leaving yet are asked to leave, at most so many. How many there were.
    pub fn let_go(&self, count: usize) -> usize {
        let leaving = &self.context.metrics.leaving;
        // Under the lock: what is still registered has not looked yet whether it was asked.
        let state = self.lock();
        let staying = state.registry.iter().filter(|mailbox| !mailbox.outbound.is_leaving());
        let asked = staying.take(count).filter(|mailbox| mailbox.outbound.let_go()).count();
        leaving.inc_by(asked as i64);
        asked
    }
}
