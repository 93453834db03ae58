//! Content whose check against the route's schema would take long: bounded, off the threads that serve sockets, and in order.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use wirepost_testing::client::Client;
use wirepost_testing::service::{Service, next_json};
use wirepost_testing::setup::Setup;

/// 90 references to a choice of 90 constants for each item: two kilobytes that make 8,100 comparisons a value.
fn costly() -> Value {
    let constants: Vec<_> = (0..90).map(|n| json!({"const": n})).collect();
    let references: Vec<_> = (0..90).map(|_| json!({"$ref": "#/$defs/one"})).collect();
    json!({"type": "array", "items": {"anyOf": references}, "$defs": {"one": {"anyOf": constants}}})
}

fn business() -> String {
    // Each text, also an empty one, makes it look at thousands of states.
    let texts = json!({"type": "array", "items": {"type": "string", "pattern": "^(?:(a?|b?)){3000}$"}});
    let lines = json!({"type": "array", "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}});
    json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "shop", "namespace": "shop"},
        "spec": {
            "clientTypes": ["app"],
            "routes": [
                {"messageType": "costly.up", "sendType": "ClientToServer", "queue": {"name": "costly"}, "schema": costly()},
                {"messageType": "costly.down", "sendType": "ServerToClient", "to": ["app"], "schema": costly()},
                {"messageType": "texts", "sendType": "ClientToServer", "queue": {"name": "texts"}, "schema": texts},
                {"messageType": "lines", "sendType": "ClientToServer", "queue": {"name": "lines"}, "schema": lines},
                {"messageType": "order.placed", "sendType": "ClientToServer", "queue": {"name": "orders"}},
            ],
            "limits": {"messagesPerSecond": 1000, "burst": 1000, "messageBytes": 1_048_576, "pushBytes": 1_048_576},
        },
    })
    .to_string()
}

