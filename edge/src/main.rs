//! `wirepost-edge`: one process per pod.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wirepost_edge::{
    app::App,
    args::Args,
    broker::rabbit::RabbitBroker,
    identity::keys::KeyRing,
    readiness::Readiness,
    source::{self, Source, directory::Directory, kubernetes::ConfigMaps},
};
use wirepost_runtime::{descriptors, logs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    logs::init(args.log, "info");
    // One TLS stack; it fails only when a provider is installed already, and then that one serves.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot run");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut parts = args.into_parts().context("--public-url (WIREPOST_PUBLIC_URL)")?;
    let shortage = descriptors::raise().and_then(|files| parts.settings.fit(files));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = ?parts.settings, "starting");
    if let Some(shortage) = shortage {
        tracing::warn!("{shortage}");
    }
    let keys = Arc::new(KeyRing::load(parts.keys_file).await?);
    let broker = RabbitBroker::start(parts.rabbit.into_config(&parts.settings.edge)?)?;
    let readiness = Arc::new(Readiness::default());
    readiness.add(source::PART);
    let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
    let app = App::start(parts.settings, Arc::clone(&keys), Arc::new(broker), Arc::clone(&readiness)).await?;
    tracing::info!(public = %app.public, admin = %app.admin, "listening");
    let (catalog, metrics) = (Arc::clone(&app.state.catalog), Arc::clone(&app.state.metrics));
    let mut source = match parts.source {
        Source::Directory(path) => tasks.spawn(Directory::new(path, catalog, metrics, readiness).run(cancel.clone())),
        Source::Kubernetes { namespace, removal_grace } => {
            let config_maps = source::kubernetes::connect(&namespace).await?;
            tasks.spawn(ConfigMaps::new(config_maps, removal_grace, catalog, metrics, readiness).run(cancel.clone()))
        }
    };
    tasks.spawn(keys.watch(cancel.clone()));
    // Ready for ever with the declarations of yesterday would be worse than a restart.
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut source => Some(anyhow::anyhow!("configurations are not followed any more: {ended:?}")),
    };
    if let Some(failure) = &failure {
        tracing::error!(error = %failure, "ending");
    }
    tokio::select! {
        () = app.shutdown() => {}
        _ = terminate.recv() => tracing::warn!("second signal: ending at once"),
        _ = interrupt.recv() => tracing::warn!("second signal: ending at once"),
    }
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
    failure.map_or(Ok(()), Err)
}
