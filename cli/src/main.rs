//! `wirepost`, the tool of business teams: the whole layer on one machine (`dev`), the cluster's verdict without a cluster (`check`), what
//! would change on the broker (`diff`), what services could not handle (`dead`), and the two hands of someone trying it (`push`, `listen`).

mod check;
mod dead;
mod declarations;
mod dev;
mod diff;
mod edge;
mod listen;
mod output;
mod push;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};
use wirepost_runtime::{
    logs::{self, LogArgs},
    tls,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is logged where WIREPOST_LOG says nothing. How the broker is, dev says itself; which page or app is refused, the edge's log tells.
const LOG_FILTER: &str = "error,wirepost_edge=warn,wirepost_edge::broker=error,wirepost_edge::http::origin=info";

/// The declared WebSocket layer: try it, check declarations, push and listen.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(dev::Args),
    Check(check::Args),
    Diff(diff::Args),
    Push(push::Args),
    Listen(listen::Args),
    Dead(dead::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logs::init(LogArgs::default(), LOG_FILTER);
    tls::install_provider();
    match run(cli.command) {
        Ok(code) => code,
        // Whoever read our output has seen enough: `wirepost listen … | head -1`.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::complain(&format!("wirepost: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match command {
        Command::Check(args) => check::run(args),
        Command::Diff(args) => runtime()?.block_on(diff::run(args)),
        Command::Dev(args) => runtime()?.block_on(dev::run(args)),
        Command::Dead(args) => runtime()?.block_on(dead::run(args)),
        Command::Push(args) => runtime()?.block_on(push::run(args)),
        Command::Listen(args) => {
            let runtime = runtime()?;
            let result = runtime.block_on(listen::run(args));
            // A thread that waits for a line on stdin can't be interrupted: it ends with the process.
            runtime.shutdown_background();
            result
        }
    }
}
