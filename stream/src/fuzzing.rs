//! What `fuzz/` reaches beside the public interface.

use bytes::{Bytes, BytesMut};

use crate::{
    chunk::{Chunk, Entry},
    codec::{Cut, FrameCutter, Malformed},
};

/// Key, version and payload of a frame, and whether it was too large.
pub type CutFrame = (u16, u16, Bytes, bool);

/// Each frame that arrives in these pieces; the first error ends it.
pub fn frames<'p>(pieces: impl Iterator<Item = &'p [u8]>, max_bytes: usize) -> (Vec<CutFrame>, Option<Malformed>) {
    let (mut cutter, mut buffer, mut found) = (FrameCutter::new(max_bytes), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match cutter.next(&mut buffer) {
                Ok(Cut::Frame(frame)) => found.push((frame.key, frame.version, frame.payload, false)),
                Ok(Cut::Oversized(frame)) => found.push((frame.key, frame.version, frame.payload, true)),
                Ok(Cut::Incomplete(_)) => break,
                Err(malformed) => return (found, Some(malformed)),
            }
        }
    }
    (found, None)
}

/// An entry of a chunk: its offset, how many messages it stands for, and the message unless it is skipped.
pub type ChunkEntry = (u64, u64, Option<Bytes>);

/// First offset, end and entries of a chunk.
///
/// # Errors
/// It is not a chunk.
pub fn chunk(version: u16, payload: Bytes) -> Result<(u64, u64, Vec<ChunkEntry>), Malformed> {
    let chunk = Chunk::parse(version, payload)?;
    let entries = chunk.entries().map(|entry| match entry {
        Entry::Message { offset, bytes } => (offset, 1, Some(bytes)),
        Entry::Skipped { offset, messages, .. } => (offset, messages, None),
    });
    Ok((chunk.first_offset, chunk.end_offset(), entries.collect()))
}
