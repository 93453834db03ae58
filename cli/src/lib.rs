//! `wirepost`, the tool of business teams: the whole layer on one machine (`dev`), the cluster's checks without a
//! cluster (`check`), types for clients (`generate`), descriptions (`describe`), what would change on the broker (`diff`), dead letters (`dead`),
//! and a service and a client to try it with (`push`, `listen`, `revoke`).

mod check;
mod dead;
mod declarations;
mod describe;
mod dev;
mod diff;
mod edge;
mod generate;
mod listen;
mod output;
mod push;
mod revoke;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};
use wirepost_runtime::{
    logs::{self, LogArgs},
    tls,
};

/// The log filter without WIREPOST_LOG. `dev` reports the broker's state itself; the edge's log names refused origins.
const LOG_FILTER: &str = "error,wirepost_edge=warn,wirepost_edge::http::origin=info";

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
    Revoke(revoke::Args),
    Dead(dead::Args),
    Generate(generate::Args),
    Describe(describe::Args),
}

/// For `fuzz/`: what a file of declarations declares, and the lines of its problems and notes.
#[doc(hidden)]
pub fn declared(file: &[u8]) -> (Vec<wirepost_core::edge_config::BusinessConfig>, Vec<usize>) {
    declarations::declared(file)
}

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logs::init(LogArgs::default(), LOG_FILTER);
    tls::install_provider();
    match run(cli.command) {
        Ok(code) => code,
        // The reader of our output is done: `wirepost listen … | head -1`.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::error_line(&format!("wirepost: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match command {
        Command::Check(args) => check::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Describe(args) => describe::run(&args),
        Command::Diff(args) => runtime()?.block_on(diff::run(args)),
        Command::Dev(args) => runtime()?.block_on(dev::run(args)),
        Command::Dead(args) => runtime()?.block_on(dead::run(args)),
        Command::Push(args) => runtime()?.block_on(push::run(args)),
        Command::Revoke(args) => runtime()?.block_on(revoke::run(args)),
        Command::Listen(args) => {
            let runtime = runtime()?;
            let result = runtime.block_on(listen::run(args));
            // A thread that reads stdin can't be interrupted: it ends with the process.
            runtime.shutdown_background();
            result
        }
    }
}
