//! Each refusal can be found in the log, with who, what and why; and a flood of them does not flood the log.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::setup::{PAYMENTS, Setup};

/// The lines of the audit so far.
fn lines(edge: &Edge) -> Vec<Value> {
    let lines = edge.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "wirepost_edge::audit").map(|mut line| line["fields"].take()).collect()
}

async fn start(setup: &Setup) -> Result<Edge> {
    setup.edge("e1").flag("log-json", true).start().await
}

/// A call with this credential.
async fn call(edge: &Edge, path: &str, header: &str, value: &str) -> Result<u16> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let request = if path.ends_with("messages") { http.post(url(edge, path)) } else { http.get(url(edge, path)) };
    Ok(request.header(header, value).send().await?.status().as_u16())
}

fn url(edge: &Edge, path: &str) -> String {
    format!("http://{}{path}", edge.public)
}

#[tokio::test]
async fn each_refusal_has_a_line_with_its_reason_and_no_credential() -> Result<()> {
    const SECRET: &str = "s3cret-that-nobody-may-read";
    let origins = "  auth: {allowedOrigins: [\"https://shop.example\"]}\n";
    let setup = Setup::new(&[&format!("{PAYMENTS}{origins}")]).await?;
    let edge = start(&setup).await?;
    let token = "/payments/websocket/token?uniqueId=alice&clientType=app";
    ensure!(call(&edge, token, "x-none", "x").await? == 401);
    ensure!(call(&edge, token, "x-api-key", SECRET).await? == 401);
    ensure!(call(&edge, "/payments/websocket/messages", "authorization", &format!("Bearer {SECRET}")).await? == 401);
    ensure!(call(&edge, "/payments/asyncapi.json", "x-api-key", SECRET).await? == 401);
    ensure!(call(&edge, &format!("/{SECRET}/websocket/token"), "x-api-key", SECRET).await? == 404);
    ensure!(
        call(&edge, "/payments/websocket/token?uniqueId=a&clientType=none", "x-api-key", setup.api_key()).await? == 400
    );
    edge.client("alice", "app").token(SECRET).upgrade().await?.close_code().await?;
    edge.client("alice", "app").origin("https://evil.example").upgrade().await?.close_code().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    alice.send(&json!({"op": "refresh", "token": SECRET})).await?;
    alice.control("error").await?;
    // What is wrong with a message is no refusal of a person.
    ensure!(edge.post(&json!({"messageType": "no.such"})).await?.0 == 400);

    let payments = Some("payments");
    let expected = [
        ("token", payments, "no_credential"),
        ("token", payments, "unknown_api_key"),
        ("push", payments, "unknown_api_key"),
        ("describe", payments, "unknown_api_key"),
        ("token", None, "unknown_business"),
        ("token", payments, "invalid_identity"),
        ("connect", None, "invalid_token"),
        ("connect", payments, "origin"),
        ("refresh", payments, "invalid_token"),
    ];
    eventually("all lines are there", PATIENCE, || async { Ok(lines(&edge).len() >= expected.len()) }).await?;
    let lines = lines(&edge);
    ensure!(lines.len() == expected.len(), "{lines:#?}");
    for (line, (action, business, reason)) in lines.iter().zip(expected) {
        ensure!(line["action"] == action && line["reason"] == reason && line["outcome"] == "refused", "{line}");
        ensure!(line["business"].as_str() == business && line["address"] == "127.0.0.1", "{line}");
        // The answer names what the caller sent; the log does not.
        let quotes = ["unknown_business", "invalid_identity"].contains(&reason);
        ensure!(line["detail"].as_str().is_none_or(str::is_empty) == quotes, "{line}");
        let series = format!("wirepost_edge_audited_total{{kind=\"{reason}\"}}");
        ensure!(edge.metric(&series).await? >= 1.0, "{series}");
    }
    for secret in [SECRET, setup.api_key()] {
        ensure!(!edge.log().contains(secret), "the log contains a credential");
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_refusals_is_summed_and_each_one_is_counted() -> Result<()> {
    const FLOOD: usize = 1_000;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = start(&setup).await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let token = url(&edge, "/payments/websocket/token");
    let statuses: Vec<u16> = stream::iter(0..FLOOD)
        .map(|n| {
            let request = http.get(&token).header("x-api-key", format!("forged-{n}"));
            async move { Ok::<_, reqwest::Error>(request.send().await?.status().as_u16()) }
        })
        .buffer_unordered(16)
        .filter_map(async |status| status.ok())
        .collect()
        .await;
    ensure!(statuses.len() == FLOOD && statuses.iter().all(|status| *status == 401), "{statuses:?}");
    // The last sums are written at the end.
    edge.sigterm()?;
    edge.exited(PATIENCE).await?;
    let mut counts: BTreeMap<bool, u64> = BTreeMap::new();
    for line in lines(&edge) {
        ensure!(line["action"] == "token" && line["business"] == "payments", "{line}");
        ensure!(line["reason"] == "unknown_api_key", "{line}");
        let count = line.get("count").map_or(Some(1), Value::as_u64).context("a count")?;
        *counts.entry(line.get("count").is_some()).or_default() += count;
    }
    ensure!(counts.values().sum::<u64>() == FLOOD as u64, "{counts:?}");
    let single = counts[&false];
    // A hundred, and ten more for each second that the flood took.
    ensure!((100..FLOOD as u64 / 2).contains(&single), "{single} lines of their own for {FLOOD} refusals");
    Ok(())
}
