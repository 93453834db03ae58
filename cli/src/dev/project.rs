//! The declarations of the files followed: what runs, which is the last good configuration of each business, and what has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use wirepost_core::{Compiled, Problem, edge_config::ApiKey};

use crate::{
    declarations::{self, Contents, Declaration, Finding},
    edge,
};

/// Files, and what they came to.
pub(super) struct Project {
    paths: Vec<PathBuf>,
    api_key: Option<String>,
    files: BTreeMap<PathBuf, Seen>,
    running: BTreeMap<String, Compiled>,
    /// What was wrong at the last look.
    findings: Vec<Finding>,
    /// What was worth a note at the last look.
    notes: Vec<Finding>,
}

/// A file at the last look.
struct Seen {
    text: Result<String, String>,
    /// What it last declared well; while something in it is bad also what it declared before.
    good: Vec<Declaration>,
    findings: Vec<Finding>,
    notes: Vec<Finding>,
}

/// What a look has brought.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Businesses that run now and did not.
    pub added: Vec<String>,
    /// Businesses that run differently.
    pub changed: Vec<String>,
    /// Businesses that run no more.
    pub removed: Vec<String>,
    /// Businesses whose file is bad now and that run as before.
    pub kept: Vec<String>,
    /// Everything that is wrong now, if that has changed.
    pub findings: Vec<Finding>,
    /// Everything that is read in another way than it looks, if that has changed.
    pub notes: Vec<Finding>,
    /// Something was wrong at the last look and nothing is any more.
    pub fine_again: bool,
}

impl Change {
    pub(super) fn is_nothing(&self) -> bool {
        let Self { added, changed, removed, kept, findings, notes, fine_again } = self;
        added.is_empty()
            && changed.is_empty()
            && removed.is_empty()
            && kept.is_empty()
            && findings.is_empty()
            && notes.is_empty()
            && !fine_again
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

    /// Folders that hold the files.
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
        let mut declarations = self.files.values().flat_map(|seen| &seen.good);
        declarations.find(|d| d.business.owner() == compiled.owner).map(|d| d.file.as_path())
    }

    /// Reads the files again. At the first look a path that is not there is an error; later it means that its businesses are gone.
    ///
    /// # Errors
    /// A path can't be read; nothing has changed.
    pub(super) fn look(&mut self, first: bool) -> anyhow::Result<Change> {
        let there: Vec<PathBuf> = self.paths.iter().filter(|path| first || path.exists()).cloned().collect();
        let found: BTreeSet<PathBuf> = declarations::find(&there)?.into_iter().collect();
        let mut texts = BTreeMap::new();
        for path in found {
            match declarations::read(&path) {
                Ok(text) => texts.insert(path, Ok(text)),
                // Gone between the two looks.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !first => None,
                Err(error) => texts.insert(path, Err(error.to_string())),
            };
        }
        let same = texts.iter().eq(self.files.iter().map(|(path, seen)| (path, &seen.text)));
        if same && !first {
            return Ok(Change::default());
        }
        let mut kept_owners = BTreeSet::new();
        let files = self.judge(texts, &mut kept_owners);
        let all: Vec<Declaration> = files.values().flat_map(|seen| seen.good.iter().cloned()).collect();
        let (accepted, between) = declarations::compile_all(all);
        let findings: Vec<Finding> =
            files.values().flat_map(|seen| seen.findings.iter().cloned()).chain(between).collect();
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
            change.fine_again = findings.is_empty();
        }
        let notes: Vec<Finding> = files.values().flat_map(|seen| seen.notes.iter().cloned()).collect();
        if notes != self.notes {
            change.notes.clone_from(&notes);
        }
        (self.files, self.running, self.findings, self.notes) = (files, running, findings, notes);
        Ok(change)
    }

    /// Judges the files whose text is new, with the last good declarations of bad ones. Owners that are kept that way go to `kept`.
    fn judge(
        &self,
        texts: BTreeMap<PathBuf, Result<String, String>>,
        kept: &mut BTreeSet<String>,
    ) -> BTreeMap<PathBuf, Seen> {
        let stored = |owner: &str| -> Option<&Value> {
            let mut before = self.files.values().flat_map(|seen| &seen.good);
            before.find(|declaration| declaration.business.owner() == owner).map(|declaration| &declaration.value)
        };
        let mut files = BTreeMap::new();
        for (path, text) in texts {
            let before = self.files.get(&path);
            if let Some(Seen { text: old, good, findings, notes }) = before
                && *old == text
            {
                let seen = Seen { text, good: good.clone(), findings: findings.clone(), notes: notes.clone() };
                files.insert(path, seen);
                continue;
            }
            let Contents { mut good, findings, notes } = match &text {
                Ok(text) => declarations::judge(&path, text, stored),
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
                // Which of the old declarations a bad one means can't always be told, so all are kept that are not declared anew.
                let anew: BTreeSet<String> = good.iter().map(|d| d.business.owner()).collect();
                for old in before.map(|seen| seen.good.as_slice()).unwrap_or_default() {
                    if !anew.contains(&old.business.owner()) {
                        kept.insert(old.business.owner());
                        good.push(old.clone());
                    }
                }
            }
            files.insert(path, Seen { text, good, findings, notes });
        }
        files
    }

    fn with_key(&self, mut compiled: Compiled) -> Compiled {
        let key = self.api_key.clone().unwrap_or_else(|| edge::dev_key(&compiled.business));
        let sha256 = Sha256::digest(key).iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        compiled.config.auth.api_keys = vec![ApiKey { sha256, expires_at: None }];
        compiled
    }
}

#[cfg(test)]
mod tests;
