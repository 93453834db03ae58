//! A soak with real parts, and its auditor: edges, a broker, services and clients of all kinds, faults in random combination, and at the end
//! the question whether every promise was kept.
//!
//! - [`record`]: what was observed. It is all that the auditor knows; it asks no edge.
//! - [`audit`]: the promises of docs/protocol.md, as functions of a record.
//! - [`report`]: what people read, with the whole life of each message of a violation.
//! - [`plan`]: five businesses, and what is sent in each.
//! - [`world`]: broker, edges and the proxies around them.
//! - [`publisher`], [`consumer`], [`member`]: a business's services, and its clients.
//! - [`witness`]: reads the streams from the broker itself, without any of our code.
//! - [`faults`]: what happens meanwhile.
//! - [`lies`]: proxies that break promises, so that the auditor itself is tested.
//! - [`run`]: the phases of a run.

pub mod audit;
pub mod chance;
pub mod consumer;
pub mod faults;
pub mod lies;
pub mod member;
pub mod plan;
pub mod publisher;
pub mod record;
pub mod report;
pub mod run;
pub mod witness;
pub mod world;
