//! Seeded bugs: one change of the product's text each, which the simulation must find. They stand here and not in the
//! product, which has no branches for tests; a unit test shows that each text is still there.
//!
//! A copy of the sources gets all of them at once, each behind a question that is answered when the program starts: so
//! the product is compiled once, not once for each.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

mod list;

pub(crate) use list::ALL;

/// A seeded bug. In `to`, `SEEDED` is whether it is on; while it is not, `to` must do what `from` does.
pub(crate) struct Mutation {
    pub(crate) name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// Tells a program which seeded bug is on, by its place in [`ALL`].
pub(crate) const SEEDED: &str = "WIREPOST_SEEDED_BUG";
/// Every crate with a seeded bug has this one among its dependencies.
const ASKED: &str = "runtime/src/lib.rs";
const ANSWER: &str = r#"
/// Whether this seeded bug is on.
pub fn seeded(number: usize) -> bool {
    static ON: std::sync::LazyLock<Option<usize>> =
        std::sync::LazyLock::new(|| std::env::var("WIREPOST_SEEDED_BUG").ok().and_then(|on| on.parse().ok()));
    *ON == Some(number)
}
"#;

/// The sources of `repository` with all seeded bugs, in `copy`.
pub(crate) fn apply(repository: &Path, copy: &Path) -> Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository)
        .output()?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    for file in String::from_utf8(listed.stdout)?.split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (repository.join(file), copy.join(file));
        let Ok(old) = fs::read(&from) else { continue };
        let new = match String::from_utf8(old) {
            Ok(text) => mutated(file, text)?.into_bytes(),
            Err(other) => other.into_bytes(),
        };
        // What is as it was keeps its time: it is not compiled again.
        if fs::read(&to).is_ok_and(|old| old == new) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        fs::write(&to, new)?;
        fs::set_permissions(&to, fs::metadata(&from)?.permissions())?;
    }
    Ok(())
}

/// The text of a file with its seeded bugs.
fn mutated(file: &str, mut text: String) -> Result<String> {
    for (number, mutation) in ALL.iter().enumerate().filter(|(_, mutation)| mutation.file == file) {
        let Mutation { name, from, to, .. } = mutation;
        ensure!(text.matches(from).count() == 1, "{name}: correct its text in {file}");
        text = text.replacen(from, &to.replace("SEEDED", &format!("wirepost_runtime::seeded({number})")), 1);
    }
    if file == ASKED {
        text.push_str(ANSWER);
    }
    Ok(if file == "Cargo.toml" || file == "Cargo.lock" { other_version(&text) } else { text })
}

/// Our packages have another version in the copy: cargo tells packages of one folder for what is compiled apart by that,
/// not by where they are.
fn other_version(text: &str) -> String {
    let mut ours = false;
    let line = |line: &str| {
        let number = line.strip_prefix("version = \"").and_then(|rest| rest.strip_suffix('"')).filter(|_| ours);
        let other = number.map(|number| format!("version = \"{number}-seeded\"\n"));
        ours = line == "[workspace.package]" || line.starts_with("name = \"wirepost") || (ours && other.is_none());
        other.unwrap_or_else(|| format!("{line}\n"))
    };
    text.lines().map(line).collect()
}

/// Builds the simulation from these sources, with the profile of this program; its program.
pub(crate) fn build(source: &Path, target: &Path) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().and_then(Path::file_name).context("a program without a folder")?;
    let profile = if folder == "debug" { "dev".as_ref() } else { folder };
    let status = Command::new(source.join("scripts/cargo"))
        .args(["build", "--workspace", "--locked", "--bin", "wirepost-simulate", "--profile"])
        .arg(profile)
        .env("CARGO_TARGET_DIR", target)
        .current_dir(source)
        .status()?;
    ensure!(status.success(), "the mutated sources do not compile");
    Ok(target.join(folder).join("wirepost-simulate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_every_seeded_bug_is_in_the_product() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut wrong = Vec::new();
        for mutation in ALL {
            let text = fs::read_to_string(repository.join(mutation.file)).unwrap();
            assert!(mutation.to.contains("SEEDED"), "{}: it is always on", mutation.name);
            wrong.extend(mutated(mutation.file, text).err().map(|error| error.to_string()));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(ANSWER.contains(SEEDED));
    }
}
