//! A connection as the registry and the reader see it: who it belongs to, its queue and its state.

pub mod outbound;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
};

use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::frames::CloseCode;

use super::{
    backlog::Queue,
    entry::{Entry, Push},
    receipts::Receipts,
};
use crate::{business::Business, compression::Compression, identity::grant::Grant, ids};
use outbound::{Item, Outbound};

#[derive(Clone, Copy, Debug)]
struct SessionFacts {
    grant: Grant,
    /// Ms since the epoch.
    ends_at: i64,
}

/// One local connection.
#[derive(Debug)]
pub struct Mailbox {
    /// Local number; the lane key for publishing, so that its messages keep their order.
    pub number: u64,
    /// The id in frames, events and logs (UUIDv7).
    pub id: String,
    /// `uniqueId`.
    pub unique_id: Arc<str>,
    /// `clientType`.
    pub client_type: Box<str>,
    /// Whether control frames are on.
    pub control: bool,
    /// Whether it gets pushes compressed.
    pub compression: Compression,
    /// Frames that wait to be written.
    pub outbound: Outbound,
    /// Messages that the client may report as received.
    pub receipts: Receipts,
    /// Origin of its page, if the business declares it.
    pub origin: Option<Box<str>>,
    session: Mutex<SessionFacts>,
    /// Whether the reader delivers pushes to it; set in the step in which its catch-up reads the end of the log.
    live: AtomicBool,
    greeted: AtomicBool,
    /// Offset + 1 of the newest cursor sent to it; 0 = none.
    told: AtomicU64,
    /// Counts changes of its tags; it may wrap. Small, since each connection has one.
    tags: AtomicU16,
}

impl Mailbox {
    /// A connection that is not live yet.
    pub fn new(number: u64, unique_id: &str, client_type: &str, control: bool, outbound: Outbound) -> Self {
        Self {
            number,
            id: ids::new(),
            unique_id: unique_id.into(),
            client_type: client_type.into(),
            control,
            compression: Compression::default(),
            outbound,
            receipts: Receipts::default(),
            origin: None,
            session: Mutex::new(SessionFacts { grant: Grant::default(), ends_at: i64::MAX }),
            live: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
            told: AtomicU64::new(0),
            tags: AtomicU16::new(0),
        }
    }

    fn session(&self) -> MutexGuard<'_, SessionFacts> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its session rests on.
    pub fn grant(&self) -> Grant {
        self.session().grant
    }

    /// When its session ends, ms since the epoch.
    pub fn session_ends_at(&self) -> i64 {
        self.session().ends_at
    }

    /// Its session rests on this, and ends then.
    pub fn set_session(&self, grant: Grant, ends_at: i64) {
        *self.session() = SessionFacts { grant, ends_at };
    }

    /// Holds it to a declaration that may have changed: what that does not allow any more ends, or ends earlier.
    pub fn hold_to(&self, business: &Business) {
        let SessionFacts { grant, ends_at } = *self.session();
        let page = self.origin.as_deref();
        if page.is_some_and(|page| !business.allows_origin(page)) {
            return self.outbound.close(CloseCode::Revoked);
        }
        let declared = business.config.client_types.iter().any(|declared| **declared == *self.client_type);
        if !declared || !business.admits(&grant) {
            return self.outbound.close(CloseCode::SessionOver);
        }
        let end = business.session_end(&grant, ends_at);
        if end < ends_at {
            self.session().ends_at = end;
            self.outbound.shorten();
        }
    }

    /// Whether pushes are delivered to it.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }

    /// Only under the hub's lock.
    pub fn set_live(&self) {
        self.live.store(true, Ordering::Relaxed);
    }

    /// Changes with its tags.
    pub fn tags(&self) -> u16 {
        self.tags.load(Ordering::Relaxed)
    }

    /// Its tags have changed: what is queued for it by the former ones is dropped where `addresses` says no. Only under
    /// the hub's lock.
    pub fn tags_changed(&self, mut addresses: impl FnMut(&Push) -> bool) {
        self.tags.fetch_add(1, Ordering::Relaxed);
        self.outbound.retain_pushes(|entry| entry.push.as_ref().is_none_or(&mut addresses));
    }

    /// Queues a push.
    pub fn deliver(&self, entry: &Arc<Entry>) -> bool {
        self.tell(entry.position.offset);
        if let Some(hash) = entry.push.as_ref().and_then(|push| push.receipt).filter(|_| self.control) {
            self.receipts.sent(hash);
        }
        self.outbound.push(Item::push(entry, self.compression))
    }

    /// Queues a control frame; a client without control frames gets none.
    pub fn control(&self, text: impl Into<Utf8Bytes>) {
        if self.control {
            self.outbound.push(Item::Control(text.into()));
        }
    }

    /// Notes that a cursor with this offset is queued for the client.
    pub fn tell(&self, offset: u64) {
        self.told.store(offset.saturating_add(1), Ordering::Relaxed);
    }

    /// Its cursors belong to a stream that no longer exists: the next position is new to it, whatever its offset.
    pub fn forget_cursor(&self) {
        self.told.store(0, Ordering::Relaxed);
    }

    /// Whether `welcome` is queued: nothing is read from a client before, so nothing can precede it.
    pub fn is_greeted(&self) -> bool {
        self.greeted.load(Ordering::Relaxed)
    }

    /// `welcome` is queued, or would be if control frames were on.
    pub fn set_greeted(&self) {
        self.greeted.store(true, Ordering::Relaxed);
        // A client without control frames gets no frame that would wake the connection's task.
        self.outbound.wake_writer();
    }

    /// Whether the client's newest cursor is older than this offset, or may be.
    pub fn knows_less_than(&self, offset: u64) -> bool {
        if self.outbound.take_passed_over() {
            self.forget_cursor();
        }
        self.told.load(Ordering::Relaxed) <= offset
    }
}

impl Queue for Mailbox {
    fn number(&self) -> u64 {
        self.number
    }

    fn held(&self) -> Option<usize> {
        self.outbound.held()
    }

    fn give_up(&self) {
        self.outbound.close(CloseCode::TooSlow);
    }
}
