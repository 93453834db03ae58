//! The edge as a process: from its flags to an [`App`] that follows its configurations.

use std::sync::Arc;

use wirepost_runtime::{
    descriptors,
    program::Program,
    readiness::Readiness,
    tasks::{Failure, Supervisor},
};

use crate::{
    app::App,
    broker::rabbit::RabbitBroker,
    config::args::{Args, Source},
    identity::keys::KeyRing,
    source::{self, directory::Directory, kubernetes::ConfigMaps},
};

/// Starts the edge that these flags describe.
///
/// # Errors
/// A flag, a file or an address can't be used, or a port is taken.
pub async fn start(args: Args, supervisor: Supervisor) -> anyhow::Result<App> {
    let mut parts = args.into_parts()?;
    let shortage = descriptors::raise().and_then(|files| parts.settings.fit(files));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = ?parts.settings, "starting");
    if let Some(shortage) = shortage {
        tracing::warn!("{shortage}");
    }
    let keys = Arc::new(KeyRing::load(parts.keys_file).await?);
    let broker = RabbitBroker::start(parts.rabbit.into_config(&parts.settings.edge)?, &supervisor)?;
    let readiness = Readiness::default();
    // Before the ports are bound: the edge must not be ready without a configuration.
    let pending = readiness.wait_for(source::PART);
    let app = App::start(parts.settings, keys, Arc::new(broker), readiness, supervisor).await?;
    tracing::info!(public = %app.public, admin = %app.admin, "listening");
    let (catalog, metrics) = (Arc::clone(&app.state.catalog), Arc::clone(&app.state.metrics));
    match parts.source {
        Source::Directory(path) => {
            app.spawn(source::TASK, |stop| Directory::new(path, catalog, metrics, pending).run(stop));
        }
        Source::Kubernetes { namespace, removal_grace } => {
            let config_maps = source::kubernetes::connect(&namespace).await?;
            let config_maps = ConfigMaps::new(config_maps, removal_grace, catalog, metrics, pending);
            app.spawn(source::TASK, |stop| config_maps.run(stop));
        }
    }
    Ok(app)
}

impl Program for App {
    async fn shutdown(self, _: Option<&Failure>) {
        self.shutdown().await;
    }
}
