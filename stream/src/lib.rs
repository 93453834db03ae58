//! A consumer of [RabbitMQ streams](https://www.rabbitmq.com/docs/streams) that does not go quiet.
//!
//! - One connection carries many subscriptions; chunks are handed on undecoded, message bodies are slices of them.
//! - A [`Subscription`] is supervised: it survives lost connections, frozen brokers, deleted and recreated streams, and goes on with
//!   exactly the message after the last one. Where it cannot, it says so: [`Event::Gap`], [`Event::Reset`].
//! - Everything is bounded: memory by credits and a budget of bytes, every call and pause by time.
//!
//! It reads only; it does not publish, and it stores no offsets on the broker: keep a [`Position`] yourself.
//!
//! ```no_run
//! # async fn example() -> Result<(), wirepost_stream::Error> {
//! use wirepost_stream::{Client, Config, Credentials, Event, Start};
//!
//! let credentials = || Credentials { username: "guest".into(), password: "guest".into() };
//! let client = Client::new(Config::new("localhost", 5552, credentials));
//! let mut subscription = client.subscribe("orders", Start::First);
//! while let Some(event) = subscription.recv().await {
//!     match event {
//!         Event::Messages(batch) => {
//!             for message in &batch {
//!                 println!("{} {} bytes", message.offset(), message.body().len());
//!             }
//!         }
//!         other => println!("{other:?}"),
//!     }
//! }
//! # Ok(()) }
//! ```

mod amqp10; // sections and values of a message
mod backoff; // pauses between attempts
mod batch; // messages of a chunk
mod chunk; // stored chunks, positions, fingerprints
mod client; // the entry point
mod codec; // frames and their fields
mod config; // settings
mod connection; // one socket: calls, subscriptions, liveness
mod error; // why something did not work
mod flow; // credits and the byte budget
mod handshake; // from a host to a connection
mod metrics; // counters
mod pool; // connections of a client
mod read; // bounded reads
mod subscription; // what a reader sees
mod supervisor; // keeps a subscription alive

pub use amqp10::{BodyKind, Sections, Value};
pub use batch::{Batch, Message, Messages};
pub use chunk::{Position, fingerprint};
pub use client::Client;
pub use codec::{Malformed, ResponseCode};
pub use config::{Config, Credentials, SUBSCRIPTIONS_PER_CONNECTION};
pub use connection::StreamStats;
pub use error::Error;
pub use metrics::{Counter, Counters, Gauge};
pub use read::ReadBatch;
pub use subscription::{Event, Start, Subscription};
