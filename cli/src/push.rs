//! `wirepost push`: publishes envelopes to a business's clients through the edge's messages call.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{
    edge::{self, Answer, Edge},
    output,
};

/// Largest input that is read; the edge refuses far smaller ones.
const MAX_BYTES: u64 = 64 << 20;

/// Push an envelope, or an array of them, to clients of a business.
///
/// Prints the result of each message on one line. Exit status: 0 = the broker confirmed all of them, 1 = not.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The business whose clients get it.
    business: String,
    /// The envelope(s) as JSON, `-` for stdin, or `@file`.
    message: String,
    /// The edge.
    #[arg(long, default_value = edge::DEFAULT_URL, env = "WIREPOST_URL")]
    url: String,
    /// Key of the business's services. Default: the key of `wirepost dev`, dev-<business>.
    #[arg(long, env = edge::API_KEY, hide_env_values = true)]
    api_key: Option<String>,
}

pub(crate) async fn run(Args { business, message, url, api_key }: Args) -> anyhow::Result<ExitCode> {
    let edge = Edge::new(&url)?;
    let body = body(&message)?;
    let key = api_key.unwrap_or_else(|| edge::dev_key(&business));
    let answer = edge.push(&business, &key, body).await?;
    report(&answer)
}

/// The JSON text, checked here so that an error in shell quoting shows what arrived.
fn body(message: &str) -> anyhow::Result<String> {
    let (text, source) = match message.strip_prefix('@') {
        Some(path) => (read_file(Path::new(path))?, PathBuf::from(path).display().to_string()),
        None if message == "-" => {
            let mut text = String::new();
            std::io::stdin().take(MAX_BYTES).read_to_string(&mut text).context("cannot read stdin")?;
            (text, "stdin".to_owned())
        }
        None => (message.to_owned(), "the message".to_owned()),
    };
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&text) {
        let begin: String = text.chars().take(80).collect();
        bail!(
            "{source} is not JSON: {error}; it begins with {begin:?}. Put the JSON in single quotes, or use @file or - for stdin"
        );
    }
    Ok(text)
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn report(answer: &Answer) -> anyhow::Result<ExitCode> {
    match &answer.data {
        Value::Array(outcomes) => {
            for line in outcomes.iter().flat_map(lines_of) {
                output::line(&line)?;
            }
        }
        outcome @ Value::Object(_) => {
            for line in lines_of(outcome) {
                output::line(&line)?;
            }
        }
        _ => output::error_line(&format!("wirepost: {} (result {})", answer.description, answer.result)),
    }
    Ok(if answer.result == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The result of one message as a line, or as one for each business that it names.
fn lines_of(outcome: &Value) -> Vec<String> {
    let businesses = outcome["businesses"].as_array().into_iter().flatten();
    let lines: Vec<String> = businesses
        .map(|business| {
            let mut of_business = business.clone();
            of_business["id"] = outcome["id"].clone();
            format!("{}: {}", business["business"].as_str().unwrap_or_default(), line_of(&of_business))
        })
        .collect();
    if lines.is_empty() { vec![line_of(outcome)] } else { lines }
}

/// One result as a line.
fn line_of(outcome: &Value) -> String {
    let text = |field: &str| outcome[field].as_str().unwrap_or_default();
    let id = outcome["id"].as_str().unwrap_or("(no id)");
    if outcome["result"] == 0 {
        return format!("confirmed {id}");
    }
    let field = if text("field").is_empty() { String::new() } else { format!(" [{}]", text("field")) };
    let repeat = match (outcome["retryable"] == true, outcome["mayHaveArrived"] == true) {
        (_, true) => "; it may have arrived anyway: repeat it with this id",
        (true, false) => "; it did not arrive: repeat it",
        (false, false) => "",
    };
    format!("refused {id}{field}: {} (result {}){repeat}", text("description"), outcome["result"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_json_is_shown() {
        let error = body("{messageType:payment}").unwrap_err().to_string();
        assert!(error.contains("{messageType:payment}") && error.contains("single quotes"), "{error}");
        assert!(body("@/nowhere/at/all").is_err());
        assert_eq!(body("{\"a\": 1}").unwrap(), "{\"a\": 1}");
    }

    #[test]
    fn a_refusal_says_whether_to_repeat() {
        let outcome = |result: u32, retryable: bool, may: bool| {
            line_of(
                &json!({"result": result, "id": "x", "description": "d", "retryable": retryable, "mayHaveArrived": may}),
            )
        };
        assert_eq!(outcome(0, false, false), "confirmed x");
        assert_eq!(outcome(40_003, false, false), "refused x: d (result 40003)");
        assert!(outcome(50_301, true, false).ends_with("it did not arrive: repeat it"));
        assert!(outcome(50_401, true, true).contains("may have arrived"));
        let businesses = json!([
            {"business": "a", "result": 0}, {"business": "b", "result": 40_302, "description": "d", "field": "businesses"},
        ]);
        let lines = lines_of(&json!({"result": 20_700, "id": "x", "businesses": businesses}));
        assert_eq!(lines, ["a: confirmed x", "b: refused x [businesses]: d (result 40302)"]);
    }
}
