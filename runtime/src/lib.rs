//! What wirepost's programs have in common as processes.
//!
//! - [`logs`]: the flag and the filter; no library writes what it carries into a log
//! - [`admin`]: serves probes and metrics, also where connections or descriptors run out
//! - [`descriptors`]: the limit of open files, a part of which is kept for the admin port

pub mod admin;
pub mod descriptors;
pub mod logs;
