//! A stream in memory: an append-only log with retention by bytes.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
};

use bytes::Bytes;

use crate::{Origin, Page, Position, Record};

/// Bytes that a stream may keep, whatever its policy says: it lives in this process.
const MAX_BYTES: usize = 256 << 20;

/// One life of one stream. Offsets begin with 0 and never repeat within it.
#[derive(Debug)]
pub(super) struct Log {
    /// Tells this incarnation from others of the same name; part of every fingerprint.
    pub(super) incarnation: u64,
    records: VecDeque<Record>,
    next: u64,
    bytes: usize,
    max_bytes: usize,
}

impl Log {
    pub(super) fn new(incarnation: u64) -> Self {
        Self { incarnation, records: VecDeque::new(), next: 0, bytes: 0, max_bytes: MAX_BYTES }
    }

    pub(super) fn set_max_bytes(&mut self, max_bytes: Option<usize>) {
        self.max_bytes = max_bytes.unwrap_or(MAX_BYTES).min(MAX_BYTES);
        self.retain();
    }

    pub(super) fn append(&mut self, now_ms: i64, body: Bytes, origin: Origin) {
        let offset = self.next;
        let mut hasher = DefaultHasher::new();
        (self.incarnation, offset, now_ms, &body[..]).hash(&mut hasher);
        self.next += 1;
        self.bytes += body.len();
        self.records.push_back(Record {
            position: Position { offset, fingerprint: hasher.finish() },
            timestamp: now_ms,
            body,
            defect: None,
            origin,
        });
        self.retain();
    }

    /// The newest message stays, as a broker keeps the segment it writes to.
    fn retain(&mut self) {
        while self.bytes > self.max_bytes && self.records.len() > 1 {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.bytes -= record.body.len();
        }
    }

    /// Forgets everything below `offset`.
    pub(super) fn truncate_before(&mut self, offset: u64) {
        while self.records.front().is_some_and(|record| record.position.offset < offset) {
            self.drop_first();
        }
    }

    /// First offset still here; `None` = empty.
    pub(super) fn first(&self) -> Option<u64> {
        self.records.front().map(|record| record.position.offset)
    }

    /// The offset that the next message will have.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn last_position(&self) -> Option<Position> {
        self.records.back().map(|record| record.position)
    }

    pub(super) fn at(&self, offset: u64) -> Option<&Record> {
        let index = offset.checked_sub(self.first()?)?;
        self.records.get(usize::try_from(index).ok()?)
    }

    /// Records from `from` on, about `max_bytes`, and one after `from` at least where there is one.
    pub(super) fn piece(&self, from: u64, max_bytes: usize) -> Page {
        let first = self.first();
        let skip = first.map_or(0, |first| from.saturating_sub(first));
        let (mut bytes, mut taken) = (0, 0);
        let records: Vec<_> = self
            .records
            .iter()
            .skip(usize::try_from(skip).unwrap_or(usize::MAX))
            .take_while(|record| {
                let fits = taken < 2 || bytes + record.body.len() <= max_bytes;
                bytes += record.body.len();
                taken += 1;
                fits
            })
            .cloned()
            .collect();
        let at_end = records.last().is_none_or(|record| record.position.offset + 1 == self.next);
        Page { records, first_offset: first, at_end, lost: false }
    }
}
