//! Messages to the clients of several businesses: the exchange that copies them, and what the broker notes on a copy.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use rand::random_bool;
use tokio::sync::oneshot;
use wirepost_core::{contract::headers, names};

use super::Cluster;

/// A message, and where it was published.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) body: Bytes,
    /// `None`: to the business's own clients.
    pub(crate) shared: Option<Arc<Shared>>,
}

/// What the broker knows of a message to several businesses.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Whose exchange it was published to.
    pub(crate) from: String,
    /// Whom its headers name.
    pub(crate) to: Vec<String>,
}

/// What became of the copies of a message.
pub(super) struct Copies {
    /// Each stream that gets one: once it has it.
    pub(super) committed: Vec<oneshot::Receiver<bool>>,
    /// No queue has refused its copy.
    pub(super) taken: bool,
    /// Something has it, or will have it.
    pub(super) routed: bool,
}

/// Which business's messages are copied to which.
#[derive(Default)]
pub(super) struct Links {
    /// By whose messages, then by whom they are copied to: since which change.
    of: BTreeMap<String, BTreeMap<String, u64>>,
    changes: u64,
}

/// Copies for businesses whose stream is not there, or not bound: they come into it once it is.
pub(super) type Unrouted = BTreeMap<String, Vec<Message>>;

impl Message {
    pub(crate) fn own(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), shared: None }
    }

    /// As a stream stores it: AMQP 1.0, with the broker's note and the publisher's headers where they count.
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.body.len() + 8);
        if let Some(shared) = &self.shared {
            let exchange = names::share_exchange(&shared.from);
            put_map(&mut out, 0x72, 0xa3, &[("x-exchange".to_owned(), exchange)]);
            put_map(&mut out, 0x74, 0xa1, &shared.headers());
        }
        out.put_slice(&[0, 0x53, 0x75, 0xb0]);
        out.put_u32(self.body.len() as u32);
        out.put_slice(&self.body);
        out.freeze()
    }

    /// The exchange and the properties with which AMQP 0-9-1 delivers it.
    pub(super) fn delivered(&self) -> (String, Vec<u8>) {
        let Some(shared) = &self.shared else { return (String::new(), vec![0, 0]) };
        let mut table = BytesMut::new();
        for (name, value) in shared.headers() {
            table.put_u8(name.len() as u8);
            table.put_slice(name.as_bytes());
            table.put_u8(b'S');
            table.put_u32(value.len() as u32);
            table.put_slice(value.as_bytes());
        }
        // Headers alone.
        let properties = [&[0x20, 0][..], &(table.len() as u32).to_be_bytes(), &table].concat();
        (names::share_exchange(&shared.from), properties)
    }
}

impl Shared {
    fn headers(&self) -> Vec<(String, String)> {
        self.to.iter().map(|to| (headers::to_business(to), headers::TO_BUSINESS_VALUE.to_owned())).collect()
    }
}

/// A section with a map of texts, whose names are of this kind.
fn put_map(out: &mut BytesMut, section: u8, name_kind: u8, entries: &[(String, String)]) {
    let mut map = BytesMut::new();
    for (name, value) in entries {
        for (kind, text) in [(name_kind, name), (0xa1, value)] {
            map.put_slice(&[kind, text.len() as u8]);
            map.put_slice(text.as_bytes());
        }
    }
    out.put_slice(&[0, 0x53, section, 0xd1]);
    out.put_u32(map.len() as u32 + 4);
    out.put_u32(entries.len() as u32 * 2);
    out.put_slice(&map);
}

impl Cluster {
    /// Messages of `from` are copied to `to`. Returns what ends that, unless it is begun again meanwhile.
    pub(crate) fn link(&self, from: &str, to: &str) -> impl FnOnce(&Self) + Send + use<> {
        let mut state = self.lock();
        state.links.changes += 1;
        let change = state.links.changes;
        state.links.of.entry(from.to_owned()).or_default().insert(to.to_owned(), change);
        drop(state);
        let (from, to) = (from.to_owned(), to.to_owned());
        move |cluster| {
            let mut state = cluster.lock();
            if let Some(links) = state.links.of.get_mut(&from) {
                links.retain(|other, since| *other != to || *since != change);
            }
        }
    }

    /// Copies a message that was published to the exchange of `from`. `None`: there is no such exchange.
    pub(super) fn share(&self, from: &str, to: Vec<String>, body: &Bytes) -> Option<Copies> {
        let mut targets: BTreeSet<String> = {
            let state = self.lock();
            let links = state.links.of.get(from).filter(|links| !links.is_empty())?;
            to.iter().filter(|to| *to == from || links.contains_key(*to)).cloned().collect()
        };
        for other in to.iter().filter(|to| !targets.contains(*to)) {
            self.oracle.not_copied(other, body);
        }
        if targets.is_empty() {
            targets.insert(from.to_owned());
        }
        let message = Message { body: body.clone(), shared: Some(Arc::new(Shared { from: from.to_owned(), to })) };
        let mut copies = Copies { committed: Vec::new(), taken: true, routed: false };
        for target in targets {
            self.copy(&target, &message, &mut copies);
        }
        Some(copies)
    }

    fn copy(&self, target: &str, message: &Message, copies: &mut Copies) {
        let mood = self.mood().of(target);
        if mood.full && random_bool(0.5) {
            (copies.taken, copies.routed) = (false, true);
        } else if self.is_transient(target) && mood.unbound {
            self.oracle.not_copied(target, &message.body);
        } else if self.is_transient(target) {
            match self.push(target, message) {
                Some(true) => copies.routed = true,
                // Nobody reads the business.
                Some(false) => self.oracle.not_copied(target, &message.body),
                None => (copies.taken, copies.routed) = (false, true),
            }
        } else {
            copies.routed = true;
            let committed = if mood.unbound { None } else { self.append(&names::stream(target), message) };
            if let Some(committed) = committed {
                copies.committed.push(committed);
            } else {
                self.oracle.copied_later(target, &message.body);
                self.lock().unrouted.entry(target.to_owned()).or_default().push(message.clone());
            }
        }
    }

    /// What was meant for a stream that could not be reached comes into it, before anything newer.
    pub(super) fn move_back(&self) {
        let unrouted = std::mem::take(&mut self.lock().unrouted);
        for (business, messages) in unrouted {
            let stream = names::stream(&business);
            if self.mood().of(&business).unbound || !self.lock().streams.contains_key(&stream) {
                self.lock().unrouted.insert(business, messages);
                continue;
            }
            for message in messages {
                drop(self.append(&stream, &message));
            }
        }
    }
}
