//! The edge: terminates WebSockets, hands out connection tokens, and carries messages between clients and the broker. It keeps no state
//! that matters: clients carry their position, any edge can continue it.
//!
//! - [`program`]: from flags to a running [`app`], which wires the rest; [`settings`], [`catalog`] (the businesses), [`source`] (where they come from)
//! - [`listener`], [`tls`], [`http`], [`admin`]: who may reach what
//! - [`identity`]: keys, tickets, JWT, API keys
//! - [`socket`]: a client's connection; [`push`]: from the broker to the sockets; [`push_check`]: what may be pushed
//! - [`judge`]: checks of large content, off the threads that serve sockets
//! - [`charge`]: what a client pays for input that brings nothing
//! - [`broker`]: RabbitMQ, or a broker inside the process
//! - [`drain`], [`metrics`], [`events`], [`seldom`]

use wirepost_runtime::clock;

pub mod admin;
pub mod app;
pub mod args;
pub mod business;
pub mod catalog;
pub mod charge;
pub mod drain;
pub mod events;
pub mod http;
pub mod identity;
pub mod judge;
pub mod listener;
pub mod metrics;
pub mod places;
#[cfg(feature = "kubernetes")]
pub mod program;
pub mod push;
pub mod push_check;
pub mod reload;
pub mod seldom;
pub mod settings;
pub mod socket;
pub mod source;
pub mod state;
pub mod tls;

pub use wirepost_broker as broker;
