//! `wirepost diff`: what these declarations would change, on the broker or in the cluster. Changes nothing.

mod applied;
mod broker;
mod changes;
mod classes;
mod cluster;
mod kubectl;

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;
use serde_json::{Map, Value};
use wirepost_rabbitmq::{ManagementSettings, TlsFiles};
use wirepost_topology::OpenQueues;

use self::{cluster::Stored, kubectl::Kubectl};
use crate::{
    declarations::{Finding, classes::ClassArgs},
    output,
};

/// Exit status if nothing could be compared, like that of diff programs.
const FAILED: u8 = 2;

/// Show what would change on the broker, or in the cluster.
///
/// One line for each change: `+` created, `~` changed, `-` removed, `!` needs manual action or destroys messages. With --management it is
/// compared with what the broker has, with --cluster or --from with what was applied. With these a `WsBusinessClass` may be among the files:
/// it is shown which businesses notice, and when. Exit status: 0 = nothing would change, 1 = something would (see --fail-on), 2 = a
/// declaration is not accepted, or there is nothing to compare with.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// YAML or JSON files, or folders with *.yaml, *.yml or *.json.
    #[arg(required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
    /// Compare with the `WsBusiness` resources of the cluster, which kubectl reads: with its configuration, and with its
    /// rights (get and list).
    #[arg(long, conflicts_with = "from")]
    cluster: bool,
    /// The context of kubectl, for --cluster. Default: the current one.
    #[arg(long, value_name = "NAME", requires = "cluster")]
    context: Option<String>,
    /// The program that --cluster runs, such as oc.
    #[arg(long, env = "WIREPOST_KUBECTL", value_name = "PROGRAM", default_value = "kubectl")]
    kubectl: PathBuf,
    /// Compare with the resources in this file, as `kubectl get wsb,wsbc -A -o json` writes them; - is standard input.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// What gives exit status 1.
    #[arg(long, value_enum, default_value_t = FailOn::Changes)]
    fail_on: FailOn,
    /// The broker's management API, http(s)://user:password@host:15672. Its user needs the tag policymaker and read
    /// permission.
    #[arg(long, env = "WIREPOST_MANAGEMENT", hide_env_values = true, value_name = "URL")]
    management: Option<String>,
    /// The vhost.
    #[arg(long, env = "WIREPOST_VHOST", default_value = "/")]
    vhost: String,
    /// Queues that routes with `existing: true` may fill without an owner's permission, like the operator's flag of
    /// that name.
    #[arg(long, env = "WIREPOST_EXISTING_QUEUES", default_value = "", value_name = "NAMESPACE=PREFIX,…")]
    existing_queues: OpenQueues,
    /// CA certificates (PEM) for the management API's certificate. Default: those of the operating system.
    #[arg(long, env = "WIREPOST_AMQP_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    classes: ClassArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Any change.
    Changes,
    /// Changes that destroy messages.
    Destructive,
}

/// How much would change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    #[default]
    Nothing,
    Changes,
    /// Messages would be destroyed.
    Destructive,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let least = match args.fail_on {
        FailOn::Changes => Extent::Changes,
        FailOn::Destructive => Extent::Destructive,
    };
    match compare(args).await {
        Ok(extent) => Ok(if extent < least { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        // The reader of our output is done. What it has not read may be what it was asked to fail on.
        Err(error) if is_closed_pipe(&error) => Ok(ExitCode::from(FAILED)),
        Err(error) => {
            output::error_line(&format!("wirepost: {error:#}"));
            Ok(ExitCode::from(FAILED))
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

async fn compare(args: Args) -> anyhow::Result<Extent> {
    let Args { paths, cluster, context, kubectl, from, management, vhost, existing_queues, ca_file, classes, .. } =
        args;
    let stored = match from {
        Some(file) => Some(Stored::File(file)),
        None if cluster => Some(Stored::Cluster(Kubectl { program: kubectl, context })),
        None => None,
    };
    if let Some(stored) = stored {
        return cluster::compare(&paths, classes, &stored).await;
    }
    let Some(url) = management else {
        anyhow::bail!("nothing to compare with: give --cluster, --from FILE or --management URL");
    };
    let broker = ManagementSettings {
        url,
        vhost,
        credentials: None,
        tls: TlsFiles { ca: ca_file, client: None },
        timeout: None,
    };
    broker::compare(&paths, &classes, broker, &existing_queues).await
}

/// Prints what was found in the files, and fails if anything of it is wrong.
fn only_accepted(findings: &[Finding], notes: &[Finding]) -> anyhow::Result<()> {
    for note in notes {
        output::error_line(&format!("note: {note}"));
    }
    for finding in findings {
        output::error_line(&finding.to_string());
    }
    anyhow::ensure!(findings.is_empty(), "nothing was compared, since a declaration is not accepted");
    Ok(())
}

/// `max-length 10 → 20, message-ttl 60000 → none`.
fn settings(before: &Map<String, Value>, after: &Map<String, Value>) -> String {
    let text = |value: Option<&Value>| value.map_or_else(|| "none".to_owned(), Value::to_string);
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort();
    keys.dedup();
    let changed = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    let changed = changed.map(|key| match before.get(key) {
        None if before.is_empty() => format!("{key} {}", text(after.get(key))),
        old => format!("{key} {} → {}", text(old), text(after.get(key))),
    });
    changed.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_changed_keys_of_a_policy_are_shown() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let before = map(json!({"max-length": 10, "message-ttl": 60_000, "overflow": "reject-publish"}));
        let after = map(json!({"max-length": 20, "overflow": "reject-publish"}));
        assert_eq!(settings(&before, &after), "max-length 10 → 20, message-ttl 60000 → none");
        assert_eq!(settings(&Map::new(), &after), "max-length 20, overflow \"reject-publish\"");
    }
}
