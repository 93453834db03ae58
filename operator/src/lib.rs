//! The operator: WsBusiness resources → RabbitMQ topology, credentials, edge configurations, status.
//!
//! - [`app`]: wires everything; [`args`]: flags.
//! - [`reconcile`]: what is done for one resource, and when. [`stored`]: a resource as it is stored, readable or not. [`conditions`]: what is
//!   reported about it. [`triggers`]: further reasons to reconcile it.
//! - [`classes`]: the platform team's policy, which decides what is accepted.
//! - [`broker`]: the vhost, which all businesses share. [`edges`]: what the edges run. [`config_map`]: what they are to run;
//!   [`config_watch`]: whether others change it; [`acceptances`]: whom a change concerns beside.
//! - [`access`]: credentials of services. [`keys`]: keys of the edges, [`edge_user`]: their broker user. [`seed`]: what all are derived from. [`secret_watch`]: Secrets that
//!   may be watched.
//! - [`leader`]: one writer among replicas. [`writer`]: every write to the API server. [`events`]: Kubernetes events. [`api_client`]: how
//!   we are connected.
//! - [`installation`]: which installation this is. [`brake`]: holds mass deletions.
//! - [`crd_check`]: is the installed CRD recent enough? [`metrics`]: metrics. [`census`]: how many businesses have which condition.

/// Target of log lines about what an administrator or a team ordered that ends something. Who ordered it stands in the audit log of the API
/// server.
pub const AUDIT: &str = "wirepost_operator::audit";

pub mod acceptances;
pub mod access;
pub mod api_client;
pub mod app;
pub mod args;
pub mod brake;
pub mod broker;
pub mod census;
pub mod classes;
pub mod conditions;
pub mod config_map;
pub mod config_watch;
pub mod crd_check;
pub mod edge_user;
pub mod edges;
pub mod events;
pub mod fresh;
pub mod installation;
pub mod keys;
pub mod leader;
pub mod metrics;
pub mod reconcile;
pub mod secret_watch;
pub mod seed;
pub mod stored;
pub mod triggers;
pub mod writer;
