//! Server → client and client → client: from the broker to the sockets.
//!
//! A [`hub::Hub`] per business holds, under one lock, the push log (the recent part of its stream) and the registry of
//! local connections. Its *reader* follows the stream, appends to the log and delivers entries to the connections that
//! they address. A client that reconnects *catches up* from the log or, beyond it, from the stream, and goes live in
//! the same step in which it reads the end of the log.

pub mod across;
mod admit;
pub mod audience;
pub mod backlog;
mod basis;
pub mod catch_up;
pub mod check;
pub mod context;
pub mod entry;
pub mod expiry;
pub mod followed;
pub mod gap;
pub mod greeting;
pub mod hub;
mod judge;
mod lock;
pub mod log;
pub mod mailbox;
mod pages;
pub mod present;
mod read_queue;
pub mod reader;
pub mod reading;
pub mod receipts;
pub mod registry;
pub mod rejection;
mod rejections;
pub mod time_unit;

#[cfg(test)]
mod tests;
