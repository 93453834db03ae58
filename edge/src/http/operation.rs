//! The operations of the public HTTP interface. The router serves these and nothing else, and the test of who may do
//! what (`tests/tests/edge/matrix.rs`) tries each of them.

use std::sync::Arc;

use axum::{
    http::Method,
    routing::{MethodRouter, delete, get, post},
};

use crate::audit::Action;

use super::{description, messages, presence, sessions, socket, state::State, token};

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Gets the URL of a socket.
    Token,
    /// Pushes messages to clients.
    Push,
    /// Ends sessions.
    Revoke,
    /// Asks which clients are connected.
    Presence,
    /// Asks which of many identities are.
    Online,
    /// Reads what clients may send and receive.
    Describe,
    /// Opens a socket.
    Connect,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Token, Self::Push, Self::Describe, Self::Connect, Self::Revoke, Self::Presence, Self::Online];

    /// Its method.
    pub fn method(self) -> Method {
        match self {
            Self::Token | Self::Describe | Self::Connect | Self::Presence => Method::GET,
            Self::Push | Self::Online => Method::POST,
            Self::Revoke => Method::DELETE,
        }
    }

    /// Its path; parameters are in braces.
    pub fn path(self) -> &'static str {
        match self {
            Self::Token => "/{business}/websocket/token",
            Self::Push => "/{business}/websocket/messages",
            Self::Revoke => "/{business}/websocket/sessions",
            Self::Presence | Self::Online => "/{business}/websocket/presence",
            Self::Describe => "/{business}/asyncapi.json",
            Self::Connect => socket::PATH,
        }
    }

    /// Further paths of it.
    pub fn other_paths(self) -> &'static [&'static str] {
        if self == Self::Connect { &socket::BARE_PATHS } else { &[] }
    }

    /// In the audit.
    pub(super) fn action(self) -> Action {
        match self {
            Self::Token => Action::Token,
            Self::Push => Action::Push,
            Self::Revoke => Action::Revoke,
            Self::Presence | Self::Online => Action::Presence,
            Self::Describe => Action::Describe,
            Self::Connect => Action::Connect,
        }
    }

    /// Whether pages of the business's `allowedOrigins` may call it, and no others.
    pub(super) fn checks_origin(self) -> bool {
        matches!(self, Self::Token | Self::Push | Self::Revoke | Self::Presence | Self::Online)
    }

    pub(super) fn handler(self) -> MethodRouter<Arc<State>> {
        match self {
            Self::Token => get(token::token),
            Self::Push => post(messages::messages),
            Self::Revoke => delete(sessions::revoke),
            Self::Presence => get(presence::presence),
            Self::Online => post(presence::online),
            Self::Describe => get(description::describe),
            Self::Connect => get(socket::socket),
        }
    }
}
