//! A pushed message in memory: parsed once, encoded once, shared by all its receivers.

use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::{Cursor, edge_config::Delivery};

use super::{
    admit::{Admitted, admit},
    audience::Audience,
    backlog::{Backlog, BacklogShare},
    expiry,
    receipts::MessageHash,
    rejection::Rejection,
};
use crate::{
    broker::{Position, Record},
    business::Business,
    compression::deflate,
};

/// Bytes that an entry costs beside its frame; an estimate for the log's bound.
const OVERHEAD: usize = 256;

/// A record of the stream. Entries without a push (markers, garbage, pushes without recipients) still mark their
/// position.
#[derive(Debug)]
pub struct Entry {
    /// Its position.
    pub position: Position,
    /// What to deliver.
    pub push: Option<Push>,
}

/// A deliverable push.
#[derive(Debug)]
pub struct Push {
    /// Its recipients.
    pub audience: Audience,
    /// The text frame, with its cursor.
    pub frame: Utf8Bytes,
    /// The same compressed, if somebody wants it so and it saves enough.
    pub compressed: Option<Box<[u8]>>,
    /// From this time (ms since the epoch) on it is not delivered.
    pub expires_at: Option<i64>,
    /// Number of the route whose schema has still to judge its content, see [`super::judge`].
    pub judge: Option<u8>,
    /// Identifies its receipt; `None`: its route asks for none.
    pub receipt: Option<MessageHash>,
    /// Counts its bytes.
    pub share: BacklogShare,
}

impl Entry {
    /// A position without a message.
    pub fn mark(position: Position) -> Self {
        Self { position, push: None }
    }

    /// Reads a record. A record without valid recipients becomes an entry without a push, with the reason; other
    /// businesses that it names may have reasons of their own.
    pub fn read(business: &Business, record: &Record, backlog: &Arc<Backlog>) -> (Self, Vec<Rejected>) {
        let mut rejections = Vec::new();
        let push = push(business, record, backlog, &mut rejections).unwrap_or_else(|(id, why)| {
            rejections.push(Rejected::by_this(business, record, id, why));
            None
        });
        (Self { position: record.position, push }, rejections)
    }

    /// Sets whether a log or cache (only one of them) keeps it from now on.
    pub fn keep(&self, kept: bool) {
        if let Some(push) = &self.push {
            push.share.keep(kept);
        }
    }

    /// Bytes in memory, approximately.
    pub fn cost(&self) -> usize {
        OVERHEAD + self.push.as_ref().map_or(0, Push::bytes)
    }
}

impl Push {
    /// Whether it is not delivered any more.
    pub fn is_over(&self, now_ms: i64) -> bool {
        self.expires_at.is_some_and(|at| at <= now_ms)
    }

    /// Bytes of it in memory.
    fn bytes(&self) -> usize {
        self.frame.len() + self.compressed.as_ref().map_or(0, |compressed| compressed.len())
    }

    /// Compresses it. Before anybody keeps it: its bytes are counted from then on. True: it saves enough.
    pub fn compress(&mut self) -> bool {
        self.compressed = deflate(self.frame.as_bytes());
        let bytes = self.bytes();
        self.share.resize(bytes);
        self.compressed.is_some()
    }
}

/// A push without valid recipients.
#[derive(Debug)]
pub struct Rejected {
    /// Its id, where it could be read.
    pub id: Option<String>,
    /// Why.
    pub why: Rejection,
    /// Another business that does not take it.
    pub refused_by: Option<String>,
    /// The other business that it belongs to, if it does.
    pub of: Option<String>,
}

impl Rejected {
    /// The business that reads it does not take it. A message of another business is told to that one.
    pub(super) fn by_this(business: &Business, record: &Record, id: Option<String>, why: Rejection) -> Self {
        let foreign = record.origin.business.as_ref().map(|of| (of.to_string(), business.name().to_owned()));
        let (of, refused_by) = foreign.unzip();
        Self { id, why, refused_by, of }
    }
}

fn push(
    business: &Business,
    record: &Record,
    backlog: &Arc<Backlog>,
    rejections: &mut Vec<Rejected>,
) -> Result<Option<Push>, (Option<String>, Rejection)> {
    let Some(admitted) = admit(business, record, rejections)? else { return Ok(None) };
    let Admitted { mut envelope, owner, route, audience } = admitted;
    let timestamp = envelope.timestamp.unwrap_or(record.timestamp);
    let expires_at = expiry::of_record(&envelope, &route.config, record.timestamp);
    let expires_at = expires_at.map_err(|why| (envelope.id.as_deref().map(str::to_owned), why))?;
    envelope.send_type = Some(route.config.send_type);
    envelope.timestamp = Some(timestamp);
    envelope.expires_at = expires_at;
    envelope.business_type = Some(owner.into());
    envelope.id.get_or_insert_with(|| id_of(record).into());
    let receipt = route.config.receipts.then(|| envelope.id.as_deref().map(MessageHash::of)).flatten();
    let mut frame = Vec::with_capacity(record.body.len() + 192);
    match business.config.delivery {
        Delivery::Durable => envelope.write_with_cursor(&cursor(business.name(), record.position), &mut frame),
        Delivery::Transient => envelope.write(&mut frame),
    }
    let frame =
        Utf8Bytes::try_from(bytes::Bytes::from(frame)).map_err(|_| (None, Rejection::Invalid("not UTF-8".into())))?;
    let share = BacklogShare::new(frame.len(), backlog);
    let judge = business.judge(route);
    Ok(Some(Push { audience, frame, compressed: None, expires_at, judge, receipt, share }))
}

/// The cursor of a position.
pub fn cursor(business: &str, position: Position) -> String {
    Cursor { business: business.to_owned(), partition: 0, offset: position.offset, fingerprint: position.fingerprint }
        .to_string()
}

/// The id of a push that came without one: a UUIDv7 derived from what the stream stores, so that every edge and every
/// replay gives it the same id.
pub(super) fn id_of(record: &Record) -> String {
    let mut random = [0_u8; 10];
    random[..8].copy_from_slice(&record.position.fingerprint.to_be_bytes());
    random[8..].copy_from_slice(&(record.position.offset as u16).to_be_bytes());
    uuid::Builder::from_unix_timestamp_millis(record.timestamp.max(0) as u64, &random).into_uuid().to_string()
}
