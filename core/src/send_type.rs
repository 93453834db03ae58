//! The direction of a message.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The direction of a message; the same words in the resource and in the envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SendType {
    /// From a client to the business's queue.
    ClientToServer,
    /// From the business to clients.
    ServerToClient,
    /// From a client to clients.
    ClientToClient,
}

impl SendType {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientToServer => "ClientToServer",
            Self::ServerToClient => "ServerToClient",
            Self::ClientToClient => "ClientToClient",
        }
    }

    /// The direction that a word on the wire names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::ClientToServer, Self::ServerToClient, Self::ClientToClient].into_iter().find(|s| s.as_str() == word)
    }
}

impl fmt::Display for SendType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
