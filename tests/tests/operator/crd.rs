//! The CRD on a real API server: what `kubectl apply` says is what the offline check says, case by case.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use serde::Deserialize;
use serde_json::{Value, json};
use wirepost_core::business::{WsBusiness, rules};
use wirepost_core::validate;
use wirepost_testing::cluster::{Cluster, Namespace, Refusal};

/// The table of core's own tests.
#[derive(Deserialize)]
struct Cases {
    good: Value,
    refused: Vec<Refused>,
    accepted: Vec<Value>,
}

#[derive(Deserialize)]
struct Refused {
    case: String,
    change: Value,
    #[serde(default)]
    update: bool,
    cluster: String,
}

struct Fixture {
    cluster: Cluster,
    namespace: Namespace,
    cases: Cases,
}

impl Fixture {
    async fn new() -> Result<Self> {
        let cluster = Cluster::connect().await?;
        let namespace = cluster.namespace("crd").await?;
        let mut cases: Cases = serde_yaml::from_str(include_str!("../../../core/src/validate/cases.yaml"))?;
        cases.good["metadata"]["namespace"] = namespace.name.clone().into();
        Ok(Self { cluster, namespace, cases })
    }

    fn changed(&self, change: &Value) -> Value {
        let mut value = self.cases.good.clone();
        merge(&mut value, change.clone());
        value
    }

    fn collection(&self) -> Request {
        Request::new(format!("/apis/wirepost.dev/v1alpha1/namespaces/{}/wsbusinesses", self.namespace.name))
    }

    /// What `kubectl create --validate=strict --dry-run=server` says to it, word for word: no typed client drops what it does not know.
    async fn create(&self, value: &Value) -> Result<Result<WsBusiness, Refusal>> {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let mut request = self.collection().create(&dry, value.to_string().into_bytes())?;
        *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri()).parse()?;
        Ok(self.cluster.client.request(request).await.map_err(Refusal::from))
    }

    /// The same for a change of what is stored under this name.
    async fn update(&self, stored: &WsBusiness, value: &Value) -> Result<Result<WsBusiness, Refusal>> {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let mut value = value.clone();
        value["metadata"]["resourceVersion"] = stored.metadata.resource_version.clone().into();
        let name = stored.metadata.name.as_deref().unwrap_or_default();
        let request = self.collection().replace(name, &dry, value.to_string().into_bytes())?;
        Ok(self.cluster.client.request(request).await.map_err(Refusal::from))
    }

    async fn store_good(&self) -> Result<WsBusiness> {
        let good = serde_json::from_value(self.cases.good.clone())?;
        Ok(self.namespace.businesses().create(&PostParams::default(), &good).await?)
    }
}

/// The `problem` of each rule that speaks in a refusal, and whether anything else speaks.
fn speakers(refusal: &Refusal) -> (BTreeSet<&'static str>, bool) {
    let mut problems = BTreeSet::new();
    let mut others = refusal.causes.is_empty();
    for (_, message) in &refusal.causes {
        let rule = rules::ALL.iter().find(|r| message.ends_with(&format!("{}: {}", r.problem, r.remedy)));
        match rule {
            Some(rule) => drop(problems.insert(rule.problem)),
            None => others = true,
        }
    }
    (problems, others)
}

#[tokio::test]
async fn it_is_established_with_nothing_to_complain_about() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let crd = Api::<CustomResourceDefinition>::all(cluster.client).get("wsbusinesses.wirepost.dev").await?;
    let conditions = crd.status.and_then(|s| s.conditions).context("no conditions")?;
    let true_ones: BTreeSet<_> = conditions.iter().filter(|c| c.status == "True").map(|c| c.type_.as_str()).collect();
    // Not among them: NonStructuralSchema, KubernetesAPIApprovalPolicyConformant, Terminating.
    assert_eq!(true_ones, BTreeSet::from(["Established", "NamesAccepted"]), "{conditions:#?}");
    Ok(())
}

