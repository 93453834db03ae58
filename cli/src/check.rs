//! `wirepost check`: the cluster's checks of declarations, without a cluster.

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;
use serde_json::json;

use crate::{
    declarations::{self, Finding, Loaded, classes::ClassArgs},
    output,
};

/// Exit status if nothing could be checked; clap uses the same for an invalid command line.
const UNREADABLE: u8 = 2;

/// Check declarations as the cluster would, offline.
///
/// Exit status: 0 = all would be accepted and run, 1 = something is wrong, 2 = a file can't be read.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// YAML or JSON files, or folders with *.yaml, *.yml or *.json.
    #[arg(required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
    /// How problems are printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    classes: ClassArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// One line each: `file:line: field: what is wrong. What to do.` A note begins with `note: `; the cluster accepts
    /// what it points at.
    Text,
    /// One JSON object:
    /// `{"files", "businesses", "problems": [{"file", "line", "field", "reason", "message", "remedy"}], "notes": [the same]}`.
    Json,
}

pub(crate) fn run(Args { paths, output, classes }: Args) -> anyhow::Result<ExitCode> {
    let unreadable = |message: String| {
        output::error_line(&format!("wirepost: {message}"));
        Ok(ExitCode::from(UNREADABLE))
    };
    let Loaded { files, accepted, findings, notes } = match declarations::load(&paths, &classes) {
        Ok(loaded) => loaded,
        Err(error) => return unreadable(error.to_string()),
    };
    let businesses: Vec<String> = accepted.into_iter().map(|compiled| compiled.business).collect();
    match output {
        Output::Text => print_text(&files, &businesses, &findings, &notes)?,
        Output::Json => {
            let result = json!({"files": files.len(), "businesses": businesses, "problems": findings, "notes": notes});
            output::line(&result.to_string())?;
        }
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_text(
    files: &[PathBuf],
    businesses: &[String],
    findings: &[Finding],
    notes: &[Finding],
) -> std::io::Result<()> {
    for note in notes {
        output::line(&format!("note: {note}"))?;
    }
    for finding in findings {
        output::line(&finding.to_string())?;
    }
    let files = count(files.len(), "file", "files");
    output::line(&match (findings.len(), businesses) {
        (0, names) => format!("{files}: valid: {}", names.join(", ")),
        (n, []) => format!("{files}: {}", count(n, "problem", "problems")),
        (n, names) => format!("{files}: {}; valid: {}", count(n, "problem", "problems"), names.join(", ")),
    })
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
