//! `wirepost-simulate`: runs the edge's core on a simulated clock, network and broker, from seeds. See `docs/development.md`.

mod broker;
mod client;
mod declaration;
mod driver;
mod edge;
mod mutations;
mod network;
mod oracle;
mod scenario;
mod service;
mod several;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Runs the edge's core on a simulated clock, network and broker.
#[derive(Debug, Parser)]
struct Args {
    /// Seeds to run: how many from 1 on, or FIRST..LAST.
    #[arg(long, default_value = "1000")]
    seeds: driver::Seeds,
    /// Seeds of the day besides, so many: they differ each day.
    #[arg(long, default_value_t = 0)]
    of_the_day: u64,
    /// Runs this seed only, and tells everything that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Processes at the same time; by default as many as there are processors.
    #[arg(long)]
    jobs: Option<usize>,
    /// Checks the simulation itself: builds the product with seeded bugs, and looks for each.
    #[arg(long)]
    mutations: bool,
    /// Only for seeded bugs with this text in their names.
    #[arg(long)]
    bug: Option<String>,
    /// Inside the simulation: runs what the preloaded chance makes of it.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if args.inside {
        return driver::inside();
    }
    if args.mutations { driver::mutations(&args) } else { driver::run(&args) }
}
