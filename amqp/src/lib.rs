//! Reads and moves messages of any publisher without interpreting them.
//!
//! A general client decodes every property of a message. One that it can't decode, such as an `app_id` that is not UTF-8, costs it the
//! whole connection, and the broker delivers the same message to the next connection. The two clients here leave properties as
//! bytes:
//!
//! - [`v091`]: AMQP 0-9-1. Reads whatever was published by AMQP 0-9-1, and publishes with many unconfirmed messages ([`v091::Pipe`]).
//! - [`v10`]: AMQP 1.0. Reads whatever was published by AMQP 1.0. RabbitMQ translates between the two, and if it can't (an
//!   application property of type uuid, a header of type decimal) it closes the connection with code 541. So what one client can't
//!   receive, the other can.
//!
//! Neither has tasks or threads of its own: a connection makes progress only in the future that uses it, and dropping it closes the
//! socket.

mod error;
mod socket;
pub mod v091;
pub mod v10;

pub use error::Error;
