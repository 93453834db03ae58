//! A client's WebSocket: its protocol, the task of a connection, what a client may send, and the limits of its input.

pub mod admission;
pub mod connection_limit;
pub mod driver;
pub mod flood;
pub mod inbound;
pub mod receive;
pub mod session;
pub mod shared;
pub mod upload;
pub mod window;
pub mod wire;
pub mod write_progress;
