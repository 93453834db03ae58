use rstest::rstest;
use serde_json::json;

use super::*;
use crate::clock;

const CALL: &str = "/payments/websocket/messages";
const KEY: &[(&str, &str)] = &[("x-api-key", API_KEY)];

fn completed(changes: &Value) -> Value {
    let mut envelope = json!({"messageType": "payment.completed", "toUniqueId": "alice", "content": {"orderId": 7}});
    for (name, value) in changes.as_object().unwrap() {
        envelope[name] = value.clone();
    }
    envelope
}

#[tokio::test]
async fn a_push_is_completed_published_and_answered_after_the_confirm() {
    let edge = Edge::start().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let before = clock::now_ms();
    let headers = [("x-api-key", API_KEY), ("traceparent", traceparent)];
    let reply = edge.call("POST", CALL, &headers, completed(&json!({"tags": ["vip"], "x": 1})).to_string()).await;
    assert_eq!((reply.status, &reply.body["result"]), (StatusCode::OK, &json!(0)), "{}", reply.body);
    let published = edge.stub.published.lock().unwrap()[0].1.clone();
    let body: Value = serde_json::from_slice(&published.body).unwrap();
    assert_eq!(reply.body["data"]["id"], body["id"]);
    assert_eq!(uuid::Uuid::parse_str(&published.message_id).unwrap().get_version_num(), 7);
    assert_eq!(body["id"], published.message_id);
    assert_eq!(body["sendType"], "ServerToClient");
    assert_eq!(body["businessType"], "payments");
    assert_eq!(body["content"], json!({"orderId": 7}));
    assert_eq!((&body["tags"], &body["x"]), (&json!(["vip"]), &json!(1)));
    let timestamp = body["timestamp"].as_i64().unwrap();
    assert!((before..=clock::now_ms()).contains(&timestamp));
    assert_eq!(body["expiresAt"], timestamp + 600_000, "from the route's ttlSeconds");
    assert_eq!((&*published.exchange, published.routing_key.as_str()), ("wirepost.payments.push", "payment.completed"));
    assert_eq!(published.timestamp, timestamp);
    let header = |name: &'static str, value: &str| (name.into(), value.to_owned());
    let expected = [header("message-type", "payment.completed"), header("traceparent", traceparent)];
    assert_eq!(published.headers, expected);
}

#[tokio::test]
async fn fields_of_the_sender_are_kept() {
    let edge = Edge::start().await;
    let now = clock::now_ms();
    let envelope =
        completed(&json!({"id": "x1", "timestamp": now - 1000, "expiresAt": now + 5000, "correlationId": "c1"}));
    let reply = edge.call("POST", CALL, KEY, envelope.to_string()).await;
    assert_eq!(reply.body["data"]["id"], "x1");
    let body = &edge.published()[0];
    assert_eq!((&body["id"], &body["timestamp"]), (&json!("x1"), &json!(now - 1000)));
    assert_eq!((&body["expiresAt"], &body["correlationId"]), (&json!(now + 5000), &json!("c1")));
}

#[tokio::test]
async fn a_timestamp_from_the_future_does_not_prolong_the_time_to_live() {
    let edge = Edge::start().await;
    let later = clock::now_ms() + 86_400_000;
    let envelope = completed(&json!({"timestamp": later, "expiresAt": later}));
    edge.call("POST", CALL, KEY, envelope.to_string()).await;
    assert!(edge.published()[0]["expiresAt"].as_i64().unwrap() <= clock::now_ms() + 600_000);
}

