//! `wirepost generate`: types of a client library from declarations, so that its compiler checks messages.

mod typescript;

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;
use wirepost_core::Compiled;

use crate::{
    declarations::{self, Loaded, classes::ClassArgs},
    output,
};

/// Write the types of a client library for the messages of declarations, to stdout.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The language.
    #[arg(value_enum)]
    language: Language,
    /// YAML or JSON files, or folders with *.yaml, *.yml or *.json.
    #[arg(required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    classes: ClassArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Language {
    /// For @wirepost/client: one interface for each client type of a business.
    Typescript,
}

pub(crate) fn run(Args { language, paths, classes }: Args) -> anyhow::Result<ExitCode> {
    let Loaded { accepted, findings, .. } = declarations::load(&paths, &classes)?;
    for finding in &findings {
        output::error_line(&finding.to_string());
    }
    // Half of the types would compile, and be wrong.
    anyhow::ensure!(findings.is_empty(), "nothing is generated from declarations that are refused");
    output::line(generate(language, &accepted).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn generate(language: Language, businesses: &[Compiled]) -> String {
    match language {
        Language::Typescript => typescript::module(businesses.iter().map(|compiled| &compiled.config)),
    }
}
