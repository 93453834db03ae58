//! Test programs, as cargo names them, and their tests.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const CARGO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/cargo");

/// One test program.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    /// The folder of its package, where cargo runs it.
    folder: PathBuf,
}

/// One test of a program. Displayed as `program module::test`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    pub(crate) program: String,
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    pub(crate) folder: PathBuf,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.name)
    }
}

/// The programs whose names match one of these patterns, built if they are not.
pub(crate) fn find(patterns: &[String]) -> Result<Vec<Program>> {
    let mut command = Command::new(CARGO);
    command.args(["test", "--workspace", "--locked", "--no-run", "--message-format", "json-render-diagnostics"]);
    for pattern in patterns {
        command.args(["--test", pattern]);
    }
    let output = command.stderr(Stdio::inherit()).output().context(CARGO)?;
    ensure!(output.status.success(), "cargo test --no-run: {}", output.status);
    let mut programs = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: Value = serde_json::from_str(line).with_context(|| format!("a message of cargo: {line}"))?;
        if message["profile"]["test"] != true {
            continue;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if let (Some(name), Some(executable), Some(manifest)) =
            (text(&message["target"]["name"]), text(&message["executable"]), text(&message["manifest_path"]))
        {
            let folder = Path::new(&manifest).parent().context("a manifest without a folder")?.to_owned();
            programs.push(Program { name, executable: executable.into(), folder });
        }
    }
    ensure!(!programs.is_empty(), "no test program matches {patterns:?}");
    Ok(programs)
}

impl Program {
    /// Its tests, with those that are ignored or without.
    pub(crate) fn tests(&self, ignored: bool) -> Result<Vec<Test>> {
        let mut names = self.list(&[])?;
        if !ignored {
            let left_out = self.list(&["--ignored"])?;
            names.retain(|name| !left_out.contains(name));
        }
        let test = |name| Test {
            program: self.name.clone(),
            name,
            executable: self.executable.clone(),
            folder: self.folder.clone(),
        };
        Ok(names.into_iter().map(test).collect())
    }

    fn list(&self, more: &[&str]) -> Result<Vec<String>> {
        let output = Command::new(&self.executable).args(["--list", "--format", "terse"]).args(more).output()?;
        ensure!(output.status.success(), "{} --list: {}", self.name, output.status);
        let lines = String::from_utf8(output.stdout)?;
        Ok(lines.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }
}
