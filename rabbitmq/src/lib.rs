//! How wirepost's programs reach a RabbitMQ. Operator, edge and command line share it, so that the same URI, the same credential files and the same
//! CA file mean the same to each of them.
//!
//! - [`Address`]: an AMQP URI; [`Credentials`]: the user, with files that a rotation replaces; [`Secret`]: what no log may show
//! - [`BrokerTls`]: which certificates are trusted and which one is shown, with [files](TlsFiles) that a renewal replaces
//! - [`Endpoint`]: all of these, resolved for one connection; [`Connection`]: that connection, by lapin
//! - [`ManagementClient`]: the management API of one vhost
//!
//! It knows RabbitMQ and nothing of wirepost: no names of objects, no businesses.

#![warn(missing_docs)]

mod address;
mod connection;
mod credentials;
mod endpoint;
mod management;
mod secret;
mod tls;

pub use address::{Address, AddressError};
pub use connection::{ConnectError, Connection};
pub use credentials::{CredentialFiles, Credentials, CredentialsError, Login};
pub use endpoint::Endpoint;
pub use management::{CallError, ManagementClient, ManagementError, ManagementSettings};
pub use secret::Secret;
pub use tls::{BrokerTls, ClientFiles, TlsError, TlsFiles};