#[tokio::test]
async fn each_refusal_is_the_one_that_the_offline_check_predicts() -> Result<()> {
    let fixture = Fixture::new().await?;
    let stored = fixture.store_good().await?;
    let mut wrong = Vec::new();
    for Refused { case, change, update, cluster } in &fixture.cases.refused {
        let value = fixture.changed(change);
        let answer =
            if *update { fixture.update(&stored, &value).await? } else { fixture.create(&renamed(value)).await? };
        let as_meant = match (cluster.as_str(), &answer) {
            ("nobody", answer) => answer.is_ok(),
            (_, Ok(_)) => false,
            ("schema", Err(refusal)) => (400..500).contains(&refusal.code) && speakers(refusal).1,
            (problem, Err(refusal)) => {
                let rule = rules::ALL.iter().find(|r| r.problem == problem).context("no such rule")?;
                let sentence = format!("{}: {}", rule.problem, rule.remedy);
                refusal.code == 422
                    && refusal.message.contains(&sentence)
                    && speakers(refusal) == (BTreeSet::from([problem]), false)
            }
        };
        if !as_meant {
            wrong.push(format!("{case}\n  meant: {cluster}\n  got:   {answer:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Another name than the stored one's, which a creation may not take; of the same kind, so that each rule still sees what it would.
fn renamed(mut value: Value) -> Value {
    if value["metadata"]["name"] == "pay" {
        value["metadata"]["name"] = "pay-2".into();
    }
    value
}

/// And what the API server makes of it is what the offline check makes of it: the same defaults, nothing dropped.
#[tokio::test]
async fn what_the_offline_check_accepts_is_stored_as_it_says() -> Result<()> {
    let fixture = Fixture::new().await?;
    for change in &fixture.cases.accepted {
        let value = fixture.changed(change);
        let offline = validate::parse(&value, None).map_err(|p| anyhow::anyhow!("{change}: {p:?}"))?;
        let stored = fixture.create(&value).await?.with_context(|| change.to_string())?;
        assert_eq!(stored.spec, offline.spec, "{change}");
    }
    Ok(())
}

#[tokio::test]
async fn defaults_are_filled_in_where_their_parent_is_given() -> Result<()> {
    let fixture = Fixture::new().await?;
    let stored = fixture.create(&fixture.changed(&json!({"spec": {"push": {}}}))).await??;
    let spec = serde_json::to_value(&stored.spec)?;
    assert_eq!(spec["push"], json!({"delivery": "Durable"}));
    // Within an item of a list a default would be a difference to the file forever.
    assert_eq!(spec["routes"], fixture.cases.good["spec"]["routes"]);
    // Absent stays absent: a later release may choose another default for it.
    for absent in ["businessType", "auth", "limits", "session", "access", "acceptFrom"] {
        assert!(spec.get(absent).is_none(), "{absent}");
    }
    Ok(())
}

#[tokio::test]
async fn every_example_is_accepted() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("examples").await?;
    let mut count = 0;
    for entry in Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yaml") {
            namespace.apply_yaml(&std::fs::read_to_string(&path)?).await.with_context(|| path.display().to_string())?;
            count += 1;
        }
    }
    assert!(count >= 3, "{count} examples");
    assert!(namespace.businesses().list(&kube::api::ListParams::default()).await?.items.len() >= count);
    Ok(())
}

#[tokio::test]
async fn kubectl_shows_what_matters_at_a_glance() -> Result<()> {
    let fixture = Fixture::new().await?;
    fixture.store_good().await?;
    let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"status": {
        "businessType": "pay",
        "edges": {"programmed": 1, "total": 3, "summary": "1/3"},
        "conditions": [condition("Accepted", "True", "Accepted"), condition("Ready", "False", "Programming")],
    }});
    fixture.namespace.businesses().patch_status("pay", &PatchParams::default(), &Patch::Merge(status)).await?;

    let mut request = fixture.collection().list(&kube::api::ListParams::default())?;
    request.headers_mut().insert("accept", "application/json;as=Table;g=meta.k8s.io;v=v1".parse()?);
    let table: Value = fixture.cluster.client.request(request).await?;
    let columns: Vec<(&str, i64)> = table["columnDefinitions"]
        .as_array()
        .context("no columns")?
        .iter()
        .filter_map(|c| Some((c["name"].as_str()?, c["priority"].as_i64()?)))
        .collect();
    // Priority 1: with `-o wide` only.
    assert_eq!(
        columns,
        [("Name", 0), ("Ready", 0), ("Type", 0), ("Edges", 0), ("Age", 0), ("Clients", 1), ("Reason", 1)]
    );
    let cells = &table["rows"][0]["cells"];
    assert_eq!([&cells[0], &cells[1], &cells[2], &cells[3], &cells[6]], ["pay", "False", "pay", "1/3", "Programming"]);
    Ok(())
}

