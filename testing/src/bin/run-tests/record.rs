//! How long each test took the last time it passed, kept in the target folder from run to run.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::programs::{Program, Test};

const FILE: &str = "test-seconds";

/// One line for each test: seconds, program, name.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    seconds: BTreeMap<String, f64>,
}

impl Record {
    /// The one of the target folder of these programs (`target/debug/deps/PROGRAM`); empty if there is none.
    pub(crate) fn beside(programs: &[Program]) -> Result<Self> {
        let target = programs.first().and_then(|program| program.executable.ancestors().nth(3));
        let path = target.context("a program outside of a target folder")?.join(FILE);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let entry = |line: &str| {
            let (seconds, name) = line.trim_start().split_once(' ')?;
            Some((name.to_owned(), seconds.parse().ok()?))
        };
        Ok(Self { path, seconds: text.lines().filter_map(entry).collect() })
    }

    /// What a test took the last time; very long, where that is unknown.
    pub(crate) fn last(&self, test: &Test) -> Duration {
        self.seconds.get(&test.to_string()).map_or(Duration::MAX, |seconds| Duration::from_secs_f64(*seconds))
    }

    pub(crate) fn note(&mut self, test: &Test, took: Duration) {
        self.seconds.insert(test.to_string(), took.as_secs_f64());
    }

    pub(crate) fn save(&self) -> Result<()> {
        let mut lines = String::new();
        for (test, seconds) in &self.seconds {
            writeln!(lines, "{seconds:8.1} {test}")?;
        }
        std::fs::write(&self.path, lines).with_context(|| self.path.display().to_string())
    }
}
