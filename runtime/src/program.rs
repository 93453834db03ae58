//! A program from its first log line to its exit status.
//!
//! **Flow.** Logs and the TLS provider, the runtime, the signals; then the program starts, and runs until the first signal or the failure
//! of a [supervised task](crate::tasks). Both begin the shutdown, which ends the program in order. Another signal ends it without order.
//! **Exit status.** 0, or 1 after a failure: of the start, or of a task at any time.

use std::process::ExitCode;

use anyhow::Context;

use crate::{
    logs::{self, LogArgs},
    signals::Signals,
    tasks::{Failure, Supervisor},
    tls,
};

/// A running program.
pub trait Program {
    /// Ends it in order; bounded in time. `failure`: what began the shutdown, if it was not a signal.
    fn shutdown(self, failure: Option<&Failure>) -> impl Future<Output = ()>;
}

/// Runs a program; the last thing that `main` does. `filter`: what is logged unless `WIREPOST_LOG` says otherwise. `start` binds every port
/// before it spawns anything, so that a taken port is an error of the start.
pub fn run<P: Program>(
    args: LogArgs,
    filter: &str,
    start: impl AsyncFnOnce(Supervisor) -> anyhow::Result<P>,
) -> ExitCode {
    logs::init(args, filter);
    tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(supervise(start));
    // What still runs is past its deadline and must not write any more.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

async fn supervise<P: Program>(start: impl AsyncFnOnce(Supervisor) -> anyhow::Result<P>) -> anyhow::Result<()> {
    let mut signals = Signals::register().context("cannot register for SIGTERM and SIGINT")?;
    let supervisor = Supervisor::default();
    let program = tokio::select! {
        program = start(supervisor.clone()) => program?,
        () = signals.recv() => {
            tracing::info!("a signal came before the start was complete: ending");
            return Ok(());
        }
    };
    let failure = tokio::select! {
        () = signals.recv() => None,
        failure = supervisor.failed() => Some(failure),
    };
    tokio::select! {
        () = program.shutdown(failure.as_ref()) => {}
        () = second(&mut signals, failure.is_some()) => tracing::warn!("second signal: ending at once"),
    }
    supervisor.failure().map_or(Ok(()), |failure| Err(failure.into()))
}

/// The signal that ends the process. After a failure the next signal only asks for the drain that is under way.
async fn second(signals: &mut Signals, failed: bool) {
    if failed {
        signals.recv().await;
    }
    signals.recv().await;
}
