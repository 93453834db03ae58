//! What every part of wirepost must agree on, without I/O: the `WsBusiness` declaration, the envelope and control frames of the wire,
//! broker names, and `compile`: declarations -> broker topology + edge configuration.

pub mod asyncapi;
pub mod business;
pub mod compile;
pub mod content;
pub mod contract;
pub mod crd;
pub mod cursor;
pub mod envelope;
pub mod frames;
pub mod key_set;
pub mod names;
pub mod origin;
pub mod pattern;
pub mod problem;
pub mod public_url;
pub mod send_type;
pub mod topology;
pub mod validate;

pub use business::{WsBusiness, WsBusinessSpec};
pub use compile::{Compilation, Compiled, Rejection, compile};
pub use contract::{condition::Reason, edge_config};
pub use cursor::Cursor;
pub use envelope::{Envelope, EnvelopeError};
pub use problem::Problem;
pub use public_url::PublicUrl;
pub use send_type::SendType;
