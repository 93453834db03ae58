//! What declarations would change in a cluster: compared with those that were applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::PathBuf,
};

use serde_json::Value;
use wirepost_core::{
    WsBusiness,
    business::{DeletionPolicy, KIND},
    compile::{business_type_taken, compile_accepted},
    validate,
};

use super::{
    Extent,
    changes::{Changes, Declared, changes},
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

/// Prints the difference between declarations and those that were applied.
pub(super) async fn compare(paths: &[PathBuf], args: ClassArgs, stored: &Stored) -> anyhow::Result<Extent> {
    let Contents { mut valid, mut findings, notes, classes: _ } = declarations::contents_of(paths)?;
    let namespace = match (args.namespace(), stored) {
        (Some(named), _) => named.to_owned(),
        (None, Stored::Cluster(kubectl)) => kubectl.namespace().await,
        (None, Stored::File(_)) => "default".to_owned(),
    };
    for declaration in &mut valid {
        declaration.business.metadata.namespace.get_or_insert_with(|| namespace.clone());
    }
    let resources = stored.read(&valid, &namespace).await?;
    for declaration in &valid {
        findings.extend(forbidden_changes(declaration, &resources));
    }
    let classes = stored.classes(&args).await?;
    let (permitted, forbidden) = classes.permit(valid);
    findings.extend(forbidden);
    let businesses: BTreeMap<String, WsBusiness> =
        permitted.iter().map(|declaration| (declaration.business.owner(), declaration.business.clone())).collect();
    let (accepted, between) = declarations::compile_all(permitted);
    findings.extend(between);
    only_accepted(&findings, &notes)?;

    let mut extent = Extent::Nothing;
    for compiled in accepted {
        let Some(business) = businesses.get(&compiled.owner) else { continue };
        let resource = resources.get(&key_of(business));
        let before = resource.map(|resource| applied(resource, &classes)).transpose()?;
        let before = before.as_ref().map(|(business, topology)| Declared { business, topology });
        let Changes { lines, destroyed } = changes(before, Declared { business, topology: &compiled.topology });
        let title = format!("{} ({})", compiled.business, compiled.owner);
        if lines.is_empty() {
            output::line(&format!("{title}: as in the cluster"))?;
        } else {
            extent = extent.max(if destroyed.is_empty() { Extent::Changes } else { Extent::Destructive });
            output::line(&format!("{title}:"))?;
        }
        for line in &lines {
            output::line(&format!("  {line}"))?;
        }
        let rejected = resource.and_then(rejected);
        if let Some(why) = rejected {
            output::error_line(&format!(
                "note: {title}: what is in the cluster is not accepted ({why}), so an older declaration runs; --management compares with the broker"
            ));
        }
        if !destroyed.is_empty() {
            output::error_line(&format!("note: {title}: {}", until_when(business)));
        }
    }
    Ok(extent)
}

impl Stored {
    /// What was applied in the namespaces of these declarations.
    async fn read(&self, declarations: &[Declaration], default: &str) -> anyhow::Result<Resources> {
        let items = match self {
            Self::Cluster(kubectl) => {
                let namespaces: BTreeSet<&str> =
                    declarations.iter().filter_map(|it| it.business.metadata.namespace.as_deref()).collect();
                let mut items = Vec::new();
                for namespace in namespaces {
                    items.extend(kubectl.businesses(namespace).await?);
                }
                items
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
                    .map_err(|error| anyhow::anyhow!("cannot read --from {}: {error}", path.display()))?
            }
        };
        let businesses = items.into_iter().filter(|item| item["kind"] == KIND);
        Ok(businesses.map(|item| (key(&item, default), item)).collect())
    }

    /// The classes that files name, else those of the cluster.
    async fn classes(&self, args: &ClassArgs) -> anyhow::Result<Classes> {
        if let (Self::Cluster(kubectl), false) = (self, args.names_files()) {
            match kubectl.classes().await {
                Ok(items) => return Ok(Classes::of(items.iter().filter_map(|item| validate::class::parse(item).ok()))),
                Err(error) => output::error_line(&format!(
                    "note: compared without the classes of the cluster, which --class FILE names too: {error:#}"
                )),
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

/// What was applied, as its class fills it in.
fn applied(resource: &Value, classes: &Classes) -> anyhow::Result<(WsBusiness, wirepost_core::topology::Topology)> {
    let read = validate::parse_accepted(resource).and_then(|mut business| {
        classes.fill(&mut business);
        let topology = compile_accepted(&business)?.topology;
        Some((business, topology))
    });
    let (namespace, name) = key(resource, "default");
    read.ok_or_else(|| {
        anyhow::anyhow!(
            "{namespace}/{name} in the cluster has fields that this version does not know: use the wirepost of the operator's version"
        )
    })
}

/// Why the operator has not accepted what was applied.
fn rejected(resource: &Value) -> Option<&str> {
    let conditions = resource["status"]["conditions"].as_array()?;
    let accepted = conditions.iter().find(|condition| condition["type"] == "Accepted")?;
    let current = accepted["observedGeneration"] == resource["metadata"]["generation"];
    (accepted["status"] == "False" && current).then(|| accepted["reason"].as_str().unwrap_or_default())
}

/// What happens to a change that destroys messages.
fn until_when(business: &WsBusiness) -> &'static str {
    if business.spec.deletion_policy == Some(DeletionPolicy::Delete) {
        "deletionPolicy is Delete, so the messages are deleted as soon as it is applied"
    } else {
        "once applied, the change waits until somebody allows it; the condition Accepted contains the command"
    }
}
