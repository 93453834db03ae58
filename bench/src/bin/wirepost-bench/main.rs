//! Measures the edge beside a real RabbitMQ: memory and CPU of idle connections, fanout, unicast, client → server with confirms, and the
//! way from a business's publish to a client; memory while large messages pass or clients come and go; clients that come back. Reports;
//! asserts nothing. Numbers of different runs differ with the machine's load: compare within one.
//!
//! `make bench-edge`, or by hand with a broker's addresses in the environment (`tests/services/rabbitmq start`):
//! `cargo run --release -p wirepost-bench --bin wirepost-bench -- [idle|tls|storm|backlog|churn=SECONDS|fanout|floods[=PART-OF-A-NAME]|compression|large|unicast|http|receive|overload|latency …]`

mod backlog;
mod churn;
mod clients;
mod compression;
mod fanout;
mod floods;
mod idle;
mod large;
mod overload;
mod receive;
mod returning;
mod storm;
mod unicast;

use anyhow::{Context, Result};
use wirepost_bench::DECLARATION;
use wirepost_testing::setup::Setup;

#[tokio::main]
async fn main() -> Result<()> {
    // One TLS stack; an error says that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let asked: Vec<String> = std::env::args().skip(1).collect();
    // `name` or `name=number`.
    let asked: Vec<_> = asked.iter().map(|one| one.split_once('=').unwrap_or((one, ""))).collect();
    let wants = |name: &str| asked.is_empty() || asked.iter().any(|(one, _)| *one == name);
    let number = |name: &str| asked.iter().find(|(one, _)| *one == name).and_then(|(_, number)| number.parse().ok());
    if wants("idle") {
        idle::run(&Setup::new(&[DECLARATION]).await?, false).await?;
    }
    if wants("tls") {
        idle::run(&Setup::new(&[DECLARATION]).await?, true).await?;
    }
    if wants("storm") {
        storm::run(&Setup::new(&[DECLARATION]).await?).await?;
    }
    if wants("backlog") {
        backlog::after_a_death(&Setup::new(&[DECLARATION]).await?).await?;
        backlog::old_cursors(&Setup::new(&[DECLARATION]).await?).await?;
    }
    if wants("churn") {
        churn::run(&Setup::new(&[DECLARATION]).await?, number("churn").unwrap_or(60)).await?;
    }
    if wants("latency") {
        unicast::latency(&Setup::new(&[DECLARATION]).await?).await?;
        unicast::paced(&Setup::new(&[DECLARATION]).await?).await?;
    }
    if wants("unicast") {
        unicast::throughput(&Setup::new(&[DECLARATION]).await?).await?;
    }
    if wants("fanout") {
        fanout::paced(&Setup::new(&[DECLARATION]).await?).await?;
        fanout::at_full_rate(&Setup::new(&[DECLARATION]).await?).await?;
    }
    if wants("compression") {
        compression::run(DECLARATION).await?;
    }
    if wants("large") {
        let largest = DECLARATION.replace("burst: 20000", "burst: 20000, messageBytes: 1048576, pushBytes: 4194304");
        let setup = async || Setup::new(&[&largest]).await;
        large::push(&setup().await?, 4_500, 250_000, false).await?;
        large::push(&setup().await?, 2_000, 250_000, true).await?;
        large::push(&setup().await?, 1_000, 4_000_000, false).await?;
        large::uploads(&setup().await?, 1_000, 500_000).await?;
        large::uploads(&setup().await?, 500, 1_000_000).await?;
        large::unfinished(&setup().await?, 400, 126 << 10).await?;
    }
    if wants("receive") {
        receive::run(async || Setup::new(&[DECLARATION]).await).await?;
    }
    if wants("http") {
        receive::http(&Setup::new(&[DECLARATION]).await?).await?;
    }
    if wants("floods") {
        let only = asked.iter().find(|(one, _)| *one == "floods").map_or("", |(_, only)| only);
        floods::run(&Setup::new(&[DECLARATION, &wirepost_testing::floods::declaration()]).await?, only).await?;
    }
    if wants("overload") {
        overload::run(async || Setup::new(&[DECLARATION]).await).await?;
    }
    Ok(())
}

/// The broker's process, as `tests/services/rabbitmq` reports it.
fn broker_pid() -> Result<u32> {
    let pid = std::env::var("WIREPOST_TEST_BROKER_PID").context("WIREPOST_TEST_BROKER_PID is not set")?;
    pid.parse().context("WIREPOST_TEST_BROKER_PID is no number; the broker must not run in Docker")
}
