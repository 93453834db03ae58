//! The declarations of the watched files: what runs (the last valid configuration of each business) and what has
//! changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use wirepost_core::{Compiled, Problem, edge_config::ApiKey, hex, issuer_address};

use crate::{
    declarations::{self, Contents, Declaration, Finding},
    edge,
};

/// Files and their declarations.
pub(super) struct Project {
    paths: Vec<PathBuf>,
    api_key: Option<String>,
    files: BTreeMap<PathBuf, FileState>,
    running: BTreeMap<String, Compiled>,
    /// Problems at the last refresh.
    findings: Vec<Finding>,
    /// Notes at the last refresh.
    notes: Vec<Finding>,
}

/// A file at the last refresh.
struct FileState {
    text: Result<String, String>,
    /// Its last valid declarations; while something in it is invalid, also the ones before.
    valid: Vec<Declaration>,
    findings: Vec<Finding>,
    notes: Vec<Finding>,
}

/// The result of a refresh.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Businesses that are new.
    pub added: Vec<String>,
    /// Businesses that run differently.
    pub changed: Vec<String>,
    /// Businesses that no longer run.
    pub removed: Vec<String>,
    /// Businesses whose file is invalid now and that keep running unchanged.
    pub kept: Vec<String>,
    /// All problems, if they have changed.
    pub findings: Vec<Finding>,
    /// All notes, if they have changed.
    pub notes: Vec<Finding>,
    /// There were problems at the last refresh and now there are none.
    pub all_valid_again: bool,
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        let Self { added, changed, removed, kept, findings, notes, all_valid_again } = self;
        added.is_empty()
            && changed.is_empty()
            && removed.is_empty()
            && kept.is_empty()
            && findings.is_empty()
            && notes.is_empty()
            && !all_valid_again
    }
}

impl Project {
    pub(super) fn new(paths: Vec<PathBuf>, api_key: Option<String>) -> Self {
        let (files, running) = (BTreeMap::new(), BTreeMap::new());
        Self { paths, api_key, files, running, findings: Vec::new(), notes: Vec::new() }
    }

    /// What runs, by business type.
    pub(super) fn running(&self) -> impl Iterator<Item = &Compiled> {
        self.running.values()
    }

    /// Folders that contain the files.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        let folder = |path: &PathBuf| {
            if path.is_dir() {
                path.clone()
            } else {
                path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
            }
        };
        self.paths.iter().map(folder).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The file that declares a business.
    pub(super) fn file_of(&self, compiled: &Compiled) -> Option<&Path> {
        let mut declarations = self.files.values().flat_map(|state| &state.valid);
        declarations.find(|d| d.business.owner() == compiled.owner).map(|d| d.file.as_path())
    }

    /// Reads the files again. At first a missing path is an error; later it means that its businesses are removed.
    ///
    /// # Errors
    /// A path can't be read; nothing has changed.
    pub(super) fn refresh(&mut self, first: bool) -> anyhow::Result<Change> {
        let there: Vec<PathBuf> = self.paths.iter().filter(|path| first || path.exists()).cloned().collect();
        let found: BTreeSet<PathBuf> = declarations::find(&there)?.into_iter().collect();
        let mut texts = BTreeMap::new();
        for path in found {
            match declarations::read(&path) {
                Ok(text) => texts.insert(path, Ok(text)),
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !first => None,
                Err(error) => texts.insert(path, Err(error.to_string())),
            };
        }
        let same = texts.iter().eq(self.files.iter().map(|(path, state)| (path, &state.text)));
        if same && !first {
            return Ok(Change::default());
        }
        let mut kept_owners = BTreeSet::new();
        let files = self.check_changed(texts, &mut kept_owners);
        let all: Vec<Declaration> = files.values().flat_map(|state| state.valid.iter().cloned()).collect();
        let (accepted, between) = declarations::compile_all(all);
        let findings: Vec<Finding> =
            files.values().flat_map(|state| state.findings.iter().cloned()).chain(between).collect();
        let running: BTreeMap<String, Compiled> =
            accepted.into_iter().map(|c| (c.business.clone(), self.with_key(c))).collect();

        let mut change = Change::default();
        for (name, compiled) in &running {
            match self.running.get(name) {
                None => change.added.push(name.clone()),
                Some(old) if old != compiled => change.changed.push(name.clone()),
                Some(_) if kept_owners.contains(&compiled.owner) => change.kept.push(name.clone()),
                Some(_) => {}
            }
        }
        change.removed = self.running.keys().filter(|name| !running.contains_key(*name)).cloned().collect();
        if findings != self.findings {
            change.findings.clone_from(&findings);
            change.all_valid_again = findings.is_empty();
        }
        let notes: Vec<Finding> = files.values().flat_map(|state| state.notes.iter().cloned()).collect();
        if notes != self.notes {
            change.notes.clone_from(&notes);
        }
        (self.files, self.running, self.findings, self.notes) = (files, running, findings, notes);
        Ok(change)
    }

    /// Checks the files whose text has changed, and keeps the last valid declarations of invalid ones. Their owners go
    /// to `kept`.
    fn check_changed(
        &self,
        texts: BTreeMap<PathBuf, Result<String, String>>,
        kept: &mut BTreeSet<String>,
    ) -> BTreeMap<PathBuf, FileState> {
        let stored = |owner: &str| -> Option<&Value> {
            let mut before = self.files.values().flat_map(|state| &state.valid);
            before.find(|declaration| declaration.business.owner() == owner).map(|declaration| &declaration.value)
        };
        let mut files = BTreeMap::new();
        for (path, text) in texts {
            let before = self.files.get(&path);
            if let Some(FileState { text: old, valid, findings, notes }) = before
                && *old == text
            {
                let state = FileState { text, valid: valid.clone(), findings: findings.clone(), notes: notes.clone() };
                files.insert(path, state);
                continue;
            }
            let Contents { mut valid, classes: _, findings, notes } = match &text {
                Ok(text) => declarations::check(&path, text, stored),
                Err(error) => {
                    let problem = Problem::at(
                        "",
                        format!("can't be read: {error}"),
                        "check that it is a file, and its permissions",
                    );
                    let finding = Finding { file: path.clone(), line: 1, problem };
                    Contents { findings: vec![finding], ..Contents::default() }
                }
            };
            if !findings.is_empty() {
                // It is not always known which old declaration an invalid one replaces, so all are kept that are not
                // declared again.
                let again: BTreeSet<String> = valid.iter().map(|d| d.business.owner()).collect();
                for old in before.map(|state| state.valid.as_slice()).unwrap_or_default() {
                    if !again.contains(&old.business.owner()) {
                        kept.insert(old.business.owner());
                        valid.push(old.clone());
                    }
                }
            }
            files.insert(path, FileState { text, valid, findings, notes });
        }
        files
    }

    fn with_key(&self, mut compiled: Compiled) -> Compiled {
        let key = self.api_key.clone().unwrap_or_else(|| edge::dev_key(&compiled.business));
        let sha256 = hex(Sha256::digest(key));
        compiled.config.auth.api_keys = vec![ApiKey { sha256, expires_at: None }];
        // A developer's issuer is often on the same machine.
        if let Some(jwt) = &mut compiled.config.auth.jwt {
            jwt.trusted_issuers = jwt.key_address().and_then(issuer_address::trusted_entry).into_iter().collect();
        }
        compiled
    }
}

#[cfg(test)]
mod tests;
