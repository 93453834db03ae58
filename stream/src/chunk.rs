//! Chunks: the unit in which a stream is stored, delivered and credited. A chunk is kept encoded; iterating over it
//! reads one length prefix per message.
//!
//! Layout (osiris, `osiris_log.erl`): magic and version `0x50`, chunk type, entries u16, records u32, timestamp i64
//! (ms), epoch u64, first offset u64, CRC u32, data length u32, trailer length u32, bloom filter size u8 and 3 reserved
//! bytes, (filter, skipped by the broker,) data. The CRC is not checked: TCP or TLS has checked the bytes.

use bytes::{Buf, Bytes};
use twox_hash::XxHash3_64;

use crate::codec::{Fields, Malformed};

/// A position in one incarnation of a stream: the offset of a message and its [`fingerprint`].
///
/// The offset alone does not distinguish a stream from one declared later under the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Number of the message in the stream.
    pub offset: u64,
    /// See [`fingerprint`].
    pub fingerprint: u64,
}

/// The fingerprint of a message: `XXH3_64(offset ‖ timestamp ‖ XXH3_64(message))`, each number as 8 bytes in network
/// order, seed 0.
///
/// `timestamp` is that of its chunk (ms since the epoch), `message` the AMQP 1.0 bytes as stored. The same message has
/// the same fingerprint in every process and version; the same bytes at the same offset of another incarnation of the
/// stream have a different one, unless they were written in the same millisecond. It does not protect against
/// deliberate collisions.
pub fn fingerprint(offset: u64, timestamp: i64, message: &[u8]) -> u64 {
    let mut facts = [0u8; 24];
    facts[..8].copy_from_slice(&offset.to_be_bytes());
    facts[8..16].copy_from_slice(&timestamp.to_be_bytes());
    facts[16..].copy_from_slice(&XxHash3_64::oneshot(message).to_be_bytes());
    XxHash3_64::oneshot(&facts)
}

/// One stored chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Offset of the first message. Offsets inside a chunk have no holes, between chunks they may.
    pub(crate) first_offset: u64,
    /// Number of messages, those of sub-batches included, as the header says.
    pub(crate) records: u32,
    /// Entries in `data`: a message or a sub-batch each.
    pub(crate) entries: u16,
    /// When the broker wrote it, ms since the epoch.
    pub(crate) timestamp: i64,
    /// First offset of the newest chunk that a majority of replicas held at delivery; brokers with Deliver v2 only.
    pub(crate) committed_chunk_id: Option<u64>,
    /// The entries.
    pub(crate) data: Bytes,
}

const MAGIC: u8 = 0x50;

impl Chunk {
    /// Reads the payload of a Deliver frame after the subscription id (`version` is the frame's).
    ///
    /// Truncated data is kept: the missing messages are reported as skipped.
    pub(crate) fn parse(version: u16, payload: Bytes) -> Result<Self, Malformed> {
        const WHAT: &str = "chunk header";
        let mut fields = Fields(payload);
        let committed_chunk_id = if version >= 2 { Some(fields.u64(WHAT)?) } else { None };
        if fields.u8(WHAT)? != MAGIC {
            return Err(Malformed("chunk: unknown magic or version"));
        }
        let user_data = fields.u8(WHAT)? == 0;
        let entries = fields.u16(WHAT)?;
        let records = fields.u32(WHAT)?;
        let timestamp = fields.i64(WHAT)?;
        fields.u64(WHAT)?; // epoch
        let first_offset = fields.u64(WHAT)?;
        fields.u32(WHAT)?; // CRC
        let length = fields.u32(WHAT)? as usize;
        fields.bytes(8, WHAT)?; // trailer length, filter size, reserved
        let available = fields.0.len().min(length);
        let data = fields.bytes(available, WHAT)?;
        let entries = if user_data { entries } else { 0 };
        Ok(Self { first_offset, records, entries, timestamp, committed_chunk_id, data })
    }

    /// The offset after its last message.
    pub(crate) fn end_offset(&self) -> u64 {
        self.first_offset.saturating_add(u64::from(self.records))
    }

    /// Its messages, in order, undecoded.
    pub(crate) fn entries(&self) -> Entries {
        Entries { offset: self.first_offset, left: self.entries, data: self.data.clone(), batch: None }
    }

