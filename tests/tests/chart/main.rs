//! The Helm chart: what it renders, and what a real API server says to that.

mod alerts;
mod api_server;
mod generated;
mod life;
mod refused;
mod render;
mod rendered;
mod values;
