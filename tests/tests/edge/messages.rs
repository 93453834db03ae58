//! Token, socket, and the three kinds of message on a real RabbitMQ.

use std::time::Duration;

use anyhow::Result;
use lapin::options::BasicAckOptions;
use serde_json::json;
use wirepost_testing::broker::next;
use wirepost_testing::client::Refused;
use wirepost_testing::service::{Service, body, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

#[tokio::test]
async fn a_clients_message_reaches_the_queue_of_its_route_stamped_with_its_sender() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut refreshes = service.consume("qr-refresh", 10).await?;
    let mut alice = edge.client("alice", "h5").connect().await?;
    alice
        .send_acked(&json!({"id": "r1", "messageType": "qr.refresh", "content": {"qrId": "q"}, "own": [1, 2]}))
        .await?;

    let delivery = next(&mut refreshes).await?;
    let envelope = body(&delivery)?;
    for (field, value) in [
        ("id", json!("r1")),
        ("sendType", json!("ClientToServer")),
        ("messageType", json!("qr.refresh")),
        ("businessType", json!("payments")),
        ("fromUniqueId", json!("alice")),
        ("fromClientType", json!("h5")),
        ("content", json!({"qrId": "q"})),
        ("own", json!([1, 2])),
    ] {
        assert_eq!(envelope[field], value, "{field} in {envelope}");
    }
    assert!(envelope["timestamp"].as_i64().unwrap() > 0);
    let properties = &delivery.properties;
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "r1");
    assert_eq!(*properties.delivery_mode(), Some(2), "persistent");
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(delivery.routing_key.as_str(), "qr.refresh");
    delivery.ack(BasicAckOptions::default()).await?;
    assert_eq!(service.depth("qr-refresh").await?, 0);
    Ok(())
}

