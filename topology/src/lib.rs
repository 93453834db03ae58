//! Gives a RabbitMQ vhost the topology that [`wirepost_core`] compiles. The operator and `wirepost dev` both use it.
//!
//! - [`Management`]: the management API of one vhost.
//! - [`apply()`]: makes a vhost match the topology and reports what still differs. All in one, for tests.
//!
//! The same in parts, for a thousand businesses:
//! - [`Snapshot`]: what the vhost has, read once for all of them;
//! - [`Snapshot::plan`]: the difference for one business and its broker users, without I/O;
//! - [`apply_plan()`]: carries it out and checks that our policies are in force;
//! - [`depths`]: counts the messages that need a person;
//! - [`unrouted`]: finds unrouted messages and moves them back.
//!
//! And [`keeper`], which repeats all of that, for as many businesses as there are.
//!
//! Nothing that contains messages is deleted, nothing without our prefix is touched, and an object that differs in what can't be changed
//! is reported, never replaced.

pub mod actual;
mod apply;
mod bindings;
mod control;
pub mod depth;
pub mod depths;
mod destroys;
mod effective;
mod error;
pub mod keeper;
mod open;
pub mod ownership;
mod plan;
mod ready;
mod report;
mod reserved;
mod room;
mod snapshot;
mod step;
pub mod unrouted;
mod users;
mod write;

pub use actual::Actual;
pub use apply::{ApplyOptions, Options, apply, apply_plan};
pub use depth::{Depth, KeepReason, Looks, UnknownDepth};
pub use error::Error;
pub use open::{ACCEPT_ARGUMENT, OpenQueues, OpenQueuesError};
pub use plan::{Plan, Scope, merge, plan};
pub use report::{Affected, Problem, ReplicaRepair, Report};
pub use reserved::{BusinessOwner, Evidence};
pub use snapshot::Snapshot;
pub use step::Step;
pub use users::{
    Access, DesiredUser, EDGE_RIGHTS, EdgeRight, UserLimits, business_user, edge_user, edge_user_with, user_tag,
};
