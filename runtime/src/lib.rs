//! What every program of ours needs around its work.
//!
//! - [`tasks`]: supervised tasks; one that ends or panics unasked ends the process
//! - [`backoff`]: growing, jittered pauses between attempts
//! - [`clock`]: wall-clock time as the wire has it
//! - [`network`]: how a broker is reached
//! - [`readiness`]: what a process still waits for before it may take traffic
//!
//! With the feature `program`:
//!
//! - [`program`]: runs a program from its first log line to its exit status
//! - [`logs`], [`tls`], [`signals`]: the parts of that
//! - [`admin`]: `/livez`, `/readyz` and `/metrics`, answered even when connections or file descriptors run out
//! - [`accept`], [`http1`]: accepting connections, and HTTP/1.1 on them
//! - [`descriptors`]: the limit of open files, a part of which is reserved for the admin port

pub mod backoff;
pub mod clock;
pub mod network;
pub mod readiness;
pub mod tasks;

#[cfg(feature = "program")]
pub mod accept;
#[cfg(feature = "program")]
pub mod admin;
#[cfg(feature = "program")]
pub mod descriptors;
#[cfg(feature = "program")]
pub mod http1;
#[cfg(feature = "program")]
pub mod logs;
#[cfg(feature = "program")]
pub mod program;
#[cfg(feature = "program")]
pub mod signals;
#[cfg(feature = "program")]
pub mod tls;