/// The answer to a message, which is sent again as long as the edge is too busy to check it.
async fn answer(client: &mut Client, message: &Value) -> Result<Value> {
    loop {
        client.send(message).await?;
        let answer = client.answer().await?;
        let Some(wait) = answer["retryAfterMs"].as_u64() else { return Ok(answer) };
        assert_eq!((&answer["code"], &answer["retryable"]), (&json!("overloaded"), &json!(true)), "{answer}");
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}

fn numbers(count: usize) -> Value {
    json!(vec![-1; count])
}

#[tokio::test]
async fn one_clients_message_does_not_freeze_an_edge() -> Result<()> {
    let setup = Setup::new(&[&business()]).await?;
    let edge = setup.edge("e1").start().await?;
    let flood = |n: usize| {
        let edge = &edge;
        async move {
            let mut client = edge.client(&format!("flood-{n}"), "app").connect().await?;
            for i in 0..2 {
                // 64 KiB, and a megabyte.
                for count in [20_000, 300_000] {
                    let message =
                        json!({"id": format!("{i}-{count}"), "messageType": "costly.up", "content": numbers(count)});
                    let nack = answer(&mut client, &message).await?;
                    assert_eq!((&nack["code"], &nack["retryable"]), (&json!("too_complex"), &json!(false)), "{nack}");
                }
            }
            anyhow::Ok(())
        }
    };
    let neighbour = async {
        let mut bob = edge.client("bob", "app").connect().await?;
        for n in 0..20 {
            bob.send_acked(&json!({"id": n.to_string(), "messageType": "order.placed"})).await?;
            assert_eq!(edge.admin("/livez").await?.0, 200);
        }
        // What is small enough is checked by the same schema.
        let good = json!({"id": "good", "messageType": "costly.up", "content": vec![7; 100]});
        assert_eq!(answer(&mut bob, &good).await?["op"], "ack");
        let bad = json!({"id": "bad", "messageType": "costly.up", "content": numbers(100)});
        assert_eq!(answer(&mut bob, &bad).await?["code"], "schema_mismatch");
        anyhow::Ok(())
    };
    let (flooded, neighbour) = tokio::join!(try_join_all((0..4).map(flood)), neighbour);
    flooded?;
    neighbour?;
    let push = |count| json!({"id": "p", "messageType": "costly.down", "toUniqueId": "bob", "content": numbers(count)});
    let (status, answer) = edge.post(&push(20_000)).await?;
    assert_eq!((status, &answer["result"]), (413, &json!(41_302)), "{answer}");
    assert_eq!(edge.post(&push(100)).await?.1["result"], 40_006);
    Ok(())
}

#[tokio::test]
async fn texts_without_a_letter_freeze_no_edge() -> Result<()> {
    let setup = Setup::new(&[&business()]).await?;
    let edge = setup.edge("e1").start().await?;
    let (mut mallory, mut bob) =
        tokio::try_join!(edge.client("mallory", "app").connect(), edge.client("bob", "app").connect())?;
    let texts = |count: usize| json!({"id": "t", "messageType": "texts", "content": vec![""; count]});
    for _ in 0..3 {
        let nack = answer(&mut mallory, &texts(300_000)).await?;
        assert_eq!((&nack["code"], &nack["retryable"]), (&json!("too_complex"), &json!(false)), "{nack}");
        // Large content of others is checked beside it.
        let numbers = json!({"id": "n", "messageType": "costly.up", "content": vec![7; 100]});
        assert_eq!(answer(&mut bob, &numbers).await?["op"], "ack");
    }
    assert_eq!(answer(&mut mallory, &texts(10)).await?["op"], "ack", "few of them are no burden");
    Ok(())
}

/// One message is checked against the schema of each route that matches it, and there may be a hundred.
#[tokio::test]
async fn all_routes_that_match_a_message_check_it_no_longer_than_one() -> Result<()> {
    // Each word of the type as it is, or as any.
    let pattern = |n: usize| {
        let word = |(i, word): (usize, &'static str)| if n >> i & 1 == 1 { "*" } else { word };
        ["a", "b", "c", "d", "e"].into_iter().enumerate().map(word).collect::<Vec<_>>().join(".")
    };
    let mut declared: Value = serde_json::from_str(&business())?;
    let routes = (0..32).map(|n| {
        json!({"messageType": pattern(n), "sendType": "ClientToServer", "queue": {"name": "many"}, "schema": costly()})
    });
    declared["spec"]["routes"].as_array_mut().into_iter().for_each(|all| all.extend(routes.clone()));
    let setup = Setup::new(&[&declared.to_string()]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut mallory = edge.client("mallory", "app").connect().await?;
    let message =
        |message_type: &str, count: usize| json!({"id": "m", "messageType": message_type, "content": vec![7; count]});
    // A route that nothing overlaps takes as much alone.
    assert_eq!(answer(&mut mallory, &message("costly.up", 100)).await?["op"], "ack");
    let nack = answer(&mut mallory, &message("a.b.c.d.e", 100)).await?;
    assert_eq!(nack["code"], "too_complex", "{nack}");
    assert_eq!(answer(&mut mallory, &message("a.b.c.d.e", 3)).await?["op"], "ack");
    Ok(())
}

#[tokio::test]
async fn messages_of_a_connection_keep_their_order_past_a_long_check() -> Result<()> {
    let setup = Setup::new(&[&business()]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut queue = service.consume("lines", 100).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let lines = |count: usize| (0..count).map(|n| json!({"n": n})).collect::<Vec<_>>();
    let ids: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    for (n, id) in ids.iter().enumerate() {
        let count = if n % 2 == 0 { 40_000 } else { 1 };
        alice.send(&json!({"id": id, "messageType": "lines", "content": lines(count)})).await?;
    }
    for id in &ids {
        alice.ack(id).await?;
        assert_eq!(next_json(&mut queue).await?["id"], json!(id));
    }
    let mut wrong = lines(40_000);
    wrong.push(json!({}));
    alice.send(&json!({"id": "wrong", "messageType": "lines", "content": wrong})).await?;
    let nack = alice.nack("wrong").await?;
    assert_eq!(nack["code"], "schema_mismatch");
    assert!(nack["reason"].as_str().is_some_and(|reason| reason.contains("/40000")), "says where: {nack}");
    Ok(())
}
