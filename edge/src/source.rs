//! The sources of configurations: a directory with a file per business, or a namespace with a ConfigMap per business.
//!
//! Both parse each configuration as a whole, keep the last accepted one if a new one can't be read, and make the edge
//! ready only after the first complete load.

pub mod directory;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;

/// The part that `/readyz` waits for. Added before the edge listens, so that it is never ready too early.
pub const PART: &str = "configuration";

/// The name of the task that follows the source.
pub const TASK: &str = "configurations";
