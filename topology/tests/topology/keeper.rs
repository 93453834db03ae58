//! The keeper: one slow call of the broker delays nothing else, and no call outlives the right to write.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use wirepost_testing::broker::{PATIENCE, Vhost, eventually};
use wirepost_testing::proxy::Network;
use wirepost_topology::{KeepReason, Problem};

use crate::kept::Kept;

/// The head of a call that sets a policy.
const SETS_A_POLICY: &str = "PUT /api/policies/";

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_takes_long_delays_no_other_business() -> Result<()> {
    let kept = Kept::of(Vhost::create().await?, None).await?;
    kept.ensure("first", false).await?;
    kept.management.hold(SETS_A_POLICY);
    let slow = kept.begin("slow", true);
    eventually("a policy is being set", PATIENCE, || async { Ok(kept.management.held() > 0) }).await?;
    // A new business, an unchanged one, and one that is removed.
    for business in ["second", "first"] {
        tokio::time::timeout(PATIENCE, kept.ensure(business, false)).await.context(business)??;
    }
    tokio::time::timeout(PATIENCE, kept.keeper.remove("second", None, false)).await??;
    ensure!(!slow.is_finished(), "the policy was set: this test proves nothing");
    kept.management.hold("");
    ensure!(slow.await??.report.is_clean());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_ends_with_the_right_to_write() -> Result<()> {
    let kept = Kept::of(Vhost::create().await?, None).await?;
    kept.ensure("first", false).await?;
    kept.management.hold(SETS_A_POLICY);
    let slow = kept.begin("slow", true);
    eventually("a policy is being set", PATIENCE, || async { Ok(kept.management.held() > 0) }).await?;
    kept.owner.may_write.send_replace(false);
    // It would have 30 s.
    let answer = tokio::time::timeout(Duration::from_secs(15), slow).await.context("the call goes on")??;
    ensure!(answer.is_err_and(|failure| failure.stopped));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_amqp_everything_else_goes_on_and_it_is_reported() -> Result<()> {
    let kept = Kept::of(Vhost::create().await?, None).await?;
    kept.ensure("first", false).await?;
    kept.amqp.set(Network::Stalled);
    kept.amqp.cut();
    let removed = kept.begin_remove("first");
    tokio::time::timeout(PATIENCE, kept.ensure("second", false)).await??;
    let report = removed.await??.report;
    let unknown = |problem: &Problem| matches!(problem, Problem::Kept { because: KeepReason::Unknown(_), .. });
    ensure!(report.problems.iter().any(unknown), "what can't be counted stays: {:?}", report.problems);
    kept.owner.amqp.subscribe().wait_for(|answers| *answers == Some(false)).await?;
    kept.amqp.set(Network::Fine);
    tokio::time::timeout(PATIENCE, kept.owner.amqp.subscribe().wait_for(|answers| *answers == Some(true))).await??;
    eventually("the business is removed", PATIENCE, || async {
        Ok(kept.keeper.remove("first", None, false).await?.is_clean())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_one_request_and_nothing_else() -> Result<()> {
    let kept = Kept::of(Vhost::create().await?, None).await?;
    kept.ensure("first", false).await?;
    kept.owner.panics().due = true;
    let failure = kept.ensure("second", false).await.err().context("it did not panic")?;
    ensure!(!failure.stopped && failure.to_string().contains("a test asked for it"), "{failure}");
    ensure!(kept.owner.panics().reported == 1);
    for business in ["second", "third"] {
        ensure!(kept.ensure(business, false).await?.report.is_clean());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_count_by_amqp_fails_that_count_and_nothing_else() -> Result<()> {
    let kept = Kept::of(Vhost::create().await?, None).await?;
    kept.owner.panics().count_due = true;
    kept.ensure("first", false).await?;
    eventually("the panic is reported", PATIENCE, || async { Ok(kept.owner.panics().reported == 1) }).await?;
    ensure!(kept.ensure("second", false).await?.report.is_clean());
    tokio::time::timeout(PATIENCE, kept.owner.amqp.subscribe().wait_for(|answers| *answers == Some(true))).await??;
    Ok(())
}
