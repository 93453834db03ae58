//! What the operator would change on the broker.

use std::{collections::BTreeSet, path::PathBuf};

use serde_json::Map;
use wirepost_core::Compiled;
use wirepost_rabbitmq::{ManagementClient, ManagementSettings};
use wirepost_topology::{Actual, OpenQueues, Plan, Problem, Scope, Step, plan};

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
    anyhow::ensure!(
        !accepted.is_empty(),
        "these files contain classes alone, which change nothing on the broker: --cluster shows what they mean for businesses"
    );
    let actual = Actual::read(&ManagementClient::new(broker)?).await?;
    let names: BTreeSet<String> = accepted.iter().map(|compiled| compiled.business.clone()).collect();
    let mut extent = Extent::Nothing;
    for compiled in &mut accepted {
        compiled.share_with(&acceptors(compiled, &names, &actual));
        open.mark(&compiled.owner, &mut compiled.topology);
        let mut plan = plan(&compiled.topology, &actual, Scope::Business(&compiled.business));
        // The operator makes what it leads to first.
        let comes = |business: &str| names.contains(business);
        plan.problems.retain(|problem| match problem {
            Problem::NoTarget { link } => !wirepost_core::names::owner(&link.to).is_some_and(comes),
            _ => true,
        });
        let lines = lines(&plan, &actual);
        if lines.is_empty() {
            output::line(&format!("{}: as declared", compiled.business))?;
        } else {
            // What a shared policy would destroy is not done: it stays as it is.
            extent = extent.max(if plan.destroys.is_empty() { Extent::Changes } else { Extent::Destructive });
            output::line(&format!("{}:", compiled.business))?;
        }
        for line in lines {
            output::line(&format!("  {line}"))?;
        }
    }
    Ok(extent)
}

/// Who accepts its messages: by these files, and of the businesses that they don't declare those that do now.
fn acceptors(compiled: &Compiled, declared: &BTreeSet<String>, actual: &Actual) -> BTreeSet<String> {
    let share = wirepost_core::names::share_exchange(&compiled.business);
    let now = actual.bindings.iter().filter(|binding| binding.source == share);
    let others = now.filter_map(|binding| wirepost_core::names::owner(&binding.destination));
    let others = others.filter(|other| *other != compiled.business && !declared.contains(*other)).map(str::to_owned);
    compiled.config.accepted_by.iter().cloned().chain(others).collect()
}

/// The operator waits with what destroys messages for the annotation `wirepost.dev/allow-destructive`, unless the declaration says
/// `deletionPolicy: Delete`.
fn lines(plan: &Plan, actual: &Actual) -> Vec<String> {
    let steps = plan.steps.iter().map(|step| line(step, actual));
    let destroyed = plan.destroys.iter().map(|(_, destruction)| format!("! destroys messages: {destruction}"));
    steps.chain(destroyed).chain(plan.problems.iter().map(|problem| format!("! {problem}"))).collect()
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
        | Step::Link(_)
        | Step::PutUser(_)
        | Step::PutPermissions(_)
        | Step::PutUserLimits(_) => format!("+ {step}"),
    }
}