/// The largest declaration that the schema allows stays within what the rules may cost at run time.
#[tokio::test]
async fn the_largest_declaration_is_accepted_and_a_larger_one_is_not() -> Result<()> {
    let fixture = Fixture::new().await?;
    let largest = fixture.changed(&json!({"spec": largest()}));
    assert_eq!(validate::check(&largest, None), []);
    fixture.create(&largest).await??;

    for (pointer, another) in [
        ("/spec/routes", json!({"messageType": "more", "sendType": "ServerToClient", "to": [client_type(0)]})),
        ("/spec/clientTypes", json!("more")),
        ("/spec/acceptFrom", json!({"businessType": "more", "messageTypes": ["a"]})),
        ("/spec/acceptFrom/0/messageTypes", json!("more")),
        ("/spec/auth/allowedOrigins", json!("https://more.example")),
        ("/spec/auth/jwt/audiences", json!("more")),
        ("/spec/auth/jwt/clientTypes", json!("more")),
        ("/spec/routes/0/to", json!("more")),
    ] {
        let mut larger = largest.clone();
        larger.pointer_mut(pointer).and_then(Value::as_array_mut).context(pointer)?.push(another);
        let field = pointer[1..].replace("/0", "[0]").replace('/', ".");
        assert!(validate::check(&larger, None).iter().any(|p| p.field == field), "offline, {field}");
        let refusal = fixture.create(&larger).await?.err().with_context(|| format!("{field} was accepted"))?;
        assert_eq!(refusal.code, 422);
        assert!(refusal.causes.iter().any(|(f, m)| *f == field && m.contains("Too many")), "{field}: {refusal:?}");
    }
    for (pointer, value) in [
        ("/spec/businessType", json!("b".repeat(41))),
        ("/spec/access/secretName", json!("s".repeat(254))),
        ("/spec/auth/jwt/issuer", json!("i".repeat(513))),
        ("/spec/auth/jwt/issuer", json!("")),
        ("/spec/auth/jwt/jwks/uri", json!(format!("https://id.example/{}", "k".repeat(1024)))),
        ("/spec/routes/0/messageType", json!("m".repeat(201))),
        ("/spec/push/retention/seconds", json!(0)),
        ("/spec/push/retention/seconds", json!(31_536_001)),
        ("/spec/limits/messageBytes", json!(1_048_577)),
        ("/spec/limits/perEdge/connections", json!(1_000_001)),
        ("/spec/limits/perEdge/memoryBytes", json!(17_179_869_185_i64)),
        ("/spec/session/maxSeconds", json!(4)),
    ] {
        let mut beyond = largest.clone();
        *beyond.pointer_mut(pointer).context(pointer)? = value;
        let field = pointer[1..].replace("/0", "[0]").replace('/', ".");
        assert!(validate::check(&beyond, None).iter().any(|p| p.field == field), "offline, {field}");
        let refusal = fixture.create(&beyond).await?.err().with_context(|| format!("{field} was accepted"))?;
        assert!(refusal.code == 422 && refusal.causes.iter().any(|(f, _)| *f == field), "{field}: {refusal:?}");
    }
    Ok(())
}

fn client_type(number: usize) -> String {
    format!("client-{number:0>33}")
}

/// Everything as long and as many as may be.
fn largest() -> Value {
    let types: Vec<_> = (0..16).map(client_type).collect();
    let routes: Vec<_> = (0..100)
        .map(|n| json!({"messageType": format!("{n:0>200}"), "sendType": "ClientToClient", "from": types, "to": types, "validate": "Http"}))
        .collect();
    let host = "o".repeat(230);
    json!({
        "businessType": "b".repeat(40),
        "clientTypes": types,
        "routes": routes,
        "push": {"retention": {"seconds": 31_536_000, "bytes": "1Ti"}},
        "auth": {
            "allowedOrigins": (0..64).map(|n| format!("https://{host}-{n:0>2}.example")).collect::<Vec<_>>(),
            "jwt": {
                "issuer": "i".repeat(512),
                "audiences": (0..16).map(|n| format!("{n:0>256}")).collect::<Vec<_>>(),
                "jwks": {"uri": format!("https://id.example/{}", "k".repeat(1005))},
                "clientTypes": types,
            },
        },
        "limits": {
            "messageBytes": 1_048_576,
            "perEdge": {
                "connections": 1_000_000, "messagesPerSecond": 1_000_000, "bytesPerSecond": 1_000_000_000,
                "pushesPerSecond": 1_000_000, "memoryBytes": 17_179_869_184_i64,
            },
        },
        "session": {"maxSeconds": 2_592_000},
        "access": {"secretName": "s".repeat(253)},
        "acceptFrom": (0..64).map(|n| json!({
            "businessType": format!("{n:0>40}"),
            "messageTypes": (0..16).map(|n| format!("{n:0>200}")).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
