//! One message to the clients of several businesses: only of those that accept it, once for each connection, and never
//! in silence.

use anyhow::{Context, Result, ensure};
use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use wirepost_core::names;
use wirepost_testing::broker::{PATIENCE, PrivateBroker, eventually, publish_with};
use wirepost_testing::client::Client;
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::strange::endpoint;

/// Accepts what its routes take from payments, and more; payments accepts from it in turn.
const CHAT: &str = r#"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: chat, namespace: talk}
spec:
  clientTypes: [app, web]
  routes:
    - {messageType: "payment.#", sendType: ServerToClient, to: [app, web], ttlSeconds: 600}
    - {messageType: internal, sendType: ServerToClient, to: [app, web]}
    - {messageType: cart.share, sendType: ClientToClient, from: [app], to: [app]}
    - {messageType: "chat.#", sendType: ClientToClient, from: [app], to: [app]}
  acceptFrom:
    - {businessType: payments, messageTypes: ["payment.*", cart.share, till.notice]}
"#;

/// Accepts from chat alone, and everything.
const CRM: &str = r##"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: crm, namespace: sales}
spec:
  clientTypes: [app]
  routes:
    - {messageType: "#", sendType: ServerToClient, to: [app]}
  acceptFrom: [{businessType: chat, messageTypes: ["#"]}]
"##;

/// [`PAYMENTS`], which accepts from chat: a circle.
fn payments() -> String {
    format!("{PAYMENTS}  acceptFrom: [{{businessType: chat, messageTypes: ['payment.*']}}]\n")
}

async fn all() -> Result<Setup> {
    Setup::new(&[&payments(), CHAT, CRM]).await
}

fn shared(id: &str, businesses: &[&str]) -> Value {
    let mut push = payment("alice", 1);
    (push["id"], push["businesses"]) = (json!(id), json!(businesses));
    push
}

/// The ids of what has come and comes until a message that the client's own business pushes last.
async fn ids_until(client: &mut Client, last: &str) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    loop {
        let push = client.push().await?;
        let id = push["id"].as_str().context("no id")?.to_owned();
        if id == last {
            return Ok(ids);
        }
        ids.push(id);
    }
}

/// Pushes the last message of each of these businesses to alice.
async fn push_last(setup: &Setup, businesses: &[&str]) -> Result<()> {
    for business in businesses {
        let last = json!({"id": "last", "messageType": "payment.completed", "toUniqueId": "alice"});
        Service::of(setup, business).await?.push(&last).await?;
    }
    Ok(())
}

fn results(answer: &Value) -> Vec<(String, u64)> {
    let businesses = answer["data"]["businesses"].as_array().into_iter().flatten();
    businesses
        .map(|one| {
            (one["business"].as_str().unwrap_or_default().to_owned(), one["result"].as_u64().unwrap_or_default())
        })
        .collect()
}