#[rstest]
#[case::empty(json!({"toUniqueId": ""}), 40_003, "toUniqueId")]
#[case::null(json!({"toUniqueId": null}), 40_003, "toUniqueId")]
#[case::no_tags(json!({"toUniqueId": null, "tags": []}), 40_003, "toUniqueId")]
#[case::empty_tag(json!({"toUniqueId": null, "tags": [""]}), 40_003, "toUniqueId")]
#[case::everyone(json!({"toUniqueId": "*"}), 40_005, "toUniqueId")]
#[case::client_type(json!({"toClientType": "pos"}), 40_005, "toClientType")]
#[case::unknown_route(json!({"messageType": "payment.failed"}), 40_004, "messageType")]
#[case::route_of_clients(json!({"messageType": "cart.share"}), 40_004, "messageType")]
#[case::no_message_type(json!({"messageType": null}), 40_002, "messageType")]
#[case::pattern(json!({"messageType": "payment.*"}), 40_002, "messageType")]
#[case::direction(json!({"sendType": "ClientToClient"}), 40_002, "sendType")]
#[case::another_business(json!({"businessType": "bare"}), 40_002, "businessType")]
#[case::expired(json!({"expiresAt": 1}), 40_007, "expiresAt")]
#[case::expired_in_seconds(json!({"expiresAt": clock::now_ms() / 1000 + 60}), 40_007, "expiresAt")]
#[case::timestamp_in_seconds(json!({"timestamp": clock::now_ms() / 1000}), 40_002, "timestamp")]
#[case::reserved(json!({"messageType": "wirepost.begin"}), 40_005, "messageType")]
#[case::wrong_type(json!({"tags": "vip"}), 40_002, "tags")]
#[tokio::test]
async fn an_invalid_push_is_refused_with_its_field_alone_and_in_a_batch(
    #[case] changes: Value,
    #[case] result: u32,
    #[case] field: &str,
) {
    let edge = Edge::start().await;
    let bad = completed(&changes);
    let alone = edge.call("POST", CALL, KEY, bad.to_string()).await;
    assert_eq!((alone.status.as_u16(), &alone.body["result"]), (400, &json!(result)), "{}", alone.body);
    assert_eq!(alone.body["data"]["field"], field);
    assert!(alone.body["description"].as_str().unwrap().contains(field), "{}", alone.body);
    assert_eq!(alone.body["data"]["retryable"], false);
    assert!(edge.published().is_empty(), "nothing is published");

    let batch = json!([completed(&json!({"id": "a"})), bad, completed(&json!({"id": "b"}))]);
    let reply = edge.call("POST", CALL, KEY, batch.to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.body["result"]), (207, &json!(20_700)), "{}", reply.body);
    let results: Vec<_> = reply.body["data"].as_array().unwrap().iter().map(|item| item["result"].clone()).collect();
    assert_eq!(results, [json!(0), json!(result), json!(0)]);
    let ids: Vec<_> = edge.published().iter().map(|body| body["id"].clone()).collect();
    assert_eq!(ids, ["a", "b"], "the others are published, in order");
}

#[tokio::test]
async fn the_answer_names_the_message_that_is_not_an_envelope() {
    let edge = Edge::start().await;
    let bad = completed(&json!({"id": "m-1", "messageType": "a b"}));
    let alone = edge.call("POST", CALL, KEY, bad.to_string()).await;
    assert_eq!(alone.body["data"]["id"], "m-1", "{}", alone.body);
    let batch = edge.call("POST", CALL, KEY, json!([{"id": 1}, bad]).to_string()).await;
    assert!(batch.body["data"][0].get("id").is_none(), "{}", batch.body);
    assert_eq!(batch.body["data"][1]["id"], "m-1", "{}", batch.body);
}

#[tokio::test]
async fn a_batch_that_failed_for_several_reasons_is_a_mixed_one_also_within_one_status() {
    let edge = Edge::start().await;
    let nobody = completed(&json!({"toUniqueId": ""}));
    let unknown = completed(&json!({"messageType": "payment.failed"}));
    let reply = edge.call("POST", CALL, KEY, json!([nobody, unknown]).to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.body["result"]), (207, &json!(20_700)), "{}", reply.body);
    let reply = edge.call("POST", CALL, KEY, json!([nobody, nobody]).to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.body["result"]), (400, &json!(40_003)), "{}", reply.body);
}

#[tokio::test]
async fn everyone_is_addressed_if_the_route_allows_it() {
    let edge = Edge::start().await;
    let closed = json!({"messageType": "shop.closed", "toUniqueId": "*", "content": {"until": "monday"}});
    assert_eq!(edge.call("POST", CALL, KEY, closed.to_string()).await.status, StatusCode::OK);
    let nobody = json!({"messageType": "shop.closed", "content": {"until": "monday"}});
    assert_eq!(edge.call("POST", CALL, KEY, nobody.to_string()).await.body["result"], 40_003);
    let misfit = json!({"messageType": "shop.closed", "toUniqueId": "*", "content": {}});
    let reply = edge.call("POST", CALL, KEY, misfit.to_string()).await;
    assert_eq!(reply.body["result"], 40_006);
    assert!(reply.body["description"].as_str().unwrap().contains("until"), "{}", reply.body);
}

#[rstest]
#[case::not_json("{", 400, 40_002)]
#[case::empty("", 400, 40_002)]
#[case::number("1", 400, 40_002)]
#[case::half_array("[{}", 400, 40_002)]
#[case::empty_array(" [ ] ", 400, 40_001)]
#[case::twice(r#"{"messageType":"payment.completed","toUniqueId":"a","to\u0055niqueId":"b"}"#, 400, 40_002)]
#[tokio::test]
async fn a_body_that_is_not_an_envelope_is_refused(
    #[case] body: &'static str,
    #[case] status: u16,
    #[case] result: u32,
) {
    let edge = Edge::start().await;
    let reply = edge.call("POST", CALL, KEY, body).await;
    assert_eq!((reply.status.as_u16(), &reply.body["result"]), (status, &json!(result)), "{}", reply.body);
}

