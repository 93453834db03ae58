//! Measures the operator on a real API server and RabbitMQ with real edges: a thousand businesses in fifty namespaces. How long a cold
//! start takes, how long one change takes, what an idle operator costs. Reports; asserts nothing. Numbers of different runs differ with the
//! machine's load: compare within one.
//!
//! `make bench-operator`, or by hand:
//! `scripts/with-kubernetes cargo run --release -p wirepost-bench --bin wirepost-operator-bench -- [BUSINESSES [EDGES]]`

mod changes;
mod fixture;
mod idle;
mod observer;
mod requests;
mod start;

use anyhow::{Context, Result};

use crate::fixture::Fixture;

const BUSINESSES: usize = 1_000;
const EDGES: usize = 4;

#[tokio::main]
async fn main() -> Result<()> {
    // One TLS stack; an error says that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| {
        arguments.next().map_or(Ok(default), |text| text.parse().with_context(|| format!("{text} is not a number")))
    };
    let (businesses, edges) = (number(BUSINESSES)?, number(EDGES)?);
    let fixture = Fixture::new(businesses, edges).await?;
    let operator = start::on_an_empty_broker(&fixture).await?;
    idle::run(&fixture, &operator).await?;
    changes::of_a_limit(&fixture, &operator).await?;
    changes::of_a_route(&fixture, &operator).await?;
    let operator = start::with_everything_there(&fixture, operator).await?;
    idle::run(&fixture, &operator).await?;
    start::on_a_broker_rebuilt_empty(&fixture, &operator).await?;
    start::removal(&fixture, &operator).await
}
