//! Identities: tickets and the keys that sign them, tokens of clients, API keys of services.
//!
//! A client presents a [`jwt`] of its issuer, or its business's service presents an [`api_key`]; either gets a
//! [`ticket`] that every edge with the same [`keys`] verifies on its own.

mod expiring;

pub mod api_key;
pub mod claims;
pub mod grant;
pub mod jwks;
pub mod jwt;
pub mod key_set;
pub mod keys;
pub mod peer_seal;
pub mod succession;
pub mod ticket;
pub mod used;
