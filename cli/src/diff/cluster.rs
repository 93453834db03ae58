//! What declarations would change in a cluster: compared with those that were applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::PathBuf,
};

use serde_json::Value;
use wirepost_core::{
    Problem, WsBusiness,
    business::{DeletionPolicy, KIND},
    class::{self, WsBusinessClass},
    compile::business_type_taken,
    validate,
};

use super::{
    Extent,
    applied::Applied,
    changes::{Changes, Declared, changes},
    classes,
    kubectl::Kubectl,
    only_accepted,
};
use crate::{
    declarations::{
        self, Contents, Declaration, Finding,
        classes::{ClassArgs, Classes},
    },
    output,
};

/// Where the applied declarations are read.
pub(super) enum Stored {
    Cluster(Kubectl),
    /// `-` is standard input.
    File(PathBuf),
}

/// Resources by namespace and name.
type Resources = BTreeMap<(String, String), Value>;

/// Prints the difference between declarations and those that were applied, and what changed classes mean.
pub(super) async fn compare(paths: &[PathBuf], args: ClassArgs, stored: &Stored) -> anyhow::Result<Extent> {
    let Contents { mut valid, mut findings, mut notes, classes: new_classes } = declarations::contents_of(paths)?;
    let namespace = match (args.namespace(), stored) {
        (Some(named), _) => named.to_owned(),
        (None, Stored::Cluster(kubectl)) => kubectl.namespace().await,
        (None, Stored::File(_)) => "default".to_owned(),
    };
    for declaration in &mut valid {
        declaration.business.metadata.namespace.get_or_insert_with(|| namespace.clone());
    }
    let items = stored.read(&valid, !new_classes.is_empty()).await?;
    let now = stored.classes(&args, &items).await?;
    anyhow::ensure!(
        new_classes.is_empty() || now.are_known(),
        "a class is compared with the classes of the cluster, which are not known: kubectl needs the right to list wsbusinessclasses; for --from, `kubectl get wsb,wsbc -A -o json` writes businesses and classes"
    );
    let after = now.with(&new_classes);
    let resources: Resources =
        items.into_iter().filter(|item| item["kind"] == KIND).map(|item| (key(&item, &namespace), item)).collect();
    for declaration in &valid {
        findings.extend(forbidden_changes(declaration, &resources));
    }
    let applied = resources.iter().map(|(key, resource)| (key.clone(), Applied::read(resource, &now)));
    let mut applied: BTreeMap<_, anyhow::Result<Applied>> = applied.collect();

    // What is applied unchanged is no new generation: it goes on as it was accepted, whatever its class says today.
    let (mut unchanged, edited): (Vec<_>, Vec<_>) = valid.into_iter().partition(|declaration| {
        let before = applied.get(&key_of(&declaration.business));
        before.is_some_and(|before| before.as_ref().is_ok_and(|it| it.declared.spec == declaration.business.spec))
    });
    for declaration in &mut unchanged {
        if let Some(Ok(before)) = applied.get(&key_of(&declaration.business)) {
            // What is not accepted has a note of its own.
            let later = later(before, &after).filter(|_| before.rejected().is_none());
            notes.extend(later.map(|problem| declaration.finding(problem)));
            declaration.business.spec = before.filled().spec.clone();
        }
    }
    let as_before: BTreeSet<String> = unchanged.iter().map(|declaration| declaration.business.owner()).collect();
    let (mut permitted, forbidden) = after.permit(edited);
    findings.extend(forbidden);
    permitted.append(&mut unchanged);
    let businesses: BTreeMap<String, WsBusiness> =
        permitted.iter().map(|declaration| (declaration.business.owner(), declaration.business.clone())).collect();
    let (accepted, between) = declarations::compile_all(permitted);
    findings.extend(between);
    only_accepted(&findings, &notes)?;

    let others: Vec<&Applied> = applied
        .iter()
        .filter(|((namespace, name), _)| !businesses.contains_key(&format!("{namespace}/{name}")))
        .filter_map(|(_, applied)| applied.as_ref().ok())
        .collect();
    let mut extent = compare_classes(&new_classes, (&now, &after), &others)?;
    for error in applied.values().filter_map(|applied| applied.as_ref().err()).filter(|_| !new_classes.is_empty()) {
        output::error_line(&format!("note: what a class means for one business is not known: {error}"));
    }
    for compiled in accepted {
        let Some(business) = businesses.get(&compiled.owner) else { continue };
        let before = applied.remove(&key_of(business)).transpose()?;
        let title = format!("{} ({})", compiled.business, compiled.owner);
        let changes = if as_before.contains(&compiled.owner) {
            Changes::default()
        } else {
            let before = before.as_ref().map(Applied::declared);
            changes(before, Declared { business, topology: &compiled.topology })
        };
        let destroys = !changes.destroyed.is_empty();
        if print(&title, &changes.all())? {
            extent = extent.max(if destroys { Extent::Destructive } else { Extent::Changes });
        }
        let Some(before) = before.as_ref() else { continue };
        if let Some(why) = before.rejected() {
            output::error_line(&format!(
                "note: {title}: what is in the cluster is not accepted ({why}), so an older declaration runs; --management compares with the broker"
            ));
        } else if before.waits() {
            output::error_line(&format!(
                "note: {title}: something of what is in the cluster destroys messages and waits: see its condition Provisioned"
            ));
        }
        if destroys {
            output::error_line(&format!("note: {title}: {}", until_when(business)));
        }
    }
    Ok(extent)
}

