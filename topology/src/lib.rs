//! Makes a RabbitMQ vhost have the topology that [`wirepost_core`] compiles: `wirepost dev` and the operator both call this.
//!
//! - [`Management`]: the management API of one vhost.
//! - [`apply()`]: makes a vhost as declared and reports what it could not make true. All in one, for `wirepost dev` and tests.
//!
//! The same in parts, for the operator, which has a thousand businesses:
//! - [`Snapshot`]: what the vhost has, read once for all of them;
//! - [`Snapshot::plan`]: the difference for one business and its broker users, without I/O;
//! - [`apply_plan()`]: carries it out and checks that our policies are in force;
//! - [`depths`]: counts the messages that wait for a person.
//! - [`unrouted`]: finds and moves back what a lost binding had put aside.
//!
//! And [`keeper`], which does all of that again and again, for as many businesses as there are.
//!
//! Nothing that holds messages is deleted, nothing without our prefix is touched, and an object that differs in what can't be changed is
//! reported, never replaced.

pub mod actual;
mod apply;
mod bindings;
mod count;
pub mod depths;
mod in_force;
pub mod keeper;
mod open;
mod plan;
mod report;
mod snapshot;
mod step;
pub mod unrouted;
mod users;
mod write;

pub use actual::Actual;
pub use apply::{ApplyOptions, Options, apply, apply_plan};
pub use open::{ACCEPT_ARGUMENT, BadOpenQueues, OpenQueues};
pub use plan::{Plan, Scope, merge, plan};
pub use report::{Error, KeptBecause, Problem, Report};
pub use snapshot::Snapshot;
pub use step::Step;
pub use users::{DesiredUser, business_user, user_tag};
