//! The file with the keys that sign tickets and resume tokens. All edges hold the same one; the operator makes it where nobody has.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The Secret in the operator's namespace that holds the file.
pub const SECRET: &str = "wirepost-edge-keys";
/// The file's name, and the Secret's key.
pub const NAME: &str = "keys.json";

/// Longest key id, in bytes: it is part of each ticket.
pub const MAX_ID: usize = 32;
/// Shortest secret, in bytes: the output of SHA-256 (RFC 2104, section 3).
pub const MIN_SECRET: usize = 32;
/// Most keys of a file.
pub const MAX_KEYS: usize = 32;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// Id of the key that signs.
    pub current: String,
    /// Keys whose signatures count, the current one among them.
    pub keys: Vec<Key>,
}

/// A key of the file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// What a ticket names it by, 1 to [`MAX_ID`] bytes.
    pub id: String,
    /// Base64 (standard alphabet) of [`MIN_SECRET`] random bytes or more.
    pub secret: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}
