//! What every part of wirepost must agree on, without I/O.
//!
//! - [`business`]: the `WsBusiness` resource; [`class`]: the policy of a platform team; [`validate`]: the rules of both, offline; [`crd`]:
//!   their definitions; [`problem`]: what is wrong with one
//! - [`compile`](mod@compile): declarations → broker [`topology`] + edge configuration; [`names`]: broker objects
//! - [`destruction`]: what a changed declaration would destroy
//! - [`contract`]: what operator and edges agree on
//! - [`envelope`], [`frames`], [`identity`], [`cursor`], [`send_type`]: the wire; [`asyncapi`]: its description
//! - [`content`], [`pattern`], [`origin`], [`key_set`], [`issuer_address`],
//!   [`public_url`]: what declarations contain, and how it is matched

#![warn(missing_docs)]

pub mod asyncapi;
pub mod business;
pub mod class;
pub mod compile;
pub mod content;
pub mod contract;
pub mod crd;
pub mod cursor;
pub mod destruction;
pub mod envelope;
pub mod frames;
pub mod hex;
pub mod identity;
pub mod issuer_address;
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
pub use hex::hex;
pub use problem::Problem;
pub use public_url::PublicUrl;
pub use send_type::SendType;
