//! A directory with one JSON file per business.
//!
//! Files are polled every [`INTERVAL`] and compared by content, because a mounted ConfigMap changes by a symlink swap.
//! Each file counts on its own: one that can't be read or used keeps its business's last accepted configuration and
//! affects no other. A business is removed when its file is missing at two polls in a row, so that replacing a file by
//! deleting and writing it disconnects no client.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use wirepost_core::edge_config::BusinessConfig;
use wirepost_runtime::readiness::Pending;

use crate::{catalog::Catalog, config::reload, metrics::Metrics};

/// How often the directory is polled.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A directory of configurations.
pub struct Directory {
    path: PathBuf,
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
    /// Until the first complete load.
    pending: Option<Pending>,
    /// Every file of the last poll, and those of the poll before.
    seen: BTreeMap<PathBuf, Seen>,
}

/// A file at the last poll.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    content: Content,
    /// The business that it last declared.
    business: Option<String>,
    /// Another file is used for that business.
    rival: bool,
}

impl Seen {
    /// The business that stays as it is if `path` can't be read. A file that has declared none so far is assumed to
    /// declare the one in its name.
    fn keeps(&self, path: &Path) -> Option<String> {
        let named = || Some(path.file_stem()?.to_str()?.to_owned());
        if self.rival { None } else { self.business.clone().or_else(named) }
    }
}

/// The content of a file at a poll, to detect changes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Digest([u8; 32]),
    /// Why it can't be read.
    Unreadable(String),
    Missing,
}

type Look = BTreeMap<PathBuf, Result<Vec<u8>, String>>;

impl Directory {
    /// Nothing is read yet. `pending` is dropped after the first complete load.
    pub fn new(path: PathBuf, catalog: Arc<Catalog>, metrics: Arc<Metrics>, pending: Pending) -> Self {
        Self { path, catalog, metrics, pending: Some(pending), seen: BTreeMap::new() }
    }

    /// Follows the directory until `cancel`.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut failed = None;
        let mut loaded = false;
        loop {
            match self.look().await {
                Ok(look) => {
                    failed = None;
                    self.catalog.set_current(loaded);
                    if !loaded || self.differs(&look) {
                        self.load(look);
                        loaded = true;
                    }
                }
                Err(error) => {
                    self.catalog.set_current(false);
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

    async fn look(&self) -> io::Result<Look> {
        let mut look = Look::new();
        let mut entries = tokio::fs::read_dir(&self.path).await?;
        while let Some(entry) = entries.next_entry().await? {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let content = reload::read(&path).await.map_err(|error| error.to_string());
                look.insert(path, content);
            }
        }
        Ok(look)
    }

    fn differs(&self, look: &Look) -> bool {
        // A file that is missing now, or was at the last poll, requires a decision.
        self.seen.len() != look.len()
            || self.seen.iter().any(|(path, seen)| look.get(path).is_none_or(|now| seen.content != content(now)))
    }

    fn load(&mut self, look: Look) {
        let mut seen = BTreeMap::new();
        let mut files = Vec::new();
        for (path, read) in look {
            let content = content(&read);
            let parsed = read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
            let business = match parsed {
                Ok(config) => {
                    let config: BusinessConfig = config;
                    let business = config.business_type.clone();
                    files.push((path.clone(), config));
                    Some(business)
                }
                Err(reason) => {
                    let last = self.last_good(&path);
                    if self.is_new(&path, &content, false) {
                        self.metrics.bad_configs.inc();
                        tracing::error!(file = %path.display(), reason, business = last, "configuration can't be read; the last good one stays in use");
                    }
                    let rival = self.seen.get(&path).is_some_and(|seen| seen.rival);
                    seen.insert(path, Seen { content, business: last, rival });
                    continue;
                }
            };
            seen.insert(path, Seen { content, business, rival: false });
        }
        for (path, before) in &self.seen {
            if !seen.contains_key(path) && before.content != Content::Missing {
                let business = before.business.clone();
                seen.insert(path.clone(), Seen { content: Content::Missing, business, rival: false });
            }
        }
        let configs = self.decide(files, &mut seen);
        let keep: Vec<_> = seen.iter().filter_map(|(path, seen)| seen.keeps(path)).collect();
        for bad in self.catalog.replace(configs, &keep) {
            tracing::error!(reason = %bad, "configuration can't be run; the last good one stays in use");
        }
        self.seen = seen;
        self.pending = None;
    }

    /// Selects one configuration for each business. If two files declare one, the file with its name is used, else the
    /// one that was used before, else the first; the other one is refused.
    fn decide(
        &self,
        mut files: Vec<(PathBuf, BusinessConfig)>,
        seen: &mut BTreeMap<PathBuf, Seen>,
    ) -> Vec<BusinessConfig> {
        files.sort_by_key(|(path, config)| {
            let business = config.business_type.as_str();
            let named = path.file_stem().is_some_and(|stem| stem == business);
            let before =
                self.seen.get(path).is_some_and(|seen| !seen.rival && seen.business.as_deref() == Some(business));
            (!named, !before)
        });
        // A file that can't be read at the moment stays selected: another one must not replace it.
        let broken = seen.iter().filter(|(path, seen)| {
            !seen.rival && seen.content != Content::Missing && files.iter().all(|(file, _)| file != *path)
        });
        let mut deciding: BTreeMap<String, PathBuf> =
            broken.filter_map(|(path, seen)| Some((seen.business.clone()?, path.clone()))).collect();
        let mut configs = Vec::with_capacity(files.len());
        for (path, config) in files {
            let business = &config.business_type;
            let Some(decides) = deciding.get(business) else {
                deciding.insert(business.clone(), path);
                configs.push(config);
                continue;
            };
            let Some(entry) = seen.get_mut(&path) else { continue };
            entry.rival = true;
            if self.is_new(&path, &entry.content, true) {
                self.metrics.bad_configs.inc();
                tracing::error!(file = %path.display(), business, decides = %decides.display(), "another file declares this business and is used; delete one of the two");
            }
        }
        configs
    }

    fn last_good(&self, path: &Path) -> Option<String> {
        self.seen.get(path).and_then(|seen| seen.business.clone())
    }

    /// Whether this content was not refused before, and must be reported.
    fn is_new(&self, path: &Path, content: &Content, rival: bool) -> bool {
        self.seen.get(path).is_none_or(|seen| seen.content != *content || seen.rival != rival)
    }
}

fn content(read: &Result<Vec<u8>, String>) -> Content {
    match read {
        Ok(text) => Content::Digest(Sha256::digest(text).into()),
        Err(reason) => Content::Unreadable(reason.clone()),
    }
}