#[tokio::test]
async fn what_a_consumer_took_and_did_not_ack_comes_again_on_another_one() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let (first, second) = (Service::connect(&setup).await?, Service::connect(&setup).await?);
    let mut crashing = first.consume("orders", 10).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    for n in 1..=3 {
        alice.send_acked(&json!({"id": format!("o{n}"), "messageType": "order.placed.eu", "content": n})).await?;
    }
    let delivery = next(&mut crashing).await?;
    assert!(!delivery.redelivered);
    // As a process that dies: nothing is acknowledged, the connection is gone.
    first.connection.close(200, "crash".into()).await?;
    let mut healthy = second.consume("orders", 10).await?;
    for n in 1..=3 {
        let again = next(&mut healthy).await?;
        assert_eq!(body(&again)?["id"], format!("o{n}"));
        assert!(again.redelivered || n > 1);
        again.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_message_that_the_declaration_does_not_take_is_refused_with_its_code() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut app = edge.client("alice", "app").connect().await?;
    let mut h5 = edge.client("bob", "h5").connect().await?;
    for (id, code, envelope) in [
        ("a", "unknown_route", json!({"messageType": "no.such"})),
        ("b", "not_allowed", json!({"messageType": "qr.refresh", "content": {"qrId": "q"}})),
        ("c", "identity_mismatch", json!({"messageType": "order.placed", "fromUniqueId": "bob"})),
        ("d", "unknown_route", json!({"messageType": "payment.completed", "toUniqueId": "bob"})),
        ("e", "not_allowed", json!({"messageType": "cart.share", "content": {}})),
        ("f", "too_large", json!({"messageType": "order.placed", "content": "x".repeat(70_000)})),
    ] {
        let mut envelope = envelope;
        envelope["id"] = json!(id);
        app.send(&envelope).await?;
        let nack = app.nack(id).await?;
        assert_eq!(nack["code"], code, "{nack}");
        assert_eq!(nack["retryable"], false, "{nack}");
        assert_eq!(nack["mayHaveArrived"], false, "{nack}");
    }
    h5.send(&json!({"id": "g", "messageType": "qr.refresh", "content": {"qrId": 7}})).await?;
    assert_eq!(h5.nack("g").await?["code"], "schema_mismatch");
    app.send_text("{\"id\": \"h\",").await?;
    let nack = app.answer().await?;
    assert_eq!(nack["code"], "invalid_envelope");
    assert!(nack.get("id").is_none(), "{nack}");
    app.send(&json!({"id": "i", "messageType": "order placed"})).await?;
    assert_eq!(app.nack("i").await?["code"], "invalid_envelope");
    // The connection is as good as before, and nothing of all that arrived.
    app.send_acked(&json!({"id": "z", "messageType": "order.placed"})).await?;
    let mut orders = service.consume("orders", 10).await?;
    assert_eq!(next_json(&mut orders).await?["id"], "z");
    assert_eq!(service.depth("qr-refresh").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_push_of_a_plain_amqp_publisher_reaches_whom_it_addresses_and_nobody_else() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut phone = e1.client("alice", "app").tags(&["gold", "berlin"]).connect().await?;
    let mut browser = e2.client("alice", "h5").tags(&["gold"]).connect().await?;
    let mut bob = e1.client("bob", "app").tags(&["berlin"]).connect().await?;
    let mut till = e2.client("till-1", "pos").connect().await?;
    let message = |kind: &str, n: u64, audience: serde_json::Value| {
        let mut push = json!({"messageType": kind, "content": {"n": n}});
        push.as_object_mut().unwrap().extend(audience.as_object().unwrap().clone());
        push
    };
    // Identity on every device; narrowed by client type; tags; both; everyone.
    service.push(&message("payment.completed", 1, json!({"toUniqueId": "alice"}))).await?;
    service.push(&message("payment.completed", 2, json!({"toUniqueId": "alice", "toClientType": "app"}))).await?;
    service.push(&message("payment.completed", 3, json!({"tags": ["gold", "silver"]}))).await?;
    service.push(&message("payment.completed", 4, json!({"tags": ["berlin"], "toUniqueId": "alice"}))).await?;
    service.push(&message("till.notice", 5, json!({"toUniqueId": "*"}))).await?;
    service.push(&message("till.notice", 6, json!({"toUniqueId": "*", "tags": ["berlin"]}))).await?;
    service.push(&message("till.notice", 7, json!({"toUniqueId": "till-1"}))).await?;
    service.push(&message("payment.completed", 8, json!({"toUniqueId": "carol"}))).await?;
    service.push(&message("till.notice", 9, json!({"toUniqueId": "*"}))).await?;
    // The browser is of a type that till.notice does not go to: its end is a push of its own.
    service.push(&message("payment.completed", 10, json!({"tags": ["gold"], "toClientType": "h5"}))).await?;
    assert_eq!(phone.numbers(7).await?, [1, 2, 3, 4, 5, 6, 9]);
    assert_eq!(browser.numbers(3).await?, [1, 3, 10]);
    assert_eq!(bob.numbers(3).await?, [5, 6, 9]);
    assert_eq!(till.numbers(3).await?, [5, 7, 9]);
    Ok(())
}

#[tokio::test]
async fn a_push_is_completed_and_its_content_passes_byte_for_byte() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    service
        .push_bytes(br#"{ "content" : {"b":1.50,"a":1e2,"a":"\u00e9"}, "messageType":"payment.completed","toUniqueId":"alice","own":null}"#)
        .await?;
    let push = alice.push().await?;
    for (field, value) in [("sendType", "ServerToClient"), ("businessType", "payments"), ("toUniqueId", "alice")] {
        assert_eq!(push[field], value, "{push}");
    }
    assert!(push["own"].is_null() && push.as_object().unwrap().contains_key("own"), "{push}");
    assert!(!push["id"].as_str().unwrap().is_empty());
    assert!(push["timestamp"].as_i64().unwrap() > 0);
    assert!(!push["cursor"].as_str().unwrap().is_empty());
    service
        .push_bytes(
            br#"{"messageType":"payment.completed","toUniqueId":"alice","content":{"b":1.50,"a":1e2,"a":"\u00e9"}}"#,
        )
        .await?;
    let text = alice.push_text().await?;
    assert!(text.contains(r#""content":{"b":1.50,"a":1e2,"a":"\u00e9"}"#), "{text}");
    Ok(())
}

#[tokio::test]
async fn clients_message_each_other_on_one_edge_and_across_two() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let mut alice = e1.client("alice", "app").connect().await?;
    let mut near = e1.client("bob", "h5").connect().await?;
    let mut far = e2.client("bob", "h5").connect().await?;
    alice
        .send_acked(&json!({"id": "c1", "messageType": "cart.share", "toUniqueId": "bob", "content": {"cart": 7}}))
        .await?;
    for bob in [&mut near, &mut far] {
        let shared = bob.push().await?;
        assert_eq!(shared["id"], "c1");
        assert_eq!(shared["sendType"], "ClientToClient");
        assert_eq!((&shared["fromUniqueId"], &shared["fromClientType"]), (&json!("alice"), &json!("app")));
        assert_eq!(shared["content"], json!({"cart": 7}));
    }
    // The answer names its request, and crosses edges as well.
    far.send_acked(
        &json!({"id": "c2", "messageType": "chat.answer", "toUniqueId": "alice", "correlationId": "c1", "content": "ok"}),
    )
    .await?;
    let answer = alice.push().await?;
    assert_eq!(answer["correlationId"], "c1");
    assert_eq!((&answer["fromUniqueId"], &answer["id"]), (&json!("bob"), &json!("c2")));
    // The declaration's direction holds: a browser may not share carts, and no client is told what is not for its type.
    far.send(&json!({"id": "c3", "messageType": "cart.share", "toUniqueId": "bob"})).await?;
    assert_eq!(far.nack("c3").await?["code"], "not_allowed");
    alice.send(&json!({"id": "c4", "messageType": "cart.share", "toUniqueId": "bob", "toClientType": "app"})).await?;
    assert_eq!(alice.nack("c4").await?["code"], "not_allowed");
    Ok(())
}

#[tokio::test]
async fn one_connections_messages_keep_their_order() -> Result<()> {
    const MESSAGES: u64 = 300;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut orders = service.consume("orders", 100).await?;
    let mut bob = edge.client("bob", "h5").connect().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    for n in 0..MESSAGES {
        alice.send(&json!({"id": format!("s{n}"), "messageType": "order.placed", "content": {"n": n}})).await?;
        let to_bob =
            json!({"id": format!("c{n}"), "messageType": "chat.line", "toUniqueId": "bob", "content": {"n": n}});
        alice.send(&to_bob).await?;
    }
    for n in 0..MESSAGES {
        alice.ack(&format!("s{n}")).await?;
        alice.ack(&format!("c{n}")).await?;
        assert_eq!(next_json(&mut orders).await?["content"]["n"], n);
    }
    assert_eq!(bob.numbers(MESSAGES as usize).await?, (0..MESSAGES).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_client_without_the_subprotocol_sees_envelopes_only() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut orders = service.consume("orders", 10).await?;
    let mut plain = edge.client("alice", "app").plain().connect().await?;
    // Nothing tells it that it is live: the first pushes may be before that.
    let mut n = 0;
    let first = loop {
        n += 1;
        service.push(&payment("alice", n)).await?;
        if let Ok(push) = plain.push_within(Duration::from_millis(300)).await {
            break push;
        }
    };
    assert_eq!(first["content"]["n"], n, "what came first is the newest: nothing is replayed to a new client");
    plain.send(&json!({"id": "p1", "messageType": "order.placed"})).await?;
    plain.send(&json!({"id": "p2", "messageType": "no.such"})).await?;
    assert_eq!(next_json(&mut orders).await?["id"], "p1");
    edge.await_metric("wirepost_edge_nacks_total{kind=\"unknown_route\"}", 1.0).await?;
    service.push(&payment("alice", n + 1)).await?;
    assert_eq!(plain.numbers(1).await?, [n + 1]);
    assert!(plain.controls().is_empty(), "{:?}", plain.controls());
    // It resumes all the same: the cursor is in each envelope.
    let cursor = plain.cursor();
    plain.reset();
    service.push(&payment("alice", n + 2)).await?;
    let mut plain = edge.client("alice", "app").plain().cursor(cursor).connect().await?;
    assert_eq!(plain.numbers(1).await?, [n + 2]);
    // A refusal is HTTP for it.
    let refused = edge.client("alice", "app").token("forged").plain().connect().await.unwrap_err();
    assert_eq!(refused.downcast_ref::<Refused>().unwrap().status, 401);
    Ok(())
}

#[tokio::test]
async fn a_receipt_and_the_ends_of_connections_are_told_to_the_business() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("#").await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let id = alice.welcome["connectionId"].clone();
    let connected = next_json(&mut events).await?;
    assert_eq!((&connected["event"], &connected["connectionId"]), (&json!("connected"), &id), "{connected}");
    service.push(&payment("alice", 1)).await?;
    let push = alice.push().await?;
    alice.send(&json!({"op": "received", "ids": [push["id"]]})).await?;
    let delivered = next_json(&mut events).await?;
    assert_eq!((&delivered["event"], &delivered["ids"]), (&json!("delivered"), &json!([push["id"]])), "{delivered}");
    alice.leave().await?;
    let disconnected = next_json(&mut events).await?;
    assert_eq!((&disconnected["event"], &disconnected["connectionId"]), (&json!("disconnected"), &id));
    assert_eq!(disconnected["uniqueId"], "alice");
    Ok(())
}

#[tokio::test]
async fn a_receipt_that_names_no_message_is_refused() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut events = service.events("delivered").await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    for ids in [json!([]), json!([""]), json!(["x".repeat(65)]), json!(vec!["x"; 257])] {
        alice.send(&json!({"op": "received", "ids": ids})).await?;
        assert_eq!(alice.control("error").await?["about"], "received");
    }
    let push = json!({"id": "p".repeat(64), "messageType": "payment.completed", "toUniqueId": "alice"});
    service.push(&push).await?;
    alice.push().await?;
    alice.send(&json!({"op": "received", "ids": [push["id"]]})).await?;
    assert_eq!(next_json(&mut events).await?["ids"], json!([push["id"]]), "the first one that the business hears of");
    Ok(())
}
