//! A client's WebSocket: upgrade, the connection's task, its bounded outbound queue, control frames.

pub mod admission;
pub mod backlog;
pub mod conn;
pub mod driver;
pub mod greeting;
pub mod handshake;
pub mod inbound;
pub mod outbound;
pub mod receipts;
pub mod receive;
pub mod session;
pub mod upgrade;
pub mod upload;
pub mod window;
pub mod wire;
