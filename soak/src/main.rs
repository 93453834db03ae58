//! `make soak SECONDS=… SEED=…`: see docs/development.md.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use wirepost_soak::report::{self, Figures};
use wirepost_soak::run::{Found, Options, run};

/// Runs edges, a broker, services and clients, breaks them in random combination, and audits every promise. Needs the debug programs.
#[derive(Parser)]
struct Args {
    /// For how long faults happen.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Which faults, clients and pauses: a failed run prints it. By default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Edges at the same time.
    #[arg(long, default_value_t = 2)]
    edges: usize,
    /// Nodes of the broker: 1 or 3.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// With an operator, on the API server that `scripts/with-kubernetes` starts.
    #[arg(long)]
    operator: bool,
    /// Milliseconds between two messages of each of the ten services, on average.
    #[arg(long, default_value_t = 300)]
    pace: u64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("soak: {} s, seed {seed}", args.seconds);
    let options = Options {
        time: Duration::from_secs(args.seconds),
        seed,
        edges: args.edges,
        pace: Duration::from_millis(args.pace),
        nodes: args.nodes,
        operator: args.operator,
        lies: false,
    };
    let Found { record, violations, world } = run(options).await?;
    let figures = Figures::of(&record);
    println!("{figures:#?}\ngaps:{}", report::gaps(&record));
    if violations.is_empty() {
        println!("soak: seed {seed}: every promise was kept");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nwhat happened:\n{}", report::timeline(&record));
    println!("{}", report::violations(&record, &violations));
    println!("\nsoak: {} promises broken. Again: make soak SECONDS={} SEED={seed}", violations.len(), args.seconds);
    report::keep_logs(world.setup.dir(), seed)?;
    Ok(ExitCode::FAILURE)
}
