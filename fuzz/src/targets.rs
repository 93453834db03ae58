//! The targets, by what they feed.

pub(crate) mod claims;
pub(crate) mod configuration;
pub(crate) mod control;
pub(crate) mod cursor;
pub(crate) mod declaration;
pub(crate) mod envelope;
pub(crate) mod head;
pub(crate) mod inflate;
pub(crate) mod keys;
pub(crate) mod pattern;
pub(crate) mod properties;
pub(crate) mod seal;
pub(crate) mod sections;
pub(crate) mod splice;
pub(crate) mod stream;
pub(crate) mod ticket;
pub(crate) mod websocket;
pub(crate) mod yaml;
