//! No client is left behind that only a restart brings back: an edge that does not have a business says "come back", and only one that saw
//! it go says "gone".

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::{ClientBuilder, Refused};
use wirepost_testing::edge::Edge;
use wirepost_testing::setup::{PAYMENTS, Setup, TICKER};

async fn close_code(client: ClientBuilder<'_>) -> Result<u16> {
    client.upgrade().await.context("a browser must see an upgrade")?.close_code().await
}

/// Status and result of a refused upgrade without the subprotocol.
async fn http(client: ClientBuilder<'_>) -> Result<(u16, u64)> {
    let error = client.plain().upgrade().await.err().context("not refused")?;
    let refused = error.downcast_ref::<Refused>().context("not refused as HTTP")?;
    Ok((refused.status, refused.body["result"].as_u64().unwrap_or_default()))
}

/// Status and result of the token call.
async fn token(edge: &Edge, business: &str) -> Result<(u16, u64)> {
    let query = [("uniqueId", "alice"), ("clientType", "app")];
    let (status, body): (u16, Value) = edge.get(&format!("/{business}/websocket/token"), &query).await?;
    Ok((status, body["result"].as_u64().unwrap_or_default()))
}

fn ticket(url: &str) -> String {
    url.rsplit('/').next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn an_edge_that_has_not_got_a_business_sends_its_clients_to_the_next_one() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, TICKER]).await?;
    let first = setup.edge("first").start().await?;
    // Ready, and with less than the others have.
    let behind = setup.dir().join("behind");
    std::fs::create_dir(&behind)?;
    std::fs::copy(setup.config_dir().join("ticker.json"), behind.join("ticker.json"))?;
    let lagging = setup.edge("lagging").flag("config-dir", behind.display()).start().await?;
    let alice = first.client("alice", "app").connect().await?;
    let held = [ticket(&first.token("payments", "alice", "app", &[]).await?), alice.resume_token()];
    for token in &held {
        assert_eq!(close_code(lagging.client("alice", "app").token(token.as_str())).await?, 1013);
        assert_eq!(http(lagging.client("alice", "app").token(token.as_str())).await?, (503, 50_304));
        // What it holds is as good as before.
        first.client("alice", "app").token(token.as_str()).connect().await?;
    }
    // It has all that it knows of: the name may as well be a slip.
    assert_eq!(token(&lagging, "payments").await?, (404, 40_402));
    // Where the business's configuration is there and can't be run, it is no slip.
    let mut config = setup.config("payments")?;
    config.routes[0].schema = Some(json!({"type": "no-such-type"}));
    let file = behind.join("payments.json");
    std::fs::write(&file, serde_json::to_vec(&config)?)?;
    eventually("it is known to be declared", PATIENCE, || async {
        Ok(token(&lagging, "payments").await? == (503, 50_304))
    })
    .await?;
    std::fs::copy(setup.config_dir().join("payments.json"), &file)?;
    eventually("it catches up", PATIENCE, || async { Ok(token(&lagging, "payments").await?.0 == 200) }).await?;
    lagging.client("alice", "app").token(held[1].as_str()).connect().await?;
    // Now it has seen it, and sees it go.
    std::fs::remove_file(&file)?;
    eventually("it goes", PATIENCE, || async { Ok(token(&lagging, "payments").await? == (404, 40_402)) }).await?;
    assert_eq!(close_code(lagging.client("alice", "app").token(held[1].as_str())).await?, 4010);
    assert_eq!(http(lagging.client("alice", "app").token(held[1].as_str())).await?, (404, 40_402));
    // While its source is away it can't say so: the business may be back.
    std::fs::rename(&behind, setup.dir().join("away"))?;
    eventually("it knows that it knows nothing", PATIENCE, || async {
        Ok(close_code(lagging.client("alice", "app").token(held[1].as_str())).await? == 1013)
    })
    .await
}

#[tokio::test]
async fn before_its_first_configuration_an_edge_refuses_nobody_for_good() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let first = setup.edge("first").start().await?;
    let held = ticket(&first.token("payments", "alice", "app", &[]).await?);
    let later = setup.dir().join("later");
    let edge = setup.edge("starting").flag("config-dir", later.display()).start_unready().await?;
    assert_eq!(edge.readyz().await?.0, 503);
    assert_eq!(token(&edge, "payments").await?, (503, 50_304));
    let (status, body) = edge.post(&json!({"messageType": "payment.completed", "toUniqueId": "alice"})).await?;
    assert_eq!((status, body["result"].as_u64()), (503, Some(50_304)), "{body}");
    assert_eq!(close_code(edge.client("alice", "app").token(held.as_str())).await?, 1013);
    std::fs::rename(setup.config_dir(), later)?;
    eventually("the edge is ready", PATIENCE, || async { Ok(edge.readyz().await?.0 == 200) }).await?;
    edge.client("alice", "app").token(held).connect().await?;
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_away_for_a_moment_costs_no_client() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let file = setup.config_dir().join("payments.json");
    let text = std::fs::read(&file)?;
    for _ in 0..6 {
        std::fs::remove_file(&file)?;
        // So long that the look, once a second, falls into it now and then, and never twice in a row.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        std::fs::write(&file, &text)?;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    }
    alice.sync().await?;
    alice.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await
}
