//! The Helm chart: what it renders, and what a real API server says to that.

mod alerts;
mod api_server;
mod generated;
mod life;
mod refused;
mod releases;
mod render;
mod rendered;
mod secrets_policy;
mod values;
mod warnings;
