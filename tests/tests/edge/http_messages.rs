//! `POST /{business}/websocket/messages`: one message or a batch, answered after the broker's confirm.

use anyhow::Result;
use serde_json::{Value, json};
use wirepost_testing::service::payment;
use wirepost_testing::setup::{PAYMENTS, Setup};

#[tokio::test]
async fn one_message_is_confirmed_and_reaches_its_client() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let mut alice = e2.client("alice", "app").connect().await?;
    let mut push = payment("alice", 1);
    push["id"] = json!("h1");
    let (status, answer) = e1.post(&push).await?;
    assert_eq!((status, &answer["result"]), (200, &json!(0)), "{answer}");
    assert_eq!(answer["data"]["id"], "h1");
    let received = alice.push().await?;
    assert_eq!((&received["id"], &received["content"]), (&json!("h1"), &json!({"n": 1})));
    // Without an id it gets one, and the answer names it.
    let (_, answer) = e1.post(&payment("alice", 2)).await?;
    assert_eq!(alice.push().await?["id"], answer["data"]["id"]);
    Ok(())
}

#[tokio::test]
async fn a_batch_has_a_result_for_each_item_and_keeps_its_order() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let batch: Vec<Value> = (1..=200).map(|n| payment("alice", n)).collect();
    let (status, answer) = edge.post(&json!(batch)).await?;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["data"].as_array().unwrap().len(), 200);
    assert_eq!(alice.numbers(200).await?, (1..=200).collect::<Vec<_>>());

    let (status, answer) = edge
        .post(&json!([
            payment("alice", 201),
            {"id": "bad", "messageType": "no.such", "toUniqueId": "alice"},
            7,
            payment("alice", 202),
        ]))
        .await?;
    assert_eq!(status, 207, "{answer}");
    let results: Vec<_> = answer["data"].as_array().unwrap().iter().map(|item| item["result"] == 0).collect();
    assert_eq!(results, [true, false, false, true], "{answer}");
    assert_eq!(answer["data"][1]["id"], "bad");
    assert_eq!(answer["data"][1]["field"], "messageType");
    assert_eq!(alice.numbers(2).await?, [201, 202]);
    Ok(())
}

#[tokio::test]
async fn what_can_not_be_pushed_is_refused_with_a_status_and_a_sentence() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    for (status, body) in [
        (400, b"{".to_vec()),
        (400, b"".to_vec()),
        (400, b"[]".to_vec()),
        (400, json!({"messageType": "no.such", "toUniqueId": "alice"}).to_string().into_bytes()),
        (400, json!({"messageType": "payment.completed", "toUniqueId": "*"}).to_string().into_bytes()),
        (400, json!({"messageType": "order.placed", "sendType": "ClientToServer"}).to_string().into_bytes()),
        (
            413,
            json!({"messageType": "till.notice", "toUniqueId": "*", "content": "x".repeat(300_000)})
                .to_string()
                .into_bytes(),
        ),
        (413, vec![b' '; 9 << 20]),
    ] {
        let (answered, answer) = edge.post_bytes(body.clone()).await?;
        assert_eq!(answered, status, "{answer} to {:?}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        assert_ne!(answer["result"], 0);
        assert!(answer["description"].as_str().is_some_and(|sentence| sentence.len() > 10), "{answer}");
    }
    let url = format!("http://{}/payments/websocket/messages", edge.public);
    let http = reqwest::Client::builder().no_proxy().build()?;
    for request in [http.post(&url), http.post(&url).header("x-api-key", "wrong")] {
        assert_eq!(request.body(payment("alice", 1).to_string()).send().await?.status(), 401);
    }
    edge.post(&payment("alice", 2)).await?;
    assert_eq!(alice.numbers(1).await?, [2], "nothing of all that came");
    Ok(())
}
