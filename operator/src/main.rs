//! `wirepost-operator`: two replicas, one of which leads.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use wirepost_operator::{app::App, args::Args};
use wirepost_runtime::program;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    program::run(args.log, "info", async |supervisor| {
        let settings = args.into_settings()?;
        let api = kube::Config::infer().await.context("cannot find the Kubernetes API server")?;
        App::start(api, settings, supervisor).await
    })
}
