//! Compresses one message.

use std::cell::RefCell;

use flate2::{Compress, FlushCompress, Status};

use super::TAIL;

/// Smaller messages are not compressed: one of 250 bytes would save about 70, less than the headers of its packet.
const SMALLEST: usize = 256;
/// Larger ones are not compressed either: this one takes a thread about 10 ms.
const LARGEST: usize = 1 << 20;
/// Of zlib's levels 1 to 9. Measured (docs/decisions/0040): 1 is twice as fast and leaves 20 to 40 % more bytes; 6 takes
/// up to four times as long for 3 to 13 % fewer.
const LEVEL: u32 = 2;
/// The smallest part of a message that is worth saving (an eighth): each receiver pays for the decompression.
const PART: usize = 8;

thread_local! {
    static COMPRESSOR: RefCell<Compress> =
        RefCell::new(Compress::new(flate2::Compression::new(LEVEL), false));
}

/// Whether a message of this size is compressed.
pub fn is_worth_it(bytes: usize) -> bool {
    (SMALLEST..=LARGEST).contains(&bytes)
}

/// The payload of the compressed message; `None` if that would save too little.
pub fn deflate(plain: &[u8]) -> Option<Box<[u8]>> {
    let mut compressed = Vec::with_capacity(plain.len() - plain.len() / PART);
    COMPRESSOR.with_borrow_mut(|compressor| {
        // Nothing of the last message may get into this one: it may have had other receivers.
        compressor.reset();
        let status = compressor.compress_vec(plain, &mut compressed, FlushCompress::Sync);
        // If there is no room left, there may be more to come.
        let complete = matches!(status, Ok(Status::Ok)) && compressed.len() < compressed.capacity();
        let payload = compressed.strip_suffix(&TAIL).filter(|_| complete)?;
        Some(payload.into())
    })
}
