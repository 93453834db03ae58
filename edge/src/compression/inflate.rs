//! Decompresses one message of a client.
//!
//! The output has a limit, and its memory grows with what is decompressed, up to that limit. A message that is larger
//! fails as soon as it has one byte more.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};

use super::TAIL;

/// Bytes of output that are reserved at first, for each byte of input.
const FIRST_ROOM: usize = 4;

thread_local! {
    static DECOMPRESSOR: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// Why a message can't be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// It is larger than the limit.
    TooBig,
    /// It is not compressed data.
    Malformed,
}

/// The decompressed message, of at most `limit` bytes.
///
/// # Errors
/// See [`InflateError`].
pub fn inflate(payload: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        decompressor.reset(false);
        let mut output = Output { bytes: Vec::new(), limit };
        output.bytes.reserve_exact(payload.len().saturating_mul(FIRST_ROOM).min(limit));
        output.append(decompressor, payload)?;
        output.append(decompressor, &TAIL)?;
        if output.bytes.len() > limit { Err(InflateError::TooBig) } else { Ok(output.bytes) }
    })
}

struct Output {
    bytes: Vec<u8>,
    limit: usize,
}

impl Output {
    /// Decompresses all of `input`.
    fn append(&mut self, decompressor: &mut Decompress, mut input: &[u8]) -> Result<(), InflateError> {
        loop {
            let (before, len) = (decompressor.total_in(), self.bytes.len());
            let status = if self.make_room() {
                decompressor.decompress_vec(input, &mut self.bytes, FlushDecompress::Sync)
            } else {
                let mut one_more = [0];
                let out = decompressor.total_out();
                let status = decompressor.decompress(input, &mut one_more, FlushDecompress::Sync);
                if decompressor.total_out() > out {
                    return Err(InflateError::TooBig);
                }
                status
            };
            let used = (decompressor.total_in() - before) as usize;
            input = &input[used..];
            match status {
                Err(_) => return Err(InflateError::Malformed),
                // The sender ended its stream of blocks, and may begin another one (RFC 7692, section 7.2.3.4).
                Ok(Status::StreamEnd) => decompressor.reset(false),
                Ok(Status::Ok | Status::BufError) if used == 0 && self.bytes.len() == len => {
                    // No input was read and no output written: it is done, or it never will be.
                    return if input.is_empty() { Ok(()) } else { Err(InflateError::Malformed) };
                }
                Ok(Status::Ok | Status::BufError) => {}
            }
            if input.is_empty() && self.bytes.len() < self.bytes.capacity() {
                return Ok(());
            }
        }
    }

    /// Makes room for more output. False: the limit is reached.
    fn make_room(&mut self) -> bool {
        let len = self.bytes.len();
        if len < self.bytes.capacity() {
            return true;
        }
        self.bytes.reserve_exact(len.max(64).min(self.limit - len));
        len < self.limit
    }
}
