//! The operator: WsBusiness resources → RabbitMQ topology, credentials, edge configurations, status.
//!
//! - [`app`]: wires everything; [`args`]: flags.
//! - [`stored`]: a resource as it is stored, readable or not. [`reconcile`]: what is done for one. [`status`]: what is reported of it.
//! - [`broker`]: the vhost, as all businesses share it. [`edges`]: what the edges run. [`access`]: credentials of services. [`keys`]: those of the edges. [`seed`]: what all are made of.
//! - [`leader`]: one writer among replicas. [`writer`]: every write to the API server. [`notices`]: events. [`api`]: how we are connected.
//! - [`triggers`]: reasons to look at a business again. [`definition`]: is the installed CRD recent enough?
//! - [`admin`], [`metrics`]: probes and numbers.

pub mod access;
pub mod admin;
pub mod api;
pub mod app;
pub mod args;
pub mod broker;
pub mod config_map;
pub mod definition;
pub mod edges;
pub mod keys;
pub mod leader;
pub mod metrics;
pub mod notices;
pub mod reconcile;
pub mod seed;
pub mod status;
pub mod stored;
pub mod triggers;
pub mod writer;
