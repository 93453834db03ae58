//! What exists decides what a change destroys: a keeper that has just begun, and remembers nothing, cuts no stream unasked, and holds back
//! nothing else.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, Vhost, eventually};
use wirepost_topology::keeper::{Desired, Destroying, Phase};
use wirepost_topology::{Problem, Report};

use crate::kept::Kept;
use crate::support::{declared, route};

const STREAM: &str = "wirepost.pay.stream";
const SHARED: &str = "wirepost.streams";

/// One with this retention in seconds, or the default, with a queue, and what becomes of messages.
async fn ensure(kept: &Kept, retention: Option<u32>, queue: &str, destroying: Destroying) -> Result<Report> {
    let mut push = json!({"delivery": "Durable"});
    if let Some(seconds) = retention {
        push["retention"] = json!({"seconds": seconds});
    }
    let topology = declared("pay", &json!([route("order", queue)]), &push);
    let desired = Arc::new(Desired { topology, destroying, ..Desired::default() });
    Ok(Report::clone(&kept.keeper.ensure("pay", desired, Phase::Grow).await?.report))
}

/// How long the stream keeps a message.
async fn in_force(vhost: &Vhost) -> Result<Value> {
    let path = format!("/api/queues/{}/{STREAM}?disable_stats=true", vhost.name);
    let queue: Value = serde_json::from_str(&vhost.broker.call("GET", &path, "").await?)?;
    let policy = queue["policy"].as_str().context("no policy is in force")?;
    let path = format!("/api/policies/{}/{policy}", vhost.name);
    let policy: Value = serde_json::from_str(&vhost.broker.call("GET", &path, "").await?)?;
    Ok(policy["definition"]["max-age"].clone())
}

async fn keeps(vhost: &Vhost, max_age: &str) -> Result<()> {
    let what = format!("the stream keeps messages for {max_age}");
    eventually(&what, PATIENCE, || async { Ok(in_force(vhost).await? == max_age) }).await
}

fn held(report: &Report, change: &str) -> Result<()> {
    let is = |problem: &Problem| problem.is_held() && problem.to_string().contains(change);
    ensure!(report.problems.iter().any(is), "{:?}", report.problems);
    Ok(())
}

/// Queues that are not declared any more wait for edges, here for good.
fn holds_nothing(report: &Report) -> bool {
    !report.problems.iter().any(Problem::is_held)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_without_memory_cuts_no_stream_unasked() -> Result<()> {
    let vhost = Vhost::create().await?;
    let another = Vhost { broker: vhost.broker.clone(), name: vhost.name.clone() };
    let hour = Some(3600);
    let first = Kept::of(vhost, None).await?;
    ensure!(holds_nothing(&ensure(&first, hour, "orders", Destroying::Held).await?));
    let kept = Kept::of(another, None).await?;
    let vhost = &kept.vhost;

    // What is not concerned is done, and greater retentions are.
    let report = ensure(&kept, Some(60), "invoices", Destroying::Held).await?;
    held(&report, "max-age 3600s → 60s")?;
    keeps(vhost, "3600s").await?;
    ensure!(report.changes.iter().any(|change| change.contains("create queue wirepost.pay.q.invoices")), "{report:?}");
    ensure!(holds_nothing(&ensure(&kept, Some(7200), "invoices", Destroying::Held).await?));
    keeps(vhost, "7200s").await?;
    // The default of a day is the shared policy.
    ensure!(holds_nothing(&ensure(&kept, None, "invoices", Destroying::Held).await?));
    keeps(vhost, "86400s").await?;
    held(&ensure(&kept, hour, "invoices", Destroying::Held).await?, "max-age 86400s → 3600s")?;
    keeps(vhost, "86400s").await?;

    // Something else runs: nothing of the change is done.
    let report = ensure(&kept, hour, "refunds", Destroying::Refused).await?;
    held(&report, "max-age 86400s → 3600s")?;
    ensure!(report.changes.is_empty(), "{report:?}");
    ensure!(holds_nothing(&ensure(&kept, hour, "invoices", Destroying::Allowed).await?));
    keeps(vhost, "3600s").await?;

    // Back to a shared policy that gives less than the own one did.
    ensure!(holds_nothing(&ensure(&kept, Some(90_000), "invoices", Destroying::Held).await?));
    held(&ensure(&kept, None, "invoices", Destroying::Held).await?, "max-age 90000s → 86400s")?;
    keeps(vhost, "90000s").await
}

/// As an administrator does it who needs more time, or another version that had another default.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_policy_that_keeps_more_stays_until_somebody_deletes_it() -> Result<()> {
    let kept = Kept::of(Vhost::create().await?, None).await?;
    let vhost = &kept.vhost;
    ensure!(holds_nothing(&ensure(&kept, None, "orders", Destroying::Held).await?));
    let path = format!("/api/policies/{}/{SHARED}", vhost.name);
    let mut policy: Value = serde_json::from_str(&vhost.broker.call("GET", &path, "").await?)?;
    policy["definition"]["max-age"] = json!("200000s");
    vhost.broker.call("PUT", &path, &policy.to_string()).await?;
    // It is named where it concerns somebody, and holds nothing back.
    eventually("the business names the shared policy", PATIENCE, || async {
        let report = ensure(&kept, None, "invoices", Destroying::Allowed).await?;
        Ok(held(&report, SHARED).is_ok())
    })
    .await?;
    // A wrong write would come after one of these looks.
    kept.owner.looks(3).await?;
    keeps(vhost, "200000s").await?;
    vhost.broker.call("DELETE", &path, "").await?;
    keeps(vhost, "86400s").await?;
    eventually("nothing is held", PATIENCE, || async {
        Ok(holds_nothing(&ensure(&kept, None, "invoices", Destroying::Held).await?))
    })
    .await
}
