//! Whatever filter a person sets, no log holds a token, a password or what a message says.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::operator::World;
use wirepost_testing::service::Service;
use wirepost_testing::setup::{PAYMENTS, Setup};

/// The last part of what signs a token.
fn end(token: &str) -> &str {
    &token[token.len().saturating_sub(24)..]
}

#[tokio::test]
async fn an_edge_that_logs_everything_writes_no_token_and_no_content() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").log_filter("trace,lapin=trace,tungstenite=trace").start().await?;
    let service = Service::connect(&setup).await?;
    let url = edge.token("payments", "alice", "app", &[]).await?;
    let ticket = url.rsplit('/').next().context("a ticket")?.to_owned();
    let mut alice = edge.client("alice", "app").token(ticket.as_str()).connect().await?;
    let resume = alice.resume_token();
    alice.send_acked(&json!({"id": "o", "messageType": "order.placed", "content": "sent-content"})).await?;
    let push = json!({"messageType": "payment.completed", "toUniqueId": "alice", "content": "pushed-content"});
    service.push(&push).await?;
    alice.push().await?;
    edge.post(&push).await?;
    alice.push().await?;
    // One that the broker returns.
    setup.delete_exchange("wirepost.payments.receive").await?;
    alice.send(&json!({"id": "r", "messageType": "order.placed", "content": "returned-content"})).await?;
    alice.nack("r").await?;
    drop(alice);
    edge.client("alice", "app").token(resume.as_str()).greeted().await?;
    let log = edge.log();
    ensure!(log.contains("DEBUG") && log.contains("connection ended"), "our own lines are there");
    for secret in [end(&ticket), end(&resume), "sent-content", "pushed-content", "returned-content", setup.api_key()] {
        let line = log.lines().find(|line| line.contains(secret));
        ensure!(line.is_none(), "{secret} in {line:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_logs_everything_writes_no_password() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").log_filter("trace,hyper=trace,kube_client=trace").start().await?;
    world.apply(&format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    eventually("it logs", PATIENCE, || async { Ok(operator.log().contains("starting")) }).await?;
    let log = operator.log();
    for key in ["password", "api-key", "uri"] {
        let value = secret.get(key).with_context(|| format!("no {key} among {:?}", secret.keys()))?;
        let line = log.lines().find(|line| line.contains(value.as_str()));
        ensure!(line.is_none(), "{key} in {line:?}");
    }
    Ok(())
}