    /// The position of the last readable message, and the number of unreadable ones.
    ///
    /// `from`: messages below it do not count. `None` if none is readable.
    pub(crate) fn last_position(&self, from: u64) -> (Option<Position>, u64) {
        let (mut last, mut unreadable) = (None, 0);
        for entry in self.entries() {
            match entry {
                Entry::Message { offset, bytes } if offset >= from => last = Some((offset, bytes)),
                Entry::Message { .. } => {}
                Entry::Skipped { messages, .. } => unreadable += messages,
            }
        }
        let position =
            last.map(|(offset, bytes)| Position { offset, fingerprint: fingerprint(offset, self.timestamp, &bytes) });
        (position, unreadable)
    }
}

/// One item of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// One message: its AMQP 1.0 bytes, as stored.
    Message { offset: u64, bytes: Bytes },
    /// Messages that cannot be read: a compressed sub-batch, or bytes that contradict their length.
    Skipped { offset: u64, messages: u64, reason: &'static str },
}

/// Iterator over a [`Chunk`]. Shares its memory.
#[derive(Debug, Clone)]
pub(crate) struct Entries {
    offset: u64,
    left: u16,
    data: Bytes,
    batch: Option<Batch>,
}

/// The rest of the sub-batch that is being read.
#[derive(Debug, Clone)]
struct Batch {
    left: u16,
    data: Bytes,
}

impl Entries {
    /// Skips the last `messages` messages of this chunk or sub-batch.
    fn skip(&mut self, messages: u64, reason: &'static str) -> Entry {
        let entry = Entry::Skipped { offset: self.offset, messages, reason };
        self.offset = self.offset.saturating_add(messages);
        entry
    }

    fn message(&mut self, bytes: Bytes) -> Entry {
        let entry = Entry::Message { offset: self.offset, bytes };
        self.offset = self.offset.saturating_add(1);
        entry
    }

    fn next_in_batch(&mut self, mut batch: Batch) -> Entry {
        let Some(bytes) = take_entry(&mut batch.data) else {
            return self.skip(u64::from(batch.left), "truncated sub-batch");
        };
        batch.left -= 1;
        if batch.left > 0 {
            self.batch = Some(batch);
        }
        self.message(bytes)
    }
}

impl Iterator for Entries {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some(batch) = self.batch.take() {
                return Some(self.next_in_batch(batch));
            }
            if self.left == 0 {
                return None;
            }
            // The top bit of the first byte marks a sub-batch; otherwise it belongs to the length of a message.
            if self.data.first().is_none_or(|b| b & 0x80 == 0) {
                let Some(bytes) = take_entry(&mut self.data) else {
                    let lost = u64::from(std::mem::take(&mut self.left));
                    return Some(self.skip(lost, "truncated message"));
                };
                self.left -= 1;
                return Some(self.message(bytes));
            }
            let Some((compression, messages, data)) = take_sub_batch(&mut self.data) else {
                let lost = u64::from(std::mem::take(&mut self.left));
                return Some(self.skip(lost, "truncated sub-batch"));
            };
            self.left -= 1;
            match (compression, messages) {
                (0, 0) => {}
                (0, left) => self.batch = Some(Batch { left, data }),
                (_, messages) => return Some(self.skip(u64::from(messages), "compressed sub-batch")),
            }
        }
    }
}

fn take_entry(data: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_be_bytes(*data.first_chunk::<4>()?) as usize;
    if data.len() - 4 < length {
        return None;
    }
    data.advance(4);
    Some(data.split_to(length))
}

