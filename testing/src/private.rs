//! Servers of one test alone, by the scripts of `tests/services`: what brokers and API servers have in common there.

use std::collections::HashMap;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::permits::Permit;

/// Which script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    RabbitMq,
    Kubernetes,
}

/// The variables that a script exports, by name.
pub(crate) type Variables = HashMap<String, String>;

/// A server with a name. Removed, with its data, when dropped.
#[derive(Debug)]
pub(crate) struct Private {
    service: Service,
    pub(crate) name: String,
    /// `None` for one of several that share one.
    _permit: Option<Permit>,
}

impl Private {
    /// Starts it; what it exports.
    pub(crate) async fn start(
        service: Service,
        name: String,
        options: &[&str],
        permit: Permit,
    ) -> Result<(Self, Variables)> {
        let exports = service.run(&[&["start", &name, "--own"], options].concat()).await?;
        Ok((Self { service, name, _permit: Some(permit) }, variables(&exports)))
    }

    /// One that runs already; what it exports.
    pub(crate) async fn of(service: Service, name: String) -> Result<(Self, Variables)> {
        let exports = service.run(&["env", &name]).await?;
        Ok((Self { service, name, _permit: None }, variables(&exports)))
    }

    /// Starts it again, or adds to what runs of it.
    pub(crate) async fn start_again(&self, options: &[&str]) -> Result<()> {
        self.service.run(&[&["start", &self.name, "--own"], options].concat()).await.map(drop)
    }

    /// A command of the script that takes only the name, such as `kill9`.
    pub(crate) async fn command(&self, command: &str) -> Result<()> {
        self.service.run(&[command, &self.name]).await.map(drop)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = self.service.command().args(["remove", &self.name]).output();
    }
}

impl Service {
    /// The script without arguments.
    pub(crate) fn command(self) -> Command {
        Command::new(match self {
            Self::RabbitMq => concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/services/rabbitmq"),
            Self::Kubernetes => concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/services/kubernetes"),
        })
    }

    /// Runs the script; what it printed.
    pub(crate) async fn run(self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command();
        command.args(arguments);
        let what = format!("{self:?} {}", arguments.join(" "));
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        match String::from_utf8(output.stdout) {
            Ok(text) => Ok(text),
            Err(error) => bail!("{what}: {error}"),
        }
    }
}

fn variables(exports: &str) -> Variables {
    let exported = exports.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    exported.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect()
}
