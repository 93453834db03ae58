//! What the operator would change on the broker.

use std::path::PathBuf;

use serde_json::Map;
use wirepost_core::{
    Compiled,
    destruction::{Destruction, cuts},
    names,
    topology::shared_policy_of,
};
use wirepost_rabbitmq::{ManagementClient, ManagementSettings};
use wirepost_topology::{Actual, OpenQueues, Scope, Step, actual::Queue, plan};

use super::{Extent, only_accepted, settings};
use crate::{
    declarations::{self, Loaded, classes::ClassArgs},
    output,
};

/// Prints the difference between declarations and a vhost.
pub(super) async fn compare(
    paths: &[PathBuf],
    classes: &ClassArgs,
    broker: ManagementSettings,
    open: &OpenQueues,
) -> anyhow::Result<Extent> {
    let Loaded { mut accepted, findings, notes, files: _ } = declarations::load(paths, classes)?;
    only_accepted(&findings, &notes)?;
    let actual = Actual::read(&ManagementClient::new(broker)?).await?;
    let mut extent = Extent::Nothing;
    for compiled in &mut accepted {
        open.mark(&compiled.owner, &mut compiled.topology);
        let destroyed = destroyed(compiled, &actual);
        let lines = lines(compiled, &actual, &destroyed);
        if lines.is_empty() {
            output::line(&format!("{}: as declared", compiled.business))?;
        } else {
            extent = extent.max(if destroyed.is_empty() { Extent::Changes } else { Extent::Destructive });
            output::line(&format!("{}:", compiled.business))?;
        }
        for line in lines {
            output::line(&format!("  {line}"))?;
        }
    }
    Ok(extent)
}

fn lines(compiled: &Compiled, actual: &Actual, destroyed: &[Destruction]) -> Vec<String> {
    let plan = plan(&compiled.topology, actual, Scope::Business(&compiled.business));
    let steps = plan.steps.iter().map(|step| line(step, actual));
    let destroyed = destroyed.iter().map(|destruction| format!("! destroys messages: {destruction}"));
    steps.chain(destroyed).chain(plan.problems.iter().map(|problem| format!("! {problem}"))).collect()
}

/// Messages that the change drops at once. The operator waits with it for the annotation `wirepost.dev/allow-destructive`, unless the
/// declaration says `deletionPolicy: Delete`.
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