#[tokio::test]
async fn a_push_by_http_reaches_the_businesses_that_accept_it_and_has_a_result_for_each() -> Result<()> {
    let setup = all().await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let mut here = e1.client("alice", "app").connect().await?;
    let mut there = e2.client("alice", "app").business("chat").connect().await?;
    let mut web = e2.client("alice", "web").business("chat").connect().await?;
    let mut crm = e1.client("alice", "app").business("crm").connect().await?;

    let (status, answer) = e1.post(&shared("both", &["payments", "chat"])).await?;
    assert_eq!((status, &answer["result"]), (200, &json!(0)), "{answer}");
    assert_eq!(results(&answer), [("payments".to_owned(), 0), ("chat".to_owned(), 0)]);
    let (status, answer) = e2.post(&shared("mixed", &["payments", "crm", "chat", "nobody", "chat"])).await?;
    assert_eq!((status, &answer["result"]), (207, &json!(20_700)), "{answer}");
    let each = [("payments", 0), ("crm", 40_302), ("chat", 0), ("nobody", 40_302)].map(|(of, it)| (of.to_owned(), it));
    assert_eq!(results(&answer), each);
    let refused = &answer["data"]["businesses"][1];
    assert!(refused["description"].as_str().is_some_and(|text| text.contains("acceptFrom")), "{answer}");
    assert_eq!((&refused["field"], &refused["retryable"]), (&json!("businesses"), &json!(false)));
    let (status, answer) = e1.post(&shared("there", &["chat"])).await?;
    assert_eq!((status, &answer["result"]), (200, &json!(0)), "{answer}");
    let (status, answer) = e1.post(&shared("nowhere", &["crm"])).await?;
    assert_eq!((status, &answer["result"]), (403, &json!(40_302)), "{answer}");
    // Accepted, and of a type for which chat has no route; then one that it does not accept; then a client type that
    // only chat has.
    for (message_type, client_type, here, there) in [
        ("till.notice", "app", 0, 40_302),
        ("internal", "app", 40_004, 40_302),
        ("payment.completed", "web", 40_005, 0),
    ] {
        let push = json!({"id": client_type, "messageType": message_type, "toUniqueId": "alice",
            "toClientType": client_type, "businesses": ["payments", "chat"]});
        let (_, answer) = e1.post(&push).await?;
        assert_eq!(results(&answer), [("payments".to_owned(), here), ("chat".to_owned(), there)], "{answer}");
    }
    push_last(&setup, &["payments", "chat", "crm"]).await?;
    assert_eq!(ids_until(&mut here, "last").await?, ["both", "mixed", "app"]);
    let first = there.push().await?;
    assert_eq!(first["id"], "both");
    // Whose it is: the edge's word, and so is the list.
    assert_eq!((&first["businessType"], &first["businesses"]), (&json!("payments"), &json!(["payments", "chat"])));
    assert!(first["expiresAt"].is_i64(), "by the route of chat: {first}");
    assert_eq!(ids_until(&mut there, "last").await?, ["mixed", "there"]);
    assert_eq!(ids_until(&mut web, "last").await?, ["both", "mixed", "there", "web"]);
    assert!(ids_until(&mut crm, "last").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn what_a_service_pushes_by_amqp_is_delivered_or_reported_to_it() -> Result<()> {
    let setup = all().await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::at(&setup.service_amqp("payments").await?, "payments").await?;
    let mut rejected = Service::of(&setup, "payments").await?.events("rejected").await?;
    let mut theirs = Service::of(&setup, "chat").await?.events("rejected").await?;
    // Nobody reads payments: the edges of the other business report.
    let mut there = edge.client("alice", "app").business("chat").connect().await?;
    service.share(&shared("one", &["chat"]), &["chat"]).await?;
    let mut internal = shared("internal", &["chat"]);
    internal["messageType"] = json!("internal");
    service.share(&internal, &["chat"]).await?;
    let event = next_json(&mut rejected).await?;
    let found = (&event["id"], &event["reason"], &event["refusedBy"], &event["businessType"]);
    assert_eq!(found, (&json!("internal"), &json!("not_accepted"), &json!("chat"), &json!("payments")), "{event}");

    let mut here = edge.client("alice", "app").connect().await?;
    service.share(&shared("both", &["payments", "chat"]), &["payments", "chat"]).await?;
    service.share(&shared("loud", &["payments", "crm"]), &["payments", "crm"]).await?;
    // Without the exchange or its header the broker copies nothing.
    service.push(&shared("plain", &["payments", "chat"])).await?;
    service.share(&shared("unnamed", &["payments", "chat"]), &["payments"]).await?;
    service.share(&shared("lost", &["payments", "chat"]), &[]).await?;
    service.share(&internal, &["payments", "chat"]).await?;
    for (id, reason, by) in [
        ("loud", "not_accepted", "crm"),
        ("plain", "not_copied", "chat"),
        ("unnamed", "not_copied", "chat"),
        ("lost", "not_copied", "chat"),
        ("internal", "not_accepted", "chat"),
    ] {
        let event = next_json(&mut rejected).await?;
        let found = (&event["id"], &event["reason"], &event["refusedBy"]);
        assert_eq!(found, (&json!(id), &json!(reason), &json!(by)), "{event}");
    }
    push_last(&setup, &["payments", "chat"]).await?;
    assert_eq!(ids_until(&mut here, "last").await?, ["both", "loud", "plain", "unnamed", "lost"]);
    assert_eq!(ids_until(&mut there, "last").await?, ["one", "both"]);
    // What the other business pushes without an audience is its own business, and the first thing that it hears of.
    Service::of(&setup, "chat").await?.push(&json!({"id": "own", "messageType": "payment.x"})).await?;
    let event = next_json(&mut theirs).await?;
    assert_eq!((&event["id"], &event["refusedBy"]), (&json!("own"), &Value::Null), "{event}");
    Ok(())
}

#[tokio::test]
async fn a_client_sends_to_clients_of_another_business_or_is_told_why_not() -> Result<()> {
    let setup = all().await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let mut bob = e1.client("bob", "app").connect().await?;
    let mut h5 = e1.client("alice", "h5").connect().await?;
    let mut there = e2.client("alice", "app").business("chat").connect().await?;
    let to = |id: &str, message_type: &str, businesses: &[&str]| json!({"id": id, "messageType": message_type, "toUniqueId": "alice", "businesses": businesses});
    bob.send_acked(&to("both", "cart.share", &["payments", "chat"])).await?;
    bob.send_acked(&to("there", "cart.share", &["chat"])).await?;
    // Not accepted; a business that is none; both have a route, and chat does not accept the type; to a service.
    for (id, message_type, businesses, code) in [
        ("crm", "cart.share", &["payments", "crm"][..], "not_accepted"),
        ("none", "cart.share", &["payments", "nobody"], "not_accepted"),
        ("type", "chat.x", &["payments", "chat"], "not_accepted"),
        ("service", "order.x", &["chat"], "not_allowed"),
    ] {
        bob.send(&to(id, message_type, businesses)).await?;
        let nack = bob.nack(id).await?;
        assert_eq!((&nack["code"], &nack["retryable"]), (&json!(code), &json!(false)), "{nack}");
    }
    push_last(&setup, &["payments", "chat"]).await?;
    assert_eq!(ids_until(&mut h5, "last").await?, ["both"], "a refused message is refused as a whole");
    let first = there.push().await?;
    let stamped = (&first["id"], &first["businessType"], &first["fromUniqueId"], &first["sendType"]);
    assert_eq!(stamped, (&json!("both"), &json!("payments"), &json!("bob"), &json!("ClientToClient")), "{first}");
    assert_eq!(ids_until(&mut there, "last").await?, ["there"]);
    Ok(())
}

/// An AMQP 1.0 message with these annotations and application properties: `(key, is it a symbol, value)`.
fn amqp10(annotations: &[(&str, bool, &str)], properties: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let text = |constructor: u8, text: &str| [&[constructor, text.len() as u8], text.as_bytes()].concat();
    let map = |items: Vec<Vec<u8>>| {
        let content = items.concat();
        [&[0xd1][..], &(content.len() as u32 + 4).to_be_bytes(), &(items.len() as u32).to_be_bytes(), &content].concat()
    };
    let section = |code: u8, value: Vec<u8>| [&[0x00, 0x53, code][..], &value].concat();
    let annotations = annotations
        .iter()
        .flat_map(|(key, symbol, value)| [text(if *symbol { 0xa3 } else { 0xa1 }, key), text(0xa1, value)]);
    let properties = properties.iter().flat_map(|(key, value)| [text(0xa1, key), text(0xa1, value)]);
    // Durable.
    let header = [&[0xc0, 0x02, 0x01, 0x41][..]].concat();
    let data = [&[0xb0][..], &(body.len() as u32).to_be_bytes(), body].concat();
    [
        section(0x70, header),
        section(0x72, map(annotations.collect())),
        section(0x74, map(properties.collect())),
        section(0x75, data),
    ]
    .concat()
}

/// The messages of a service that pretends to be another business's, by both protocols.
async fn forge(setup: &Setup, delivery: &str) -> Result<()> {
    let uri = setup.service_amqp("payments").await?;
    let (share, theirs) = (names::share_exchange("payments"), names::push_exchange("chat"));
    let own = |id: &str, business: Value| {
        json!({"id": format!("{delivery}-{id}"), "messageType": "internal", "toUniqueId": "alice",
            "businessType": business, "businesses": ["chat"]})
    };
    let as_chat = own("forged", json!("chat")).to_string();
    let as_none = json!({"id": "unmarked", "messageType": "internal", "toUniqueId": "alice"}).to_string();
    let as_payments = own("not-accepted", json!("payments")).to_string();
    let forged_headers = ["x-exchange", "exchange", "wirepost-exchange"];
    let service = Service::at(&uri, "payments").await?;
    for body in [&as_chat, &as_none, &as_payments] {
        let mut table = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(text.into());
        for business in ["chat", "crm"] {
            table.insert(format!("to-business-{business}").into(), text("true"));
        }
        for name in forged_headers {
            table.insert(name.into(), text(&theirs));
        }
        let properties = BasicProperties::default().with_headers(table).with_app_id(theirs.as_str().into());
        publish_with(&service.channel, &share, &theirs, body.as_bytes(), properties).await?;
    }
    // Straight to the other's exchanges: the broker refuses it.
    for exchange in [theirs.clone(), names::share_exchange("chat")] {
        let channel = Service::at(&uri, "payments").await?.channel;
        let refused = publish_with(&channel, &exchange, "x", as_chat.as_bytes(), BasicProperties::default()).await;
        ensure!(refused.is_err(), "{exchange} takes what a foreign service publishes");
    }
    let annotations: &[&[(&str, bool, &str)]] = &[
        &[("x-exchange", true, &theirs)],
        &[("x-exchange", true, &theirs), ("x-exchange", true, &theirs)],
        &[("x-exchange", false, &theirs), ("x-exchange", true, &theirs), ("x-exchange", false, &theirs)],
        &[("x-opt-exchange", true, &theirs), ("x-exchange", true, &theirs), ("x-routing-key", true, &theirs)],
    ];
    let mut connection =
        wirepost_amqp::v10::Connection::open(&endpoint(&uri)?, std::time::Duration::from_secs(10)).await?;
    // Annotations again where the broker reads none: behind the body, and between the properties and the body.
    let again = amqp10(&[("x-exchange", true, &theirs)], &[], b"");
    let again = &again[7..again.len() - 20];
    ensure!(again.starts_with(&[0x00, 0x53, 0x72, 0xd1]) && again.ends_with(theirs.as_bytes()), "{again:?}");
    let properties = [("to-business-chat", "true"), ("to-business-crm", "true"), ("x-exchange", &*theirs)];
    for annotations in annotations {
        for (body, place) in
            [&as_chat, &as_none, &as_payments].into_iter().flat_map(|body| [(body, 0), (body, 1), (body, 2)])
        {
            let mut payload = amqp10(annotations, &properties, body.as_bytes());
            match place {
                0 => {}
                1 => payload.extend(again),
                _ => {
                    let before_body = payload.len() - body.len() - 8;
                    payload.splice(before_body..before_body, again.iter().copied());
                }
            }
            // A broker may refuse such a message as a whole: then nothing is delivered either.
            if connection.send(share.as_bytes(), b"", &payload).await.is_err() {
                connection =
                    wirepost_amqp::v10::Connection::open(&endpoint(&uri)?, std::time::Duration::from_secs(10)).await?;
            }
        }
    }
    // Its own good name still counts, by this protocol too.
    let good = json!({"id": format!("{delivery}-good"), "messageType": "payment.x", "toUniqueId": "alice", "businesses": ["chat"]});
    let payload = amqp10(&[], &[("to-business-chat", "true")], good.to_string().as_bytes());
    ensure!(matches!(connection.send(share.as_bytes(), b"", &payload).await?, wirepost_amqp::v10::Sent::Taken));
    Ok(())
}

#[tokio::test]
async fn nobody_can_pass_for_another_business_nor_go_on_to_a_third_one() -> Result<()> {
    let transient = CHAT.replace("spec:", "spec:\n  push: {delivery: Transient}");
    for chat in [CHAT, &transient] {
        let setup = Setup::new(&[&payments(), chat, CRM]).await?;
        let edge = setup.edge("e1").start().await?;
        let mut there = edge.client("alice", "app").business("chat").connect().await?;
        let mut crm = edge.client("alice", "app").business("crm").connect().await?;
        let mut here = edge.client("alice", "app").connect().await?;
        forge(&setup, "d").await?;
        // Chat's own word goes on to crm and comes round to payments, each once, and payments' does not.
        let own = Service::of(&setup, "chat").await?;
        let circle = shared("circle", &["chat", "crm", "payments"]);
        own.share(&circle, &["chat", "crm", "payments"]).await?;
        push_last(&setup, &["payments", "chat", "crm"]).await?;
        assert_eq!(ids_until(&mut there, "last").await?, ["d-good", "circle"]);
        assert_eq!(ids_until(&mut crm, "last").await?, ["circle"]);
        assert_eq!(ids_until(&mut here, "last").await?, ["circle"]);
    }
    Ok(())
}

#[tokio::test]
async fn acceptance_that_is_taken_back_ends_at_once_at_the_edges_and_on_the_broker() -> Result<()> {
    let setup = all().await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::of(&setup, "payments").await?;
    let mut there = edge.client("alice", "app").business("chat").connect().await?;
    service.share(&shared("before", &["chat"]), &["chat"]).await?;
    assert_eq!(there.push().await?["id"], "before");
    // Only the edges know of it first, as while the operator is at work.
    setup.reconfigure("chat", |config| config.accepts.clear())?;
    let refused = || async { Ok(e_result(&edge, "late").await? == 40_302) };
    eventually("the push is refused", PATIENCE, refused).await?;
    service.share(&shared("copied", &["chat"]), &["chat"]).await?;
    let closed = CHAT.split("  acceptFrom:").next().context("no acceptFrom")?;
    setup.declare(&[&payments(), closed, CRM]).await?;
    let gone = service.share(&shared("gone", &["chat"]), &["chat"]).await;
    assert!(gone.is_err(), "nobody accepts anything of payments, so there is no such exchange");
    push_last(&setup, &["chat"]).await?;
    let mut ids = ids_until(&mut there, "last").await?;
    // Those that were taken before the edge knew.
    ids.retain(|id| id != "late");
    assert_eq!(ids, [] as [&str; 0]);
    // And again.
    setup.declare(&[&payments(), CHAT, CRM]).await?;
    let taken = || async { Ok(e_result(&edge, "again").await? == 0) };
    eventually("the push is taken", PATIENCE, taken).await?;
    assert_eq!(there.push().await?["id"], "again");
    Ok(())
}

async fn e_result(edge: &wirepost_testing::edge::Edge, id: &str) -> Result<u64> {
    let (_, answer) = edge.post(&shared(id, &["chat"])).await?;
    answer["result"].as_u64().context("no result")
}

#[tokio::test]
async fn a_client_resumes_over_messages_of_another_business_also_after_the_broker_was_killed() -> Result<()> {
    let broker = PrivateBroker::start("across", &[]).await?;
    let setup = Setup::on(broker.vhost().await?, &[PAYMENTS, CHAT]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let mut there = e1.client("alice", "app").business("chat").connect().await?;
    let mut here = e1.client("alice", "app").connect().await?;
    e1.post(&shared("m-0", &["payments", "chat"])).await?;
    assert_eq!(there.push().await?["id"], "m-0");
    assert_eq!(here.push().await?["id"], "m-0");
    let (theirs, own) = (there.cursor(), here.cursor());
    there.reset();
    here.reset();
    for n in 1..=20 {
        let (status, answer) = e1.post(&shared(&format!("m-{n}"), &["payments", "chat"])).await?;
        assert_eq!(status, 200, "{answer}");
    }
    // RabbitMQ 4.3.6 forgets the insides of its first stream when it is killed within the next second or so.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    broker.kill9().await?;
    broker.start_again().await?;
    let takes = || async { Ok(e2.post(&shared("m-21", &["payments", "chat"])).await?.0 == 200) };
    eventually("pushes are taken again", PATIENCE, takes).await?;
    for (business, cursor) in [("payments", own), ("chat", theirs)] {
        let mut back = e2.client("alice", "app").business(business).cursor(cursor).connect().await?;
        // Absent while the edge can't reach the stream: it is not welcomed later for that.
        assert_ne!(back.welcome["resumed"], json!(false), "{}", back.welcome);
        let mut ids = Vec::new();
        while ids.last().is_none_or(|id| id != "m-21") {
            ids.push(back.push().await?["id"].as_str().context("no id")?.to_owned());
        }
        assert_eq!(ids, (1..=21).map(|n| format!("m-{n}")).collect::<Vec<_>>(), "{business}");
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_whose_stream_was_unbound_is_moved_back_to_that_business_alone() -> Result<()> {
    let setup = all().await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::of(&setup, "payments").await?;
    let mut there = edge.client("alice", "app").business("chat").connect().await?;
    let mut here = edge.client("alice", "app").connect().await?;
    setup.unbind(&names::push_exchange("chat"), &names::stream("chat"), "").await?;
    service.share(&shared("kept", &["payments", "chat"]), &["payments", "chat"]).await?;
    setup.repair().await?;
    assert_eq!(setup.move_back("chat").await?.moved, 1);
    push_last(&setup, &["payments", "chat"]).await?;
    assert_eq!(ids_until(&mut there, "last").await?, ["kept"]);
    assert_eq!(ids_until(&mut here, "last").await?, ["kept"], "not twice");
    Ok(())
}

#[tokio::test]
async fn a_copy_that_is_not_accepted_any_more_is_set_aside_and_stops_no_other() -> Result<()> {
    let setup = all().await?;
    let edge = setup.edge("e1").start().await?;
    let (service, other) = (Service::of(&setup, "payments").await?, Service::of(&setup, "chat").await?);
    let mut theirs = Service::of(&setup, "chat").await?.events("rejected").await?;
    let mut rejected = Service::of(&setup, "payments").await?.events("rejected").await?;
    let mut there = edge.client("alice", "app").business("chat").connect().await?;
    let mut here = edge.client("alice", "app").connect().await?;
    for business in ["payments", "chat"] {
        setup.unbind(&names::push_exchange(business), &names::stream(business), "").await?;
    }
    let own = json!({"id": "own", "messageType": "payment.done", "toUniqueId": "alice"});
    service.share(&shared("copy", &["payments", "chat"]), &["payments", "chat"]).await?;
    other.push(&own).await?;
    // The binding from payments is lost, and put back soon: the copy waits, what is behind it does not.
    setup.unlink("payments", "chat").await?;
    let stream = names::stream("chat");
    setup.declare_stream(&stream, &names::push_exchange("chat")).await?;
    let moved = setup.move_back("chat").await?;
    assert_eq!((moved.moved, moved.strays, moved.waiting, moved.stopped), (1, 1, 1, None));
    // Nobody accepts anything of payments any more.
    let closed = CHAT.split("  acceptFrom:").next().context("no acceptFrom")?;
    setup.declare(&[&payments(), closed, CRM]).await?;
    other.push(&json!({"id": "more", "messageType": "payment.done", "toUniqueId": "alice"})).await?;
    let moved = setup.move_back("chat").await?;
    assert_eq!((moved.moved, moved.strays, moved.set_aside, moved.stopped), (0, 0, 1, None));
    let moved = setup.move_back("payments").await?;
    assert_eq!((moved.moved, moved.strays, moved.set_aside, moved.stopped), (1, 0, 0, None));
    push_last(&setup, &["payments", "chat"]).await?;
    assert_eq!(ids_until(&mut there, "last").await?, ["own", "more"]);
    assert_eq!(ids_until(&mut here, "last").await?, ["copy"], "payments' own, once");
    let channel = setup.vhost().connect().await?.create_channel().await?;
    let dead = channel.basic_get(names::dead_queue("chat").into(), BasicGetOptions::default()).await?;
    let dead: Value = serde_json::from_slice(&dead.context("it is not in dead")?.delivery.data)?;
    assert_eq!(dead["id"], "copy");
    let event = next_json(&mut theirs).await?;
    assert_eq!((&event["id"], &event["reason"]), (&json!("copy"), &json!("unmovable")), "{event}");
    let event = next_json(&mut rejected).await?;
    let found = (&event["id"], &event["reason"], &event["refusedBy"], &event["businessType"]);
    assert_eq!(found, (&json!("copy"), &json!("not_accepted"), &json!("chat"), &json!("payments")), "{event}");
    Ok(())
}