/// Prints what changed classes mean.
fn compare_classes(
    new: &[WsBusinessClass],
    (now, after): (&Classes, &Classes),
    businesses: &[&Applied],
) -> anyhow::Result<Extent> {
    let mut extent = Extent::Nothing;
    for class in new {
        let compared = classes::compare(class, (now, after), businesses);
        extent = extent.max(compared.extent);
        print(&format!("class {}", class.metadata.name.as_deref().unwrap_or_default()), &compared.lines)?;
    }
    if extent > Extent::Nothing {
        output::error_line(
            "note: a class changes nothing that runs, except what becomes of messages with a deleted resource; the rest comes with the next change of each declaration",
        );
    }
    Ok(extent)
}

/// Prints what is different, if anything is. Whether it is.
fn print(title: &str, lines: &[String]) -> anyhow::Result<bool> {
    if lines.is_empty() {
        output::line(&format!("{title}: as in the cluster"))?;
        return Ok(false);
    }
    output::line(&format!("{title}:"))?;
    for line in lines {
        output::line(&format!("  {line}"))?;
    }
    Ok(true)
}

/// What the class of today means for what is applied unchanged: nothing, until it changes.
fn later(before: &Applied, classes: &Classes) -> impl Iterator<Item = Problem> + use<> {
    let remedy = "nothing happens before";
    let problem = match classes::permitted(before, classes) {
        Err(problems) => {
            let all = problems.iter().map(|it| format!("{}: {}", it.field, it.message)).collect::<Vec<_>>().join("; ");
            let message = format!("the next change of this declaration is refused until it complies: {all}");
            Some(Problem::at("spec", message, remedy))
        }
        Ok(business) => classes::topology(&business).and_then(|topology| {
            let next = changes(Some(before.declared()), Declared { business: &business, topology: &topology }).all();
            let message = format!("with the next change of this declaration: {}", next.join("; "));
            (!next.is_empty()).then(|| Problem::at("spec", message, remedy))
        }),
    };
    problem.into_iter()
}

impl Stored {
    /// What was applied in the namespaces of these declarations, or everywhere. A file may contain classes, too.
    async fn read(&self, declarations: &[Declaration], everywhere: bool) -> anyhow::Result<Vec<Value>> {
        match self {
            Self::Cluster(kubectl) if everywhere => kubectl.all_businesses().await,
            Self::Cluster(kubectl) => {
                let namespaces: BTreeSet<&str> =
                    declarations.iter().filter_map(|it| it.business.metadata.namespace.as_deref()).collect();
                let mut items = Vec::new();
                for namespace in namespaces {
                    items.extend(kubectl.businesses(namespace).await?);
                }
                Ok(items)
            }
            Self::File(path) => {
                let unreadable =
                    |error: std::io::Error| anyhow::anyhow!("cannot read --from {}: {error}", path.display());
                let mut bytes = Vec::new();
                if path.as_os_str() == "-" {
                    std::io::stdin().lock().read_to_end(&mut bytes).map_err(unreadable)?;
                } else {
                    bytes = std::fs::read(path).map_err(unreadable)?;
                }
                declarations::objects(&bytes)
                    .map_err(|error| anyhow::anyhow!("cannot read --from {}: {error}", path.display()))
            }
        }
    }

    /// The classes that files name, else those of the cluster.
    async fn classes(&self, args: &ClassArgs, items: &[Value]) -> anyhow::Result<Classes> {
        if args.names_files() {
            return args.read();
        }
        match self {
            Self::Cluster(kubectl) => match kubectl.classes().await {
                Ok(items) => return Ok(Classes::of(&items)),
                Err(error) => output::error_line(&format!(
                    "note: compared without the classes of the cluster, which --class FILE names too: {error:#}"
                )),
            },
            Self::File(_) => {
                let mut classes = items.iter().filter(|item| item["kind"] == class::KIND).peekable();
                if classes.peek().is_some() {
                    return Ok(Classes::of(classes));
                }
            }
        }
        args.read()
    }
}

fn key(resource: &Value, default: &str) -> (String, String) {
    let text = |field: &str| resource["metadata"][field].as_str();
    (text("namespace").unwrap_or(default).to_owned(), text("name").unwrap_or_default().to_owned())
}

fn key_of(business: &WsBusiness) -> (String, String) {
    let metadata = &business.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// What was applied may not become this.
fn forbidden_changes(declaration: &Declaration, resources: &Resources) -> Vec<Finding> {
    let own = key_of(&declaration.business);
    let mut problems = resources.get(&own).map_or_else(Vec::new, |old| validate::check(&declaration.value, Some(old)));
    let claims = |resource: &Value| {
        let named = resource["spec"]["businessType"].as_str().or_else(|| resource["metadata"]["name"].as_str());
        named == Some(declaration.business.business_type())
    };
    let taken = resources.iter().find(|(other, resource)| **other != own && claims(resource));
    problems.extend(taken.map(|((namespace, name), _)| {
        business_type_taken(declaration.business.business_type(), &format!("{namespace}/{name}"))
    }));
    problems.into_iter().map(|problem| declaration.finding(problem)).collect()
}

/// What happens to a change that destroys messages.
fn until_when(business: &WsBusiness) -> &'static str {
    if business.spec.deletion_policy == Some(DeletionPolicy::Delete) {
        "deletionPolicy is Delete, so the messages are deleted as soon as it is applied"
    } else {
        "once applied, the change waits until somebody allows it; the condition Accepted contains the command"
    }
}
