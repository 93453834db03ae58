//! A directory with one JSON file per business.
//!
//! Files are looked at every [`INTERVAL`] and compared by content, because a mounted ConfigMap changes by a symlink swap. Each is judged by
//! itself: one that can't be read or run, whatever it is, keeps its business's last good configuration and stops no other. A business goes
//! when its file was missing at two looks in a row, so that one which is replaced by deleting and writing it loses no client.

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

/// How often the directory is looked at.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A directory of configurations.
pub struct Directory {
    path: PathBuf,
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
    /// Until the first complete load.
    pending: Option<Pending>,
    /// Every file of the last look, and those that were there at the one before.
    seen: BTreeMap<PathBuf, Seen>,
}

/// A file at the last look.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    content: Content,
    /// The business that it last gave.
    business: Option<String>,
    /// Another file decides over that business.
    rival: bool,
}

impl Seen {
    /// The business that stays as it is, if what `path` declares could not be read. A file that gave none so far declares the one that it is
    /// named after, as far as can be told.
    fn keeps(&self, path: &Path) -> Option<String> {
        let named = || Some(path.file_stem()?.to_str()?.to_owned());
        if self.rival { None } else { self.business.clone().or_else(named) }
    }
}

/// What a look at a file brought, to see whether it is another than last time.
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
        // What is missing now, or was at the last look, has to be judged.
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

    /// One configuration for each business. Of two files that name one, the one that bears its name decides, else the one that decided
    /// before, else the first; the other is refused.
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
        // A file that can't be read at the moment goes on deciding: another one must not slip in.
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
                tracing::error!(file = %path.display(), business, decides = %decides.display(), "another file decides over this business; delete one of the two");
            }
        }
        configs
    }

    fn last_good(&self, path: &Path) -> Option<String> {
        self.seen.get(path).and_then(|seen| seen.business.clone())
    }

    /// Whether this was not refused for the same content before, and is to be told.
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
