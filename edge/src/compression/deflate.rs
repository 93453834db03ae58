//! Compresses one message.

use std::cell::RefCell;

use flate2::{Compress, FlushCompress, Status};

use super::TAIL;

/// Smaller messages stay as they are: one of 250 bytes would save about 70, less than the headers of its packet.
const SMALLEST: usize = 256;
/// Larger ones stay as they are too: this one takes a thread about 10 ms.
const LARGEST: usize = 1 << 20;
/// Of zlib's levels 1 to 9. Measured (docs/decisions/0040): 1 is twice as fast and leaves 20 to 40 % more bytes; 6 takes
/// up to four times as long for 3 to 13 % fewer.
const LEVEL: u32 = 2;
/// What must be saved at least, as a part of the message: each receiver pays for its decompression.
const PART: usize = 8;

thread_local! {
    static COMPRESSOR: RefCell<Compress> =
        RefCell::new(Compress::new(flate2::Compression::new(LEVEL), false));
}

/// Whether a message of this size is compressed.
pub fn is_worth_it(bytes: usize) -> bool {
    (SMALLEST..=LARGEST).contains(&bytes)
}

/// The payload of a compressed message; `None` if it would save too little.
pub fn deflate(plain: &[u8]) -> Option<Box<[u8]>> {
    let mut compressed = Vec::with_capacity(plain.len() - plain.len() / PART);
    COMPRESSOR.with_borrow_mut(|compressor| {
        // Nothing of the last message, whose receivers may be others.
        compressor.reset();
        let status = compressor.compress_vec(plain, &mut compressed, FlushCompress::Sync);
        // With no room left, there may be more to come.
        let complete = matches!(status, Ok(Status::Ok)) && compressed.len() < compressed.capacity();
        let payload = compressed.strip_suffix(&TAIL).filter(|_| complete)?;
        Some(payload.into())
    })
}
