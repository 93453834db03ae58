//! `permessage-deflate` without context takeover (RFC 7692): each message is compressed on its own.
//!
//! A push is compressed once and shared by all receivers that negotiated compression. No connection keeps a compressor:
//! each thread has one compressor and one decompressor, created when it first needs them. With context takeover each
//! connection would need both (about 300 KiB), and each push would be compressed for each receiver.

mod deflate;
mod inflate;
mod offer;

pub use deflate::{deflate, is_worth_it};
pub use inflate::{InflateError, inflate};
pub use offer::{Compression, accept};

/// What a sender removes from the end of each message, and a receiver appends (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

#[cfg(test)]
mod tests;
