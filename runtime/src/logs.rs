//! Logs, on stderr.
//!
//! The libraries below us log what they carry: a WebSocket library each frame at `trace`, a broker's client the bodies of returned
//! messages, HTTP libraries headers. Those are contents, tokens and passwords. So whatever filter an administrator sets, other crates log
//! warnings and errors only, and some of them nothing.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic::PanicHookInfo,
};

use clap::{ArgAction, builder::BoolishValueParser};
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt,
};

/// The variable with the filter.
const VARIABLE: &str = "WIREPOST_LOG";
/// Crates that log nothing: even their warnings contain bodies of messages.
const SILENT: [&str; 3] = ["lapin", "amq_protocol", "pinky_swear"];

/// The flag of every program that writes logs for machines.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct LogArgs {
    /// Logs as JSON, a line each. Alone it means true; true or false may follow it.
    #[arg(
        long,
        env = "WIREPOST_LOG_JSON",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        default_value = "false",
        default_missing_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    pub log_json: bool,
}

/// Begins to log, panics included. The variable `WIREPOST_LOG` replaces `default`; a malformed filter is reported, and the default applies.
/// Call it once; a second call does nothing.
pub fn init(args: LogArgs, default: &str) {
    let wanted = std::env::var(VARIABLE).ok().filter(|filter| !filter.trim().is_empty());
    let (filter, wrong) = match wanted.as_deref().map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(default), Some(error)),
        None => (EnvFilter::new(default), None),
    };
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = if args.log_json { lines.json().boxed() } else { lines.boxed() };
    // It fails if the process logs already.
    if registry().with(filter).with(filter_fn(may_be_written)).with(lines).try_init().is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
    if let Some(error) = wrong {
        tracing::warn!(%error, default, "{VARIABLE} is not a log filter; the default applies");
    }
}

/// A panic in the format of the other lines. Which task it was, its supervisor logs.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("without a message");
    let location = panic.location().map(ToString::to_string);
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(location, backtrace, "panic: {message}");
}

/// Whether a line is written at all, whatever the filter says.
fn may_be_written(line: &Metadata<'_>) -> bool {
    let krate = line.target().split("::").next().unwrap_or_default();
    let ours = krate == "wirepost" || krate.starts_with("wirepost_");
    ours || (*line.level() <= Level::WARN && !SILENT.contains(&krate))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        logs: LogArgs,
        #[arg(long)]
        other: Option<String>,
    }

    #[test]
    fn a_boolean_flag_stands_alone_or_with_a_value() {
        for (line, expected) in [
            (&["p"][..], false),
            (&["p", "--log-json"], true),
            (&["p", "--log-json", "--other=x"], true),
            (&["p", "--log-json=true"], true),
            (&["p", "--log-json", "true"], true),
            (&["p", "--log-json=false"], false),
            (&["p", "--log-json", "false", "--other", "x"], false),
            (&["p", "--log-json=1"], true),
        ] {
            let program = Program::try_parse_from(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            assert_eq!(program.logs.log_json, expected, "{line:?}");
            assert_eq!(program.other.is_some(), line.iter().any(|word| word.starts_with("--other")), "{line:?}");
        }
        assert!(Program::try_parse_from(["p", "--log-json=perhaps"]).is_err());
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_filter_lets_a_library_write_what_it_carries() {
        let written = Written::default();
        let writer = written.clone();
        let lines = fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        let subscriber = registry().with(EnvFilter::new("trace")).with(filter_fn(may_be_written)).with(lines);
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "tungstenite::protocol", "secret");
            tracing::debug!(target: "hyper::proto", "secret");
            tracing::info!(target: "kube_client::client", "secret");
            tracing::warn!(target: "lapin::channel", "secret");
            tracing::error!(target: "lapin", "secret");
            tracing::info!(target: "wirepostlike", "secret");
            tracing::trace!(target: "wirepost_edge::push", "ours");
            tracing::warn!(target: "kube_runtime", "theirs");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("ours") && text.contains("theirs") && !text.contains("secret"), "{text}");
    }
}
