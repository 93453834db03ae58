//! What the operator and the edges must agree on. Each fact stands here once, and both read it from here: two versions of them run side by
//! side during an upgrade, so a change of anything in this folder has to be understood by the version before.
//!
//! - [`edge_config`]: what an edge knows of a business. [`config_map`]: the ConfigMap that carries it.
//! - [`control`]: what edges tell each other by the control stream.
//! - [`configz`]: what an edge answers when it is asked what it runs.
//! - [`edge_user`]: who the edges are on the broker.
//! - [`key_file`]: the keys that sign tickets.
//! - [`headers`]: headers and properties of AMQP messages.
//! - [`marker`]: a message that says nothing to clients.
//! - [`condition`]: the conditions of a resource and the reasons that they can have.

pub mod condition;
pub mod config_map;
pub mod configz;
pub mod control;
pub mod edge_config;
pub mod edge_user;
pub mod headers;
pub mod key_file;
pub mod marker;
