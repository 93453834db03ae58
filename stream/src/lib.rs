#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod amqp10; // sections and values of a message
mod batch; // the messages of a chunk
mod chunk; // stored chunks, positions, fingerprints
mod client; // the entry point
mod codec; // frames and their fields
mod config; // settings
mod connection; // one socket: calls, subscriptions, liveness
mod error; // errors
mod flow; // credits and the byte budget
#[doc(hidden)]
pub mod fuzzing; // what fuzz/ reaches
mod handshake; // from a host to a connection
mod metrics; // counters
mod pool; // connections of a client
mod read; // bounded reads
mod subscription; // the reader's side of a subscription
mod supervisor; // keeps a subscription alive

pub use amqp10::{BodyKind, Sections, Value, described, elements};
pub use batch::{Batch, Message, Messages};
pub use chunk::{Position, fingerprint};
pub use client::Client;
pub use codec::{Malformed, ResponseCode};
pub use config::{Config, Credentials, SUBSCRIPTIONS_PER_CONNECTION, Tls};
pub use connection::StreamStats;
pub use error::Error;
pub use metrics::{Counter, Counters, Gauge};
pub use read::ReadBatch;
pub use subscription::{Event, Start, Subscription};
