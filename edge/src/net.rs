//! The public port: TCP connections, TLS, and HTTP/1.1 on them.

mod connection;
mod head;
pub mod listener;
mod refusals;
pub mod tls;
