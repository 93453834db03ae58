//! Helpers of the tests that need real programs and servers.
//!
//! - [`broker`]: RabbitMQ, a vhost for each test, private brokers that may be killed.
//! - [`cluster`]: a Kubernetes API server, a namespace for each test, private ones that may be killed.
//! - [`setup`]: what the edges of one test share: declarations, topology, keys.
//! - [`edge`]: the real binary as a process.
//! - [`kubectl`]: the real kubectl.
//! - [`node`]: a whole Kubernetes where pods run, with the chart on it.
//! - [`operator`]: the real binary as a process, and the world of one test around it.
//! - [`mirror`]: an edge's admin port without an edge.
//! - [`process`]: what edge and operator have in common.
//! - [`permits`]: what many tests at the same time must share.
//! - [`client`]: a WebSocket client that knows the protocol.
//! - [`service`]: a business's own service: plain AMQP, no SDK.
//! - [`floods`]: what one client or a stranger can flood an edge with, and its neighbours.
//! - [`frames`]: a WebSocket client that speaks frames, compressed ones too.
//! - [`hand`]: manual changes on the broker, behind the operator's back.
//! - [`witness`]: every state that the conditions of a business pass through.
//! - [`ws_proxy`]: faults by frame, between a client and an edge.
//! - [`proxy`]: network failures.
//! - [`raw`]: bytes that no library sends.
//! - [`strange`]: messages that general clients can't decode.
//! - [`tls`]: clients that use TLS, and a CA for them.
//! - [`traffic`]: senders and pushers that continue through failures.
//! - [`wait`]: conditions with a deadline.
//! - [`usage`]: memory and CPU of a process, for benchmarks.

pub mod broker;
pub mod client;
pub mod cluster;
pub mod edge;
pub mod fleet;
pub mod floods;
pub mod frames;
pub mod hand;
pub mod kubectl;
pub mod mirror;
pub mod node;
pub mod operator;
pub mod permits;
mod private;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod service;
pub mod setup;
pub mod strange;
pub mod tls;
pub mod traffic;
pub mod usage;
pub mod wait;
pub mod witness;
pub mod ws_proxy;
