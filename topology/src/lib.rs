//! Makes a RabbitMQ vhost have the topology that [`wirepost_core`] compiles: `wirepost dev` and the operator both call this.
//!
//! - [`Management`]: the management API of one vhost.
//! - [`Actual`]: what the vhost has, read in one call.
//! - [`plan()`]: the difference, without I/O.
//! - [`apply()`]: carries the plan out, checks that our policies are in force, and reports what it could not make true.
//! - [`unrouted`]: moves back what a lost binding had put aside.
//!
//! Nothing that holds messages is deleted, nothing without our prefix is touched, and an object that differs in what can't be changed is
//! reported, never replaced.

mod actual;
mod apply;
mod count;
mod management;
mod plan;
mod report;
pub mod unrouted;

pub use actual::Actual;
pub use apply::{Options, apply};
pub use management::{Credentials, Management, Settings};
pub use plan::{Plan, Scope, Step, merge, plan};
pub use report::{Error, Problem, Report};
