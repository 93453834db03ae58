//! `wirepost diff`: what the operator would change on the broker for these declarations. Changes nothing.

use std::{path::PathBuf, process::ExitCode};

use serde_json::{Map, Value};
use wirepost_core::{
    Compiled,
    destruction::{Destruction, cuts},
    names,
    topology::shared_policy_of,
};
use wirepost_rabbitmq::{ManagementClient, ManagementSettings};
use wirepost_topology::{Actual, OpenQueues, Scope, Step, actual::Queue, plan};

use crate::{
    declarations::{self, Loaded, classes::ClassArgs},
    output,
};

/// Exit status if nothing could be compared, like that of diff programs.
const FAILED: u8 = 2;

/// Show what would change on the broker.
///
/// One line for each change: `+` created, `~` changed, `-` removed, `!` needs manual action or destroys messages. Exit status: 0 = the
/// broker is as declared, 1 = something would change, 2 = a declaration is not accepted, or the broker can't be read.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// YAML or JSON files, or folders with *.yaml, *.yml or *.json.
    #[arg(required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
    /// The broker's management API, http(s)://user:password@host:15672. Its user needs the tag policymaker and read
    /// permission.
    #[arg(long, env = "WIREPOST_MANAGEMENT", hide_env_values = true, value_name = "URL")]
    management: String,
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

pub(crate) async fn run(
    Args { paths, management, vhost, existing_queues, ca_file, classes }: Args,
) -> anyhow::Result<ExitCode> {
    let broker = ManagementSettings { url: management, vhost, credentials: None, ca_file, timeout: None };
    match compare(&paths, &classes, broker, &existing_queues).await {
        Ok(same) => Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Err(error) if error.downcast_ref::<std::io::Error>().is_some() => Err(error),
        Err(error) => {
            output::error_line(&format!("wirepost: {error:#}"));
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// Whether nothing would change.
async fn compare(
    paths: &[PathBuf],
    classes: &ClassArgs,
    broker: ManagementSettings,
    open: &OpenQueues,
) -> anyhow::Result<bool> {
    let Loaded { mut accepted, findings, notes, files: _ } = declarations::load(paths, classes)?;
    for note in &notes {
        output::error_line(&format!("note: {note}"));
    }
    for finding in &findings {
        output::error_line(&finding.to_string());
    }
    anyhow::ensure!(findings.is_empty(), "nothing was compared, since a declaration is not accepted");
    let actual = Actual::read(&ManagementClient::new(broker)?).await?;
    let mut same = true;
    for compiled in &mut accepted {
        open.mark(&compiled.owner, &mut compiled.topology);
        let lines = lines(compiled, &actual);
        same &= lines.is_empty();
        if lines.is_empty() {
            output::line(&format!("{}: as declared", compiled.business))?;
        } else {
            output::line(&format!("{}:", compiled.business))?;
        }
        for line in lines {
            output::line(&format!("  {line}"))?;
        }
    }
    Ok(same)
}

fn lines(compiled: &Compiled, actual: &Actual) -> Vec<String> {
    let plan = plan(&compiled.topology, actual, Scope::Business(&compiled.business));
    let steps = plan.steps.iter().map(|step| line(step, actual));
    let destroyed = destroyed(compiled, actual);
    let destroyed = destroyed.iter().map(|destruction| format!("! destroys messages: {destruction}"));
    steps.chain(destroyed).chain(plan.problems.iter().map(|problem| format!("! {problem}"))).collect()
}

/// Messages that the change drops immediately. The operator waits for the annotation `wirepost.dev/allow-destructive`, unless the
/// declaration contains `deletionPolicy: Delete`.
fn destroyed(compiled: &Compiled, actual: &Actual) -> Vec<Destruction> {
    let topology = &compiled.topology;
    let of_business = |name: &str| names::owner(name) == Some(compiled.business.as_str());
    let policy = |name: &str| {
        let of = |name: &str| actual.policies.iter().find(|there| there.name == name);
        of(name).or_else(|| of(&shared_policy_of(name)?.name))
    };
    let mut all = Vec::new();
    let is_stream = |queue: &Queue| queue.arguments.get("x-queue-type").is_some_and(|kind| kind == "stream");
    for stream in actual.queues.iter().filter(|queue| of_business(&queue.name) && is_stream(queue)) {
        let name = &stream.name;
        if !topology.queues.iter().any(|declared| declared.name == *name) {
            all.push(Destruction::Stream { stream: name.clone() });
        } else if let Some((should, is)) = topology.policy_of(name).zip(policy(name)) {
            all.extend(cuts(name, &is.definition, &should.definition));
        }
    }
    all
}

fn line(step: &Step, actual: &Actual) -> String {
    match step {
        Step::PutPolicy(policy) => {
            let before = actual.policies.iter().find(|there| there.name == policy.name);
            let sign = if before.is_some() { '~' } else { '+' };
            let empty = Map::new();
            let before = before.map_or(&empty, |there| &there.definition);
            format!("{sign} {step}: {}", settings(before, &policy.definition))
        }
        Step::DeleteQueue(_) => format!("- {step}, once it is empty"),
        Step::DeleteStream(_) => format!("- {step} with its messages"),
        Step::Unbind(_)
        | Step::DeleteExchange(_)
        | Step::DeletePolicy(_)
        | Step::DeleteUser { .. }
        | Step::UnmarkBusiness(_) => {
            format!("- {step}")
        }
        Step::MarkBusiness { .. }
        | Step::PutQueue(_)
        | Step::PutExchange(_)
        | Step::Bind(_)
        | Step::PutUser(_)
        | Step::PutPermissions(_)
        | Step::PutUserLimits(_) => format!("+ {step}"),
    }
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
