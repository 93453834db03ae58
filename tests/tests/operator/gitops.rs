//! What tools that follow a repository of files see: an applied file is no difference, by client-side and by server-side apply.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wirepost_testing::cluster::{Cluster, Namespace};
use wirepost_testing::kubectl::{Kubectl, Outcome};

struct Fixture {
    namespace: Namespace,
    kubectl: Kubectl,
    /// Each example, for this namespace.
    examples: Vec<PathBuf>,
}

impl Fixture {
    async fn new(prefix: &str) -> Result<Self> {
        let cluster = Cluster::connect().await?;
        let namespace = cluster.namespace(prefix).await?;
        let kubectl = Kubectl::new(&cluster)?;
        let mut examples = Vec::new();
        for entry in Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).read_dir()? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "yaml") {
                let text = std::fs::read_to_string(&path)?;
                let mut own = String::new();
                for line in text.lines() {
                    own += match line.split_once("namespace: ") {
                        Some((before, _)) => format!("{before}namespace: {}\n", namespace.name),
                        None => format!("{line}\n"),
                    }
                    .as_str();
                }
                let name = path.file_name().context("no name")?.to_string_lossy().into_owned();
                examples.push(kubectl.file(&name, own)?);
            }
        }
        ensure!(examples.len() >= 3, "{examples:?}");
        Ok(Self { namespace, kubectl, examples })
    }

    async fn run(&self, arguments: &[&str], file: &Path) -> Result<Outcome> {
        let file = file.to_string_lossy();
        let place = ["--namespace", &self.namespace.name, "--filename", &file];
        self.kubectl.run(arguments.iter().chain(&place)).await
    }

    /// Name, generation and resource version of each, which tell whether anything was written.
    async fn versions(&self) -> Result<Vec<(Option<String>, Option<i64>, Option<String>)>> {
        let found = self.namespace.businesses().list(&kube::api::ListParams::default()).await?;
        let of = |m: kube::api::ObjectMeta| (m.name, m.generation, m.resource_version);
        Ok(found.items.into_iter().map(|business| of(business.metadata)).collect())
    }
}

#[tokio::test]
async fn an_applied_file_is_no_difference_on_the_client_side() -> Result<()> {
    let fixture = Fixture::new("gitops-client").await?;
    for file in &fixture.examples {
        let applied = fixture.run(&["apply"], file).await?;
        ensure!(applied.status == 0 && applied.stdout.contains("created"), "{applied:?}");
    }
    let before = fixture.versions().await?;
    for file in &fixture.examples {
        let diff = fixture.run(&["diff"], file).await?;
        ensure!(diff.status == 0 && diff.stdout.is_empty(), "{}: {diff:?}", file.display());
        let again = fixture.run(&["apply"], file).await?;
        let unchanged = again.stdout.lines().all(|line| line.ends_with(" unchanged"));
        ensure!(again.status == 0 && unchanged, "{}: {again:?}", file.display());
    }
    ensure!(fixture.versions().await? == before, "something was written");
    // Read back and applied: nothing of the spec changes.
    for (name, generation, _) in &before {
        let name = name.clone().unwrap_or_default();
        let export = ["get", "wsb", &name, "--output", "yaml", "--namespace", &fixture.namespace.name];
        let exported = fixture.kubectl.file("export.yaml", fixture.kubectl.run(export).await?.stdout)?;
        let applied = fixture.run(&["apply"], &exported).await?;
        ensure!(applied.status == 0, "{name}: {applied:?}");
        let now = fixture.namespace.businesses().get(&name).await?.metadata.generation;
        ensure!(now == *generation, "{name}: generation {generation:?} became {now:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_applied_file_is_no_difference_on_the_server_side() -> Result<()> {
    let fixture = Fixture::new("gitops-server").await?;
    let apply = ["apply", "--server-side", "--field-manager", "argocd"];
    // Twice: as long as no operator has reported anything, the first repeat stores the status that the definition gives.
    for file in fixture.examples.iter().chain(&fixture.examples) {
        let applied = fixture.run(&apply, file).await?;
        ensure!(applied.status == 0, "{applied:?}");
    }
    let before = fixture.versions().await?;
    for file in &fixture.examples {
        let diff = fixture.run(&["diff", "--server-side", "--field-manager", "argocd"], file).await?;
        ensure!(diff.status == 0 && diff.stdout.is_empty(), "{}: {diff:?}", file.display());
        let again = fixture.run(&apply, file).await?;
        ensure!(again.status == 0, "{again:?}");
    }
    ensure!(fixture.versions().await? == before, "something was written");
    Ok(())
}

/// One team's file has the routes of the shop, another's one route more and a client type for it: each keeps its own.
#[tokio::test]
async fn two_owners_of_one_business_keep_their_routes_and_client_types() -> Result<()> {
    let fixture = Fixture::new("gitops-owners").await?;
    let first = fixture.examples.iter().find(|file| file.ends_with("payments.yaml")).context("no payments.yaml")?;
    let second = json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "payments"},
        "spec": {
            "clientTypes": ["kiosk"],
            "routes": [{"messageType": "kiosk.notice", "sendType": "ServerToClient", "to": ["kiosk"]}],
        },
    });
    let second = fixture.kubectl.file("second.json", second.to_string())?;
    let owners = [(first, "shop"), (&second, "kiosks"), (first, "shop")];
    for (file, owner) in owners {
        let applied = fixture.run(&["apply", "--server-side", "--field-manager", owner], file).await?;
        ensure!(applied.status == 0, "{owner}: {applied:?}");
    }
    let spec = fixture.namespace.businesses().get("payments").await?.spec;
    let types: Vec<&str> = spec.routes.iter().map(|route| route.message_type.as_str()).collect();
    assert_eq!(types, ["qr.refresh", "payment.completed", "till.notice", "cart.share", "kiosk.notice"]);
    assert_eq!(spec.client_types, ["h5", "app", "pos", "kiosk"]);
    Ok(())
}
