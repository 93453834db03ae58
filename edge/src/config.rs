//! What an edge is started with: flags, settings, and files that are read again when they change.

pub mod args;
pub mod reload;
pub mod settings;
