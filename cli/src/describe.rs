//! `wirepost describe`: the description of a business as its edges serve it, without an edge.

mod html;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::ValueEnum;
use wirepost_core::{
    Compiled,
    asyncapi::{self, Part, markdown},
};

use crate::{
    declarations::{self, Loaded, classes::ClassArgs},
    output,
};

/// An address that nobody has.
const EXAMPLE_URL: &str = "wss://ws.example";

/// Write the AsyncAPI description of a business to stdout, as its edges serve it: what clients and services send and get.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// YAML or JSON files, or folders with *.yaml, *.yml or *.json.
    #[arg(required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
    /// How it is written.
    #[arg(long, short, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Which business, where the files declare several.
    #[arg(long)]
    business: Option<String>,
    /// How clients reach the edges.
    #[arg(long, default_value = EXAMPLE_URL)]
    url: wirepost_core::PublicUrl,
    /// For whom: edges give `clients` to everybody where auth.publicDescription is true, and `all` to the business's
    /// services.
    #[arg(long = "for", value_enum, default_value_t = Readers::All)]
    readers: Readers,
    /// For `html`: the folder of the npm package @asyncapi/react-component, which draws the page. Get it by
    /// `npm install @asyncapi/react-component`.
    #[arg(long, value_name = "FOLDER", default_value = html::RENDERER)]
    renderer: PathBuf,
    #[command(flatten)]
    classes: ClassArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// An AsyncAPI 3.0 document.
    Json,
    /// A page of text.
    Markdown,
    /// A page for a browser, drawn by AsyncAPI's own renderer, which is written into it.
    Html,
}

#[derive(Clone, Copy, ValueEnum)]
enum Readers {
    /// Authors of clients: without the broker and the calls of services.
    Clients,
    /// The business's own team: everything.
    All,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Loaded { accepted, findings, .. } = declarations::load(&args.paths, &args.classes)?;
    for finding in &findings {
        output::error_line(&finding.to_string());
    }
    anyhow::ensure!(findings.is_empty(), "nothing is described of declarations that are refused");
    let compiled = chosen(&accepted, args.business.as_deref())?;
    let part = match args.readers {
        Readers::Clients => Part::Clients,
        Readers::All => Part::All,
    };
    let document = asyncapi::asyncapi(&compiled.config, &args.url.websocket(), part);
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&document)?,
        Format::Markdown => markdown::markdown(&document),
        Format::Html => html::page(&document, &args.renderer)?,
    };
    output::line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn chosen<'a>(accepted: &'a [Compiled], named: Option<&str>) -> anyhow::Result<&'a Compiled> {
    let all = || accepted.iter().map(|one| one.business.as_str()).collect::<Vec<_>>().join(", ");
    match (named, accepted) {
        (Some(name), _) => accepted
            .iter()
            .find(|one| one.business == name)
            .with_context(|| format!("no business {name} is declared there; there are: {}", all())),
        (None, [one]) => Ok(one),
        (None, []) => anyhow::bail!("no business is declared there"),
        (None, _) => anyhow::bail!("several businesses are declared there: {}; choose one with --business", all()),
    }
}
