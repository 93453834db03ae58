//! Where configurations come from: a directory with a file per business, or a namespace with a ConfigMap per business.
//!
//! Both parse each configuration whole, keep the last good one where a new one can't be read, and let the edge be ready only after their
//! first complete load.

pub mod directory;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;

/// What `/readyz` waits for. Added before the edge listens, so that it is never ready by mistake.
pub const PART: &str = "configuration";

/// The name of the task that follows them.
pub const TASK: &str = "configurations";
