//! The edge: terminates WebSockets, hands out connection tokens, and carries messages between clients and the broker.
//! It keeps no state that matters: clients carry their position, any edge can continue it.
//!
//! Each layer knows only those above it in this list:
//!
//! - `wirepost_runtime`, [`metrics`], [`audit`], [`drain`], [`ids`], [`bucket`], [`budget`], [`turn`],
//!   [`reads`], [`lateness`]: what everything may use
//! - [`address`]: where a client is, and the limits of its address; [`strangers`]: who has not been let in
//! - [`broker`]: RabbitMQ, or a broker inside the process
//! - [`config`]: flags, settings, files that are read again
//! - [`identity`]: keys, tickets, JWT, API keys
//! - [`compression`]: what is compressed of a socket, and how
//! - [`business`]: one business as declared, its events, checks of large content
//! - [`push`]: from the broker to the clients: who is addressed, what was missed, what waits to be written
//! - [`undelivered`]: who gave no receipt in time
//! - [`catalog`]: all businesses, each with its connections; [`source`]: where their configurations come from
//! - [`presence`]: who is here, on one edge and on all; [`peers`]: the other edges
//! - [`revocation`]: sessions and tokens that are good no more
//! - [`socket`]: a client's connection
//! - [`http`]: the calls of clients and services; [`net`]: the public port below it; [`admin`]: the other port
//! - [`balance`]: lets clients go for an even load; [`census`]: tells businesses how many there are
//! - [`app`]: wires and runs all of it; `program`: from flags to a running app

use wirepost_runtime::clock;

pub mod address;
pub mod admin;
pub mod app;
pub mod audit;
pub mod balance;
pub mod bucket;
pub mod budget;
pub mod business;
pub mod catalog;
pub mod census;
pub mod compression;
pub mod config;
pub mod drain;
pub mod http;
pub mod identity;
pub mod ids;
pub mod lateness;
pub mod metrics;
pub mod net;
pub mod peers;
pub mod presence;
#[cfg(feature = "kubernetes")]
pub mod program;
pub mod push;
pub mod reads;
pub mod revocation;
pub mod socket;
pub mod source;
pub mod strangers;
pub mod turn;
pub mod undelivered;

pub use wirepost_broker as broker;
