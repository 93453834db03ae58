//! The broker user of the edges: the operator makes it and writes it to a Secret, which the edges mount.

/// The Secret in the operator's namespace.
pub const SECRET: &str = "wirepost-edge-user";
/// Its keys.
pub const USERNAME: &str = "username";
/// See [`USERNAME`].
pub const PASSWORD: &str = "password";
