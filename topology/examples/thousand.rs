//! What the operator's work costs a broker: makes N businesses with users in a vhost of its own, looks at them, removes them.
//!
//!     scripts/with-broker cargo run -p wirepost-topology --example thousand -- 1000 [HOW MANY OF THEM WITH LIMITS OF THEIR OWN]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::{Connection, ConnectionProperties};
use serde_json::json;
use tokio::time::Instant;
use wirepost_core::business::WsBusiness;
use wirepost_core::compile::compile_one;
use wirepost_core::topology::Topology;
use wirepost_rabbitmq::{ManagementClient, ManagementSettings};
use wirepost_topology::{ApplyOptions, DesiredUser, Plan, Snapshot, apply_plan, business_user, unrouted};

/// Plans carried out at once; each makes up to eight calls at once.
const AT_ONCE: usize = 8;

#[tokio::main]
async fn main() -> Result<()> {
    let count: usize = std::env::args().nth(1).map_or(Ok(1000), |n| n.parse())?;
    let special: usize = std::env::args().nth(2).map_or(Ok(0), |n| n.parse())?;
    let url = std::env::var("WIREPOST_TEST_MANAGEMENT").context("run it with scripts/with-broker")?;
    let amqp = std::env::var("WIREPOST_TEST_AMQP")?;
    let vhost = "thousand";
    let timeout = Some(Duration::from_secs(30));
    let management = ManagementClient::new(ManagementSettings {
        url,
        vhost: vhost.to_owned(),
        credentials: None,
        tls: wirepost_rabbitmq::TlsFiles::default(),
        timeout,
    })?;
    management.create_vhost().await?;
    let connection =
        Connection::connect(&format!("{}/{vhost}", amqp.trim_end_matches('/')), ConnectionProperties::default())
            .await?;

    let businesses: Vec<(String, Topology, [DesiredUser; 1])> = (0..count)
        .map(|i| {
            let name = format!("business-{i}");
            let topology = topology(&name, i < special)?;
            let user = business_user(vhost, &name, "0a1b2c3d", "secret");
            Ok((name, topology, [user]))
        })
        .collect::<Result<_>>()?;
    let plans = |snapshot: &Snapshot| -> Vec<Plan> {
        businesses.iter().map(|(name, topology, user)| snapshot.plan(name, topology, Some(user))).collect()
    };

    let more = (
        "one-more".to_owned(),
        topology("one-more", special > 0)?,
        [business_user(vhost, "one-more", "0a1b2c3d", "secret")],
    );
    apply_plan(&management, Snapshot::read(&management).await?.plan_shared(), ApplyOptions::default()).await?;
    each_kind(&management, &more).await?;
    let empty = Snapshot::read(&management).await?;
    measure("all new", carry_out(&management, plans(&empty), ApplyOptions::default())).await?;
    for _ in 0..3 {
        let snapshot = measure("snapshot", async { Ok(Snapshot::read(&management).await?) }).await?;
        let start = Instant::now();
        ensure!(plans(&snapshot).iter().all(Plan::is_empty), "not as declared");
        println!("all planned, nothing to do: {:?}", start.elapsed());
    }
    each_kind(&management, &more).await?;
    let names: Vec<&str> = businesses.iter().map(|(name, ..)| name.as_str()).collect();
    let waiting = measure("unrouted messages looked for", async { Ok(unrouted::waiting(&connection, &names).await?) });
    ensure!(waiting.await?.is_empty());
    let snapshot = Snapshot::read(&management).await?;
    let removals = names.iter().map(|name| snapshot.plan(name, &Topology::default(), Some(&[]))).collect();
    let options = ApplyOptions { amqp: Some(&connection), delete_streams: true, ..ApplyOptions::default() };
    measure("all removed", carry_out(&management, removals, options)).await?;
    ensure!(Snapshot::read(&management).await?.businesses().next().is_none(), "something is left");
    Ok(())
}

fn topology(name: &str, special: bool) -> Result<Topology> {
    let (queue, push) = if special {
        (json!({ "name": "orders", "maxLength": 5000 }), json!({ "retention": { "bytes": "100Mi" } }))
    } else {
        (json!({ "name": "orders" }), json!({}))
    };
    let business: WsBusiness = serde_json::from_value(json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
        "metadata": { "name": name, "namespace": "test" },
        "spec": { "clientTypes": ["app"], "routes": [
            { "messageType": "order.*", "sendType": "ClientToServer", "queue": queue },
            { "messageType": "order.done", "sendType": "ServerToClient", "to": ["app"] },
        ], "push": push },
    }))?;
    Ok(compile_one(&business).map_err(|e| anyhow::anyhow!("{e:?}"))?.topology)
}

async fn carry_out(management: &ManagementClient, plans: Vec<Plan>, options: ApplyOptions<'_>) -> Result<()> {
    stream::iter(plans)
        .map(|plan| apply_plan(management, plan, options))
        .buffer_unordered(AT_ONCE)
        .map_err(anyhow::Error::from)
        .try_for_each(|report| async move {
            ensure!(report.is_clean(), "{:?}", report.problems);
            Ok(())
        })
        .await
}

/// One business step by step, and removed again: what each kind of call takes.
async fn each_kind(
    management: &ManagementClient,
    (name, topology, user): &(String, Topology, [DesiredUser; 1]),
) -> Result<()> {
    let mut took: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let options = ApplyOptions { delete_messages: true, ..ApplyOptions::default() };
    for (topology, users) in [(topology, user.as_slice()), (&Topology::default(), &[])] {
        let plan = Snapshot::read(management).await?.plan(name, topology, Some(users));
        for step in plan.steps {
            let kind: String = step.to_string().split(' ').take(2).collect::<Vec<_>>().join(" ");
            let kind = if step.to_string().ends_with(".stream") { format!("{kind} (stream)") } else { kind };
            let mut one = Plan::default();
            one.steps.push(step);
            let start = Instant::now();
            apply_plan(management, one, options).await?;
            took.entry(kind).or_default().push(start.elapsed().as_secs_f32() * 1000.0);
        }
    }
    for (kind, times) in took {
        println!("  {kind}: {times:.1?} ms");
    }
    Ok(())
}

async fn measure<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let start = Instant::now();
    let done = work.await?;
    println!("{what}: {:?}", start.elapsed());
    Ok(done)
}
