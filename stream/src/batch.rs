//! Messages for the caller: one chunk at a time, decoded message by message.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    amqp10::Sections,
    chunk::{Chunk, Entries, Entry, Position, fingerprint},
    flow::ChunkPermit,
    metrics::Counters,
};

/// The messages of one chunk, in order.
///
/// It holds the chunk's credit and its part of the byte budget: drop it (or its iterator) once the messages have been
/// processed, and the broker sends at the reader's pace. Copies of its messages may be kept.
#[derive(Debug)]
pub struct Batch {
    pub(crate) chunk: Chunk,
    /// Messages below this offset are not part of it.
    pub(crate) from: u64,
    pub(crate) counters: Arc<Counters>,
    /// Kept only to be dropped; `None` if the credit was returned before.
    pub(crate) _permit: Option<ChunkPermit>,
}

impl Batch {
    /// No message in it has a smaller offset.
    pub fn first_offset(&self) -> u64 {
        self.chunk.first_offset.max(self.from)
    }

    /// The offset after the last message, where to continue.
    pub fn end_offset(&self) -> u64 {
        self.chunk.end_offset()
    }

    /// When the broker wrote the chunk, ms since the epoch.
    pub const fn timestamp(&self) -> i64 {
        self.chunk.timestamp
    }

    /// The memory it keeps allocated.
    pub const fn bytes(&self) -> usize {
        self.chunk.data.len()
    }

    /// The messages, malformed ones included: they have a position like any other. Those of compressed or truncated
    /// sub-batches have none, are left out, and were counted.
    pub fn iter(&self) -> Messages<'_> {
        Messages { batch: self, entries: self.chunk.entries() }
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = Message;
    type IntoIter = Messages<'a>;

    fn into_iter(self) -> Messages<'a> {
        self.iter()
    }
}

/// Iterator over the messages of a [`Batch`].
#[derive(Debug)]
pub struct Messages<'a> {
    batch: &'a Batch,
    entries: Entries,
}

impl Iterator for Messages<'_> {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        loop {
            // Unreadable entries are counted when the chunk arrives, malformed messages only here.
            let Entry::Message { offset, bytes } = self.entries.next()? else { continue };
            if offset < self.batch.from {
                continue;
            }
            let sections = Sections::parse(&bytes);
            let malformed = sections.is_err();
            if malformed {
                self.batch.counters.skipped_messages.increment();
            }
            let (timestamp, sections) = (self.batch.chunk.timestamp, sections.unwrap_or_default());
            return Some(Message { offset, timestamp, bytes, sections, malformed });
        }
    }
}

/// One message. It shares the memory of its chunk.
#[derive(Debug, Clone)]
pub struct Message {
    offset: u64,
    timestamp: i64,
    bytes: Bytes,
    sections: Sections,
    malformed: bool,
}

impl Message {
    /// Whether it is not AMQP 1.0: then it has no sections and no body.
    pub const fn is_malformed(&self) -> bool {
        self.malformed
    }

    /// Its offset in the stream: increasing, not contiguous.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// When the broker wrote the chunk, ms since the epoch.
    pub const fn timestamp(&self) -> i64 {
        self.timestamp
    }

    /// See [`fingerprint`]; computed at each call.
    pub fn fingerprint(&self) -> u64 {
        fingerprint(self.offset, self.timestamp, &self.bytes)
    }

    /// The position of this message: resume after it with [`crate::Start::After`].
    pub fn position(&self) -> Position {
        Position { offset: self.offset, fingerprint: self.fingerprint() }
    }

    /// The body.
    pub const fn body(&self) -> &Bytes {
        self.sections.body()
    }

    /// Body kind, properties, annotations, application properties.
    pub const fn sections(&self) -> &Sections {
        &self.sections
    }

    /// The bytes as stored: AMQP 1.0, unless it [is malformed](Self::is_malformed).
    pub const fn encoded(&self) -> &Bytes {
        &self.bytes
    }
}
