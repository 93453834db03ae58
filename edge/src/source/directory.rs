//! A directory with one JSON file per business.
//!
//! Files are looked at every [`INTERVAL`] and compared by content, because a mounted ConfigMap changes by a symlink swap. Each file is
//! parsed whole; where one can't be read, its business keeps the last good configuration.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use wirepost_core::edge_config::BusinessConfig;

use super::PART;
use crate::{catalog::Catalog, metrics::Metrics, readiness::Readiness, reload};

/// How often the directory is looked at.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A directory of configurations.
pub struct Directory {
    path: PathBuf,
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    /// Content of each file at the last look, and the business that it last gave.
    seen: BTreeMap<PathBuf, (Vec<u8>, Option<String>)>,
}

impl Directory {
    /// Nothing is read yet; [`PART`] is done after the first complete load.
    pub fn new(path: PathBuf, catalog: Arc<Catalog>, metrics: Arc<Metrics>, readiness: Arc<Readiness>) -> Self {
        Self { path, catalog, metrics, readiness, seen: BTreeMap::new() }
    }

    /// Follows the directory until `cancel`.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut failed = None;
        let mut loaded = false;
        loop {
            match self.files().await {
                Ok(files) => {
                    failed = None;
                    let seen = self.seen.iter().map(|(path, (content, _))| (path, content));
                    if !loaded || seen.ne(&files) {
                        self.load(files);
                        loaded = true;
                    }
                }
                Err(error) => {
                    let reason = error.to_string();
                    if failed.as_ref() != Some(&reason) {
                        tracing::error!(directory = %self.path.display(), reason, "cannot read the configurations; what is loaded stays in use");
                        failed = Some(reason);
                    }
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn files(&self) -> std::io::Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut files = BTreeMap::new();
        let mut entries = tokio::fs::read_dir(&self.path).await?;
        while let Some(entry) = entries.next_entry().await? {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let content = reload::read(&path).await?;
                files.insert(path, content);
            }
        }
        Ok(files)
    }

    fn load(&mut self, files: BTreeMap<PathBuf, Vec<u8>>) {
        let (mut configs, mut keep, mut seen) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (path, content) in files {
            let business = match serde_json::from_slice::<BusinessConfig>(&content) {
                Ok(config) => {
                    let business = config.business_type.clone();
                    configs.push(config);
                    Some(business)
                }
                Err(error) => {
                    let last = self.last_good(&path);
                    self.metrics.bad_configs.inc();
                    tracing::error!(file = %path.display(), %error, business = last, "configuration can't be read; the last good one stays in use");
                    keep.extend(last.clone());
                    last
                }
            };
            seen.insert(path, (content, business));
        }
        for bad in self.catalog.replace(configs, &keep) {
            tracing::error!(reason = %bad, "configuration can't be run; the last good one stays in use");
        }
        self.seen = seen;
        self.readiness.done(PART);
    }

    fn last_good(&self, path: &Path) -> Option<String> {
        self.seen.get(path).and_then(|(_, business)| business.clone())
    }
}
