//! Who calls: tickets and the keys that sign them, tokens of clients, keys of services.
//!
//! A client shows a [`jwt`] of its issuer, or its business's service shows an [`api_key`]; either gets a [`ticket`] that every edge with the
//! same [`keys`] verifies without asking anybody.

pub mod api_key;
mod claims;
pub mod jwks;
pub mod jwt;
pub mod key_set;
pub mod keys;
pub mod ticket;
