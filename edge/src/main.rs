//! `wirepost-edge`: one process per pod.

use std::process::ExitCode;

use clap::Parser;
use wirepost_edge::{config::args::Args, program};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    wirepost_runtime::program::run(args.log, "info", async |supervisor| program::start(args, supervisor).await)
}
