//! One business on this edge: push log and registry under one lock.
//!
//! The reader ([`super::reader`]) writes: it appends entries and delivers them to live connections. Connections read:
//! they join, catch up and leave. Going live happens under the same lock as appending, so a connection gets each entry
//! either from the log or live: never both, never neither.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::{
    sync::watch,
    task::yield_now,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::{
    edge_config::Delivery,
    frames::{CloseCode, ServerFrame},
};

use super::{
    backlog::Backlog,
    context::HubContext,
    entry::{self, Entry},
    gap::Gap,
    lock::{Lock, Locked},
    log::{Log, Lookup},
    mailbox::Mailbox,
    read_queue::ReadQueue,
    reading::Reading,
    registry::Registry,
};
use crate::{
    broker::Position,
    business::{Business, census::Tally, share::Share},
    clock, compression,
    identity::grant::Grant,
    metrics::label,
};

/// See the module.
pub struct Hub {
    /// The business type.
    pub name: Arc<str>,
    /// What all hubs share.
    pub context: Arc<HubContext>,
    /// What the business uses of this edge.
    pub share: Arc<Share>,
    /// The connections that its events have told of.
    pub tally: Arc<Tally>,
    /// Its bytes on their way to sockets.
    pub backlog: Arc<Backlog>,
    /// One read of the stream at a time for clients that catch up; the others then find it in the cache.
    pub(super) reads: ReadQueue,
    business: ArcSwap<Business>,
    state: Lock<State>,
    /// Whether a route waits for receipts.
    follows: watch::Sender<bool>,
    /// Counts attachments and batches, for connections that wait for the log to change.
    moved: watch::Sender<u64>,
    /// Number of connections, for the reader.
    clients: watch::Sender<usize>,
    /// The reader's state.
    reading: Mutex<Reading>,
    /// When a gap was last logged. Not in `state`, which the caller that counts a gap may have locked.
    gap_said: Mutex<Option<Instant>>,
}

pub(super) struct State {
    log: Log,
    /// How often nothing was known any more of what had been read.
    lives: u64,
    pub(super) registry: Registry,
    /// Only for `Transient`: the reader's queue is consumed. While it is not, nobody goes live: the queue may be lost.
    /// What a `Durable` reader has read, and whether it is still there, the log knows.
    consumed: bool,
    /// Why this hub was closed: a connection that still enters is closed immediately.
    closed: Option<CloseCode>,
}

/// The result of one step of a catch-up.
#[derive(Debug)]
pub enum Advance {
    /// It is live: pushes are delivered from now on.
    Live,
    /// Entries for it, and the position after them; more follow.
    More(Vec<Arc<Entry>>, Position),
    /// The reader is not attached: wait.
    Unattached,
    /// The log starts later: read the stream.
    Older,
    /// The log ends earlier: read the stream or wait.
    Newer,
    /// The position belongs to another stream.
    OtherStream,
}

/// Entries that one step of a catch-up scans under the lock: a fraction of a millisecond, also with many tags.
const STEP_ENTRIES: usize = 1024;
/// Bytes that are compressed before other tasks of the thread get their turn: about 1 ms.
const COMPRESS_STEP: usize = 64 << 10;
/// Least time between two log lines about gaps of one business.
const GAP_LOG_INTERVAL: Duration = Duration::from_mins(1);

impl Hub {
    /// A hub without a reader yet.
    pub fn new(business: Arc<Business>, context: Arc<HubContext>) -> Self {
        let log = Log::new(Arc::clone(&context.budget));
        let backlog = context.backlog.of_business();
        backlog.limit(business.config.limits.per_edge.memory_bytes);
        Self {
            share: Arc::new(Share::new(&context.metrics)),
            tally: context.tallies.of(business.name()),
            backlog,
            name: business.name().into(),
            follows: watch::Sender::new(business.follows_receipts()),
            reads: ReadQueue::default(),
            business: ArcSwap::new(business),
            state: Lock::new(State { log, lives: 0, registry: Registry::default(), consumed: false, closed: None }),
            moved: watch::Sender::new(0),
            clients: watch::Sender::new(0),
            reading: Mutex::default(),
            gap_said: Mutex::default(),
            context,
        }
    }