/// Type byte (bit 7 set, bits 4-6 compression), messages u16, uncompressed length u32, length u32, data.
fn take_sub_batch(data: &mut Bytes) -> Option<(u8, u16, Bytes)> {
    let header = *data.first_chunk::<11>()?;
    let length = u32::from_be_bytes([header[7], header[8], header[9], header[10]]) as usize;
    if data.len() - 11 < length {
        return None;
    }
    data.advance(11);
    Some(((header[0] >> 4) & 0x07, u16::from_be_bytes([header[1], header[2]]), data.split_to(length)))
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::{BufMut, BytesMut};
    use proptest::prelude::*;

    use super::*;

    /// The payload of a Deliver frame (after the subscription id) that holds `messages` as plain entries.
    pub(crate) fn chunk_bytes(version: u16, first_offset: u64, timestamp: i64, messages: &[Vec<u8>]) -> Bytes {
        let mut data = BytesMut::new();
        for message in messages {
            put_entry(&mut data, message);
        }
        raw_chunk(version, first_offset, timestamp, messages.len() as u16, messages.len() as u32, &data)
    }

    fn raw_chunk(version: u16, first_offset: u64, timestamp: i64, entries: u16, records: u32, data: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        if version >= 2 {
            out.put_u64(first_offset);
        }
        out.put_u8(MAGIC);
        out.put_u8(0);
        out.put_u16(entries);
        out.put_u32(records);
        out.put_i64(timestamp);
        out.put_u64(1);
        out.put_u64(first_offset);
        out.put_u32(0);
        out.put_u32(data.len() as u32);
        out.put_u64(0);
        out.put_slice(data);
        out.freeze()
    }

    fn put_entry(out: &mut BytesMut, message: &[u8]) {
        out.put_u32(message.len() as u32);
        out.put_slice(message);
    }

    fn put_sub_batch(out: &mut BytesMut, compression: u8, messages: &[Vec<u8>]) {
        let mut data = BytesMut::new();
        for message in messages {
            put_entry(&mut data, message);
        }
        out.put_u8(0x80 | compression << 4);
        out.put_u16(messages.len() as u16);
        out.put_u32(data.len() as u32);
        out.put_u32(data.len() as u32);
        out.put_slice(&data);
    }

    fn message(offset: u64, text: &str) -> Entry {
        Entry::Message { offset, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[test]
    fn a_compressed_sub_batch_is_skipped_and_what_follows_keeps_its_offset() {
        let mut data = BytesMut::new();
        put_entry(&mut data, b"a");
        put_sub_batch(&mut data, 1, &[b"x".to_vec(), b"y".to_vec(), b"z".to_vec()]);
        put_sub_batch(&mut data, 0, &[b"b".to_vec(), b"c".to_vec()]);
        put_entry(&mut data, b"d");
        let chunk = Chunk::parse(2, raw_chunk(2, 10, 5, 4, 7, &data)).unwrap();
        assert_eq!(chunk.end_offset(), 17);
        assert_eq!(chunk.committed_chunk_id, Some(10));
        let entries: Vec<_> = chunk.entries().collect();
        let skipped = Entry::Skipped { offset: 11, messages: 3, reason: "compressed sub-batch" };
        assert_eq!(entries, [message(10, "a"), skipped, message(14, "b"), message(15, "c"), message(16, "d")]);
        let (last, unreadable) = chunk.last_position(0);
        assert_eq!(last, Some(Position { offset: 16, fingerprint: fingerprint(16, 5, b"d") }));
        assert_eq!(unreadable, 3);
    }

    #[test]
    fn truncated_data_yields_what_is_there_and_one_report() {
        let whole = chunk_bytes(1, 0, 0, &[b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        let chunk = Chunk::parse(1, whole.slice(..whole.len() - 2)).unwrap();
        let entries: Vec<_> = chunk.entries().collect();
        let skipped = Entry::Skipped { offset: 2, messages: 1, reason: "truncated message" };
        assert_eq!(entries, [message(0, "one"), message(1, "two"), skipped]);
    }

    #[test]
    fn the_fingerprint_never_changes() {
        // Clients keep positions: these values are part of the format. Computed with another implementation of XXH3.
        assert_eq!(fingerprint(0, 0, b""), 0x67c5_f913_c206_8cb0);
        assert_eq!(fingerprint(42, 1_700_000_000_000, b"hello"), 0xaa65_74a5_b0c8_d547);
    }

    #[test]
    fn equal_messages_differ_by_offset_and_by_time() {
        assert_ne!(fingerprint(1, 5, b"m"), fingerprint(2, 5, b"m"));
        assert_ne!(fingerprint(1, 5, b"m"), fingerprint(1, 6, b"m"));
        assert_ne!(fingerprint(1, 5, b"m"), fingerprint(1, 5, b"n"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), version in 1u16..3) {
            if let Ok(chunk) = Chunk::parse(version, Bytes::from(bytes.clone())) {
                let _ = chunk.last_position(7);
            }
            // The same bytes as the data behind a valid header.
            let chunk = Chunk::parse(version, raw_chunk(version, u64::MAX - 3, 0, u16::MAX, u32::MAX, &bytes)).unwrap();
            prop_assert!(chunk.entries().count() <= bytes.len() + 1);
            let _ = chunk.last_position(0);
        }

        #[test]
        fn messages_round_trip(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20),
            first in 0u64..1_000_000,
            version in 1u16..3,
        ) {
            let chunk = Chunk::parse(version, chunk_bytes(version, first, 9, &messages)).unwrap();
            let mut expected = first;
            let mut got = Vec::new();
            for entry in chunk.entries() {
                let Entry::Message { offset, bytes } = entry else { panic!("{entry:?}") };
                prop_assert_eq!(offset, expected);
                expected += 1;
                got.push(bytes.to_vec());
            }
            prop_assert_eq!(got, messages);
            prop_assert_eq!(chunk.end_offset(), expected);
        }
    }
}