#[tokio::test]
async fn too_much_is_told_with_413() {
    let edge = Edge::start().await;
    let large = completed(&json!({"content": "x".repeat(4096)}));
    let reply = edge.call("POST", CALL, KEY, large.to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.body["result"]), (413, &json!(41_301)), "above pushBytes");
    let reply = edge.call("POST", CALL, KEY, json!([large, completed(&json!({}))]).to_string()).await;
    assert_eq!(reply.body["data"][0]["result"], 41_301);
    assert_eq!(reply.body["data"][1]["result"], 0);
    let many = vec![completed(&json!({})); 257];
    assert_eq!(edge.call("POST", CALL, KEY, json!(many).to_string()).await.body["result"], 41_301);
    let spaces = " ".repeat((8 << 20) + 1);
    assert_eq!(edge.call("POST", CALL, KEY, spaces.clone()).await.body["result"], 41_301);
    let announced = [("x-api-key", API_KEY), ("content-length", "8388609")];
    assert_eq!(edge.call("POST", CALL, &announced, spaces).await.body["result"], 41_301);
}

#[tokio::test]
async fn a_batch_keeps_its_order_on_one_lane() {
    let edge = Edge::start().await;
    let batch: Vec<_> = (0..256).map(|i| completed(&json!({"id": i.to_string()}))).collect();
    let begun = tokio::time::Instant::now();
    let reply = edge.call("POST", CALL, KEY, json!(batch).to_string()).await;
    assert_eq!((reply.status, &reply.body["result"]), (StatusCode::OK, &json!(0)));
    assert_eq!(reply.body["data"].as_array().unwrap().len(), 256);
    let published = edge.stub.published.lock().unwrap();
    let lane = published[0].0;
    assert!(published.iter().enumerate().all(|(i, (l, p))| *l == lane && p.message_id == i.to_string()));
    // They wait in that lane, as long as the call does.
    let deadlines = edge.stub.deadlines.lock().unwrap();
    assert!(deadlines.len() == 256 && deadlines.iter().all(|at| *at >= begun + std::time::Duration::from_secs(7)));
}

#[tokio::test]
async fn a_broker_failure_says_whether_a_retry_is_safe() {
    let edge = Edge::start().await;
    for (answer, status, result, may_have_arrived) in [
        (Answer::Now(Err(PublishError::Unavailable("away".into()))), 503, 50_301, false),
        (Answer::Now(Err(PublishError::Refused("no route".into()))), 503, 50_301, false),
        (Answer::Now(Err(PublishError::Unknown("cut".into()))), 504, 50_401, true),
        (Answer::Dropped, 504, 50_401, true),
    ] {
        edge.broker_answers(move |_| answer.clone());
        for body in [completed(&json!({})), json!([completed(&json!({})), completed(&json!({}))])] {
            let reply = edge.call("POST", CALL, KEY, body.to_string()).await;
            assert_eq!((reply.status.as_u16(), &reply.body["result"]), (status, &json!(result)), "{}", reply.body);
            assert!(reply.headers.contains_key("retry-after"));
            let item = if body.is_array() { &reply.body["data"][1] } else { &reply.body["data"] };
            assert_eq!((&item["retryable"], &item["mayHaveArrived"]), (&json!(true), &json!(may_have_arrived)));
            assert!(item["id"].is_string(), "a repeat needs the id: {item}");
        }
    }
}

#[tokio::test]
async fn an_unresponsive_broker_is_given_up_in_time() {
    let edge = Edge::start().await;
    edge.broker_answers(|_| Answer::Never);
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let reply = edge.call("POST", CALL, KEY, completed(&json!({})).to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.body["result"]), (504, &json!(50_401)));
    assert_eq!(reply.body["data"]["mayHaveArrived"], true);
    assert_eq!(begun.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn only_a_service_may_push() {
    let edge = Edge::start().await;
    let jwt = format!("Bearer {}", crate::identity::jwt::tests::signed(&json!({})));
    for headers in [vec![], vec![("authorization", jwt.as_str())], vec![("x-api-key", "other")]] {
        let reply = edge.call("POST", CALL, &headers, completed(&json!({})).to_string()).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{}", reply.body);
    }
    assert!(edge.published().is_empty());
}

#[tokio::test]
async fn a_batch_that_is_under_way_when_the_edge_ends_is_answered_by_the_broker() {
    use std::{sync::atomic::Ordering, time::Duration};

    let quick = Settings { endpoint_lag: Duration::ZERO, drain_window: Duration::ZERO, ..Settings::default() };
    let Edge { state, stub, app, .. } = Edge::with(quick).await;
    *stub.answer.lock().unwrap() = Box::new(|_| Answer::Never);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = http.post(format!("http://{}{CALL}", app.public)).header("x-api-key", API_KEY);
    let calling = tokio::spawn(call.body(json!([completed(&json!({})), completed(&json!({}))]).to_string()).send());
    while stub.unanswered.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ending = tokio::spawn(app.shutdown());
    state.sockets.drain.subscribe().share().await;
    // There are no sockets to wait for.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!stub.closed.load(Ordering::Relaxed), "its messages may still wait to be sent");
    for confirm in std::mem::take(&mut *stub.unanswered.lock().unwrap()) {
        confirm.send(Ok(())).unwrap();
    }
    assert_eq!(calling.await.unwrap().unwrap().status(), 200);
    ending.await.unwrap();
    assert!(stub.closed.load(Ordering::Relaxed));
}