    pub(super) fn lock(&self) -> Locked<'_, State> {
        self.state.lock()
    }

    /// The business as configured now.
    pub fn business(&self) -> Arc<Business> {
        self.business.load_full()
    }

    /// How pushes of this business are delivered; fixed for the lifetime of a hub.
    pub fn delivery(&self) -> Delivery {
        self.business.load().config.delivery
    }

    /// Applies a new configuration with the same delivery. What the former one judged otherwise is forgotten: clients
    /// that need it read the stream again.
    pub fn update(&self, business: Arc<Business>) {
        let mut state = self.lock();
        let before = self.business.load_full();
        if !before.judges_as(&business) {
            state.log.keep_position();
        }
        self.backlog.limit(business.config.limits.per_edge.memory_bytes);
        let judged: Vec<_> =
            if before.lets_in_as(&business) { Vec::new() } else { state.registry.iter().cloned().collect() };
        self.follows.send_replace(business.follows_receipts());
        self.business.store(business);
        drop(state);
        for mailbox in judged {
            self.hold_to_declaration(&mailbox);
        }
        self.moved.send_modify(|n| *n += 1);
    }

    /// Whether what this one judged is valid.
    pub fn judges_as(&self, judge: &Arc<Business>) -> bool {
        let business = self.business.load();
        Arc::ptr_eq(&business, judge) || business.judges_as(judge)
    }

    /// Whether a route waits for receipts now.
    pub fn follows(&self) -> watch::Receiver<bool> {
        self.follows.subscribe()
    }

    /// Changes whenever the reader attaches or the log grows.
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// The number of connections.
    pub fn clients(&self) -> watch::Receiver<usize> {
        self.clients.subscribe()
    }

    // --- connections

    /// Registers a connection. Surplus connections of its identity, oldest first, are closed with 4009; after
    /// [`Self::close_all`] a new one is closed with that code.
    pub fn enter(&self, mailbox: &Arc<Mailbox>, tags: &[String]) {
        let max = self.business().config.limits.connections_per_id as usize;
        let mut state = self.lock();
        let replaced = state.registry.add(mailbox, tags, max);
        self.clients.send_replace(state.registry.len());
        let closed = state.closed;
        drop(state);
        if let Some(code) = closed {
            mailbox.outbound.close(code);
        }
        for old in replaced {
            old.outbound.close(CloseCode::Replaced);
        }
    }

    /// Holds a connection to the declaration as it is now.
    pub fn hold_to_declaration(&self, mailbox: &Mailbox) {
        mailbox.hold_to(&self.business.load());
    }

    /// Removes a connection; no other one is affected.
    pub fn leave(&self, mailbox: &Mailbox) {
        let mut state = self.lock();
        state.registry.remove(mailbox);
        self.clients.send_replace(state.registry.len());
    }

    /// Replaces a connection's tags: pushes to removed ones stop immediately, also those that are queued.
    pub fn set_tags(&self, mailbox: &Arc<Mailbox>, tags: &[String]) {
        let mut state = self.lock();
        state.registry.set_tags(mailbox, tags);
        mailbox.tags_changed(|push| state.registry.addresses(push, mailbox));
    }

    /// Lets a connection go live at the log's end. `greet` gets that position and runs before the first push can come.
    /// `gap`: why it does not go on from its own position. False: the reader is not attached, or the log ends before the
    /// offset `not_before`. A gap that reading has shown waits for the reader: until then the log may end in a stream that
    /// is gone.
    pub fn join_at_end(
        &self,
        mailbox: &Mailbox,
        gap: Option<Gap>,
        not_before: u64,
        greet: impl FnOnce(Option<Position>),
    ) -> bool {
        let delivery = self.delivery();
        let state = self.lock();
        let position = match delivery {
            Delivery::Durable => {
                let read = gap.is_some_and(Gap::was_read);
                let end = if read { state.log.end_of_reading() } else { state.log.position() };
                let Some(position) = end.filter(|end| end.offset >= not_before) else { return false };
                Some(position)
            }
            Delivery::Transient if state.consumed => None,
            Delivery::Transient => return false,
        };
        greet(position);
        if let Some(position) = position {
            mailbox.tell(position.offset);
        }
        mailbox.set_live();
        true
    }

    /// One step of a connection's catch-up from the log: it gets the entries after `at` that address it. If that is
    /// everything, it goes live in the same step. `greet` runs before the first entry, as soon as the log knows the
    /// position.
    pub fn advance(&self, mailbox: &Arc<Mailbox>, at: Position, greet: impl FnOnce()) -> Advance {
        let now = clock::now_ms();
        let state = self.lock();
        let index = match state.log.lookup(at) {
            Lookup::Unattached => return Advance::Unattached,
            Lookup::Older => return Advance::Older,
            Lookup::Newer => return Advance::Newer,
            Lookup::OtherStream => return Advance::OtherStream,
            Lookup::Found(index) => index,
        };
        greet();
        // Half of the queue is free; a quarter of it is reserved for what else happens meanwhile.
        let step = mailbox.outbound.bounds().half().half();
        let (mut entries, mut bytes, mut reached) = (Vec::new(), 0, at);
        for (seen, entry) in state.log.since(index).enumerate() {
            if bytes > step.bytes || entries.len() > step.messages || seen == STEP_ENTRIES {
                return Advance::More(entries, reached);
            }
            reached = entry.position;
            if is_for(&state.registry, mailbox, entry, now) {
                bytes += entry.cost();
                entries.push(Arc::clone(entry));
            }
        }
        if bytes > step.bytes {
            return Advance::More(entries, reached);
        }
        for entry in &entries {
            if mailbox.deliver(entry) {
                self.context.metrics.deliveries.inc();
            }
        }
        mailbox.set_live();
        Advance::Live
    }

    /// The life of the log, and the offset of its last entry.
    pub(super) fn end_of_log(&self) -> (u64, Option<u64>) {
        let state = self.lock();
        (state.lives, state.log.position().map(|position| position.offset))
    }

    /// The entries that address this connection now.
    pub fn select(&self, mailbox: &Mailbox, entries: &[Arc<Entry>]) -> Vec<Arc<Entry>> {
        let now = clock::now_ms();
        let mut selected = Vec::new();
        for entries in entries.chunks(STEP_ENTRIES) {
            let state = self.lock();
            selected.extend(entries.iter().filter(|entry| is_for(&state.registry, mailbox, entry, now)).cloned());
        }
        selected
    }

    /// A connection by its id.
    pub fn connection(&self, id: &str) -> Option<Arc<Mailbox>> {
        self.lock().registry.iter().find(|mailbox| mailbox.id == id).cloned()
    }

    /// Closes every connection, and those that were admitted before and enter later.
    pub fn close_all(&self, code: CloseCode) {
        self.lock().closed = Some(code);
        self.disconnect(code);
    }

    /// Closes every connection that is registered now.
    pub fn disconnect(&self, code: CloseCode) {
        let mailboxes: Vec<_> = self.lock().registry.iter().cloned().collect();
        for mailbox in mailboxes {
            mailbox.outbound.close(code);
        }
    }

    /// Closes the connections, of one identity or of all, whose session is to end; how many.
    pub fn close_where(
        &self,
        unique_id: Option<&str>,
        code: CloseCode,
        mut ends: impl FnMut(&str, &Grant) -> bool,
    ) -> usize {
        let mailboxes: Vec<_> = {
            let state = self.lock();
            let mut ends = |mailbox: &&Arc<Mailbox>| ends(&mailbox.unique_id, &mailbox.grant());
            match unique_id {
                Some(unique_id) => state.registry.of_identity(unique_id).filter(&mut ends).cloned().collect(),
                None => state.registry.iter().filter(&mut ends).cloned().collect(),
            }
        };
        for mailbox in &mailboxes {
            mailbox.outbound.close(code);
        }
        mailboxes.len()
    }

    /// Whether [`Self::close_all`] was called.
    pub fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// The reader's state.
    pub fn reading(&self) -> Reading {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- the reader

    pub(super) fn set_reading(&self, reading: Reading) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = reading;
    }

    /// The reader is attached after `position`. False: the log ends elsewhere, so continuity is not proven.
    pub fn attach(&self, position: Option<Position>) -> bool {
        let mut state = self.lock();
        state.consumed = self.delivery() == Delivery::Transient;
        let continues = match (position, state.log.position()) {
            (Some(position), None) => {
                state.log.append(Arc::new(Entry::mark(position)));
                true
            }
            (Some(position), Some(last)) => position == last,
            // An empty stream: nothing is known until its first message (the marker) arrives.
            (None, last) => last.is_none(),
        };
        if continues {
            state.log.goes_on();
        }
        drop(state);
        self.moved.send_modify(|n| *n += 1);
        continues
    }

    /// The reader is not attached at the moment. What a log has stays, since reading continues behind it.
    pub(super) fn interrupted(&self) {
        let mut state = self.lock();
        state.consumed = false;
        state.log.interrupted();
    }

    /// Compresses those of them that a connection here is to get compressed. They are new: nobody else has them yet.
    pub async fn compress(&self, entries: &mut [Arc<Entry>]) {
        let worth = |entry: &Entry| entry.push.as_ref().is_some_and(|push| compression::is_worth_it(push.frame.len()));
        let wanted: Vec<usize> = {
            let state = self.lock();
            if !state.registry.compresses() {
                return;
            }
            let wants = |entry: &Entry| entry.push.as_ref().is_some_and(|push| state.registry.wants_compressed(push));
            (0..entries.len()).filter(|&at| worth(&entries[at]) && wants(&entries[at])).collect()
        };
        let mut since_pause = 0;
        for at in wanted {
            let Some(push) = Arc::get_mut(&mut entries[at]).and_then(|entry| entry.push.as_mut()) else { continue };
            since_pause += push.frame.len();
            if push.compress() {
                self.context.metrics.compressed_pushes.inc();
            }
            if since_pause >= COMPRESS_STEP {
                since_pause = 0;
                yield_now().await;
            }
        }
    }

    /// Appends entries and delivers them to the connections that they address. False: the declaration has changed since
    /// they were judged by `judge`, and nothing was done.
    #[must_use]
    pub fn append(&self, judge: &Arc<Business>, entries: Vec<Arc<Entry>>, delivery: Delivery) -> bool {
        let now = clock::now_ms();
        let (mut delivered, mut late) = (0, 0);
        let mut state = self.lock();
        if !self.judges_as(judge) {
            return false;
        }
        for entry in entries {
            late += u64::from(entry.push.as_ref().is_some_and(|push| push.is_over(now)));
            if let Some(push) = entry.push.as_ref().filter(|push| !push.is_over(now)) {
                state.registry.for_each_addressed(push, |mailbox| {
                    if mailbox.is_live() && mailbox.deliver(&entry) {
                        delivered += 1;
                    }
                });
            }
            if delivery == Delivery::Durable {
                state.log.append(entry);
            }
        }
        drop(state);
        self.backlog.shed();
        self.context.metrics.deliveries.inc_by(delivered);
        self.context.metrics.late_pushes.inc_by(late);
        self.moved.send_modify(|n| *n += 1);
        true
    }

    /// Clears the log if there is no connection. False: there is one, so the reader must go on. One step under the
    /// lock: a connection that enters now finds either a reader that stays or a log that knows nothing.
    pub(super) fn retire(&self) -> bool {
        let mut state = self.lock();
        let unused = state.registry.is_empty();
        if unused {
            self.unread(&mut state);
        }
        unused
    }

    /// Nothing is known any more of what the reader has read.
    fn unread(&self, state: &mut State) {
        state.log.clear();
        state.lives += 1;
        state.consumed = false;
        self.context.pages.forget(&self.name);
    }

    /// Clears the log, since the reader stopped or what follows does not continue it; with a gap, live connections get
    /// it.
    pub(super) fn forget(&self, gap: Option<Gap>) {
        let mut state = self.lock();
        self.unread(&mut state);
        let Some(gap) = gap else { return };
        let reason = gap.reason();
        let text = Utf8Bytes::from(ServerFrame::Gap { business: &self.name, reason }.to_text());
        let mut told = 0;
        for mailbox in state.registry.iter().filter(|mailbox| mailbox.is_live()) {
            mailbox.control(text.clone());
            mailbox.forget_cursor();
            told += 1;
        }
        self.context.metrics.gaps.get_or_create(&label(gap.label())).inc_by(told);
    }

    /// A client may have missed something; logged once a minute for each business, unless it is the usual case of the
    /// first client on an edge.
    pub fn count_gap(&self, gap: Gap) {
        let reason = gap.label();
        self.context.metrics.gaps.get_or_create(&label(reason)).inc();
        if gap == Gap::Unread {
            return;
        }
        let mut said = self.gap_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= GAP_LOG_INTERVAL) {
            *said = Some(Instant::now());
            tracing::warn!(business = &*self.name, reason, "a client may have missed pushes, and was told so");
        }
    }

    /// Sends quiet connections their position, so that their cursor does not fall out of the retention.
    pub(super) fn tell_position(&self) {
        let state = self.lock();
        let Some(position) = state.log.position() else { return };
        let mut text = None;
        for mailbox in state.registry.iter() {
            if mailbox.control && mailbox.is_live() && mailbox.knows_less_than(position.offset) {
                mailbox.tell(position.offset);
                mailbox.control(text.get_or_insert_with(|| position_frame(&self.name, position)).clone());
            }
        }
    }
}

/// The `position` frame of a position.
pub fn position_frame(business: &str, position: Position) -> Utf8Bytes {
    let cursor = entry::cursor(business, position);
    ServerFrame::Position { cursor: &cursor, resume_token: None }.to_text().into()
}

fn is_for(registry: &Registry, mailbox: &Mailbox, entry: &Entry, now: i64) -> bool {
    entry.push.as_ref().is_some_and(|push| !push.is_over(now) && registry.addresses(push, mailbox))
}
