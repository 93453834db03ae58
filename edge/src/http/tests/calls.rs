//! What all calls have in common: origins and unknown paths; and the admin port.

use rstest::rstest;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use wirepost_core::asyncapi::{Part, asyncapi};

use super::*;
use crate::{admin, http::operation::Operation};

const CALL: &str = "/payments/websocket/token?uniqueId=a&clientType=app";

#[tokio::test]
async fn a_browser_on_an_allowed_page_may_call() {
    let edge = Edge::start().await;
    let page = ("origin", "https://shop.example");
    let preflight = edge
        .call(
            "OPTIONS",
            CALL,
            &[page, ("access-control-request-method", "GET"), ("access-control-request-headers", "authorization")],
            Body::empty(),
        )
        .await;
    assert_eq!(preflight.status, StatusCode::NO_CONTENT);
    assert_eq!(preflight.headers["access-control-allow-origin"], "https://shop.example");
    assert!(preflight.headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert!(preflight.headers["access-control-allow-methods"].to_str().unwrap().contains("GET"));
    assert_eq!(preflight.headers["vary"], "origin");

    let call = edge.get(CALL, &[page, ("x-api-key", API_KEY)]).await;
    assert_eq!(call.status, StatusCode::OK);
    assert_eq!(call.headers["access-control-allow-origin"], "https://shop.example");
    assert_eq!(call.headers["vary"], "origin");

    let refused = edge.get(CALL, &[page]).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.headers.contains_key("access-control-allow-origin"), "the page must be able to read why");
}

#[rstest]
#[case::foreign_page("payments", "https://evil.example", 403, 40_301)]
#[case::no_page_is_allowed("bare", "https://shop.example", 403, 40_301)]
#[case::file("payments", "null", 403, 40_301)]
#[case::unknown_business("nobody", "https://shop.example", 404, 40_402)]
#[tokio::test]
async fn a_browser_on_another_page_may_not(
    #[case] business: &str,
    #[case] origin: &str,
    #[case] status: u16,
    #[case] result: u32,
) {
    let edge = Edge::start().await;
    let path = format!("/{business}/websocket/token?uniqueId=a&clientType=app");
    let preflight = [("origin", origin), ("access-control-request-method", "GET")];
    for (method, headers) in [("GET", [("origin", origin), ("x-api-key", API_KEY)]), ("OPTIONS", preflight)] {
        let reply = edge.call(method, &path, &headers, Body::empty()).await;
        assert_eq!((reply.status.as_u16(), &reply.body["result"]), (status, &json!(result)), "{method}");
        assert!(!reply.headers.contains_key("access-control-allow-origin"), "{method}");
        assert_eq!(reply.headers["vary"], "origin");
    }
}

#[tokio::test]
async fn a_program_without_origin_is_checked_by_its_credential() {
    let edge = Edge::start().await;
    let reply = edge.get(CALL, &[("x-api-key", API_KEY)]).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["vary"], "origin", "a cache must not mix it up with a page's");
}

#[rstest]
#[case("GET", "/", 404, 40_401)]
#[case("GET", "/payments/websocket/tokens", 404, 40_401)]
#[case("POST", "/payments/websocket/token", 405, 40_501)]
#[case("GET", "/payments/websocket/messages", 405, 40_501)]
#[case("OPTIONS", "/payments/websocket/token", 405, 40_501)]
#[case("POST", "/socket/x", 405, 40_501)]
#[case("GET", "/socket/x", 426, 42_601)]
#[tokio::test]
async fn an_unknown_path_is_answered_in_the_same_form(
    #[case] method: &str,
    #[case] path: &str,
    #[case] status: u16,
    #[case] result: u32,
) {
    let edge = Edge::start().await;
    let reply = edge.call(method, path, &[], Body::empty()).await;
    assert_eq!((reply.status.as_u16(), &reply.body["result"]), (status, &json!(result)), "{}", reply.body);
    assert!(reply.body["description"].is_string());
}

#[tokio::test]
async fn the_admin_port_shows_the_state_of_the_edge() {
    let edge = Edge::start().await;
    let router = admin::router(&edge.state, CancellationToken::new());
    let get = async |path: &str| call(router.clone(), "GET", path, &[], Body::empty()).await;
    edge.stub.health.send_replace(Health::Away("connection refused".into()));
    let configuration = edge.state.readiness.wait_for("configuration");
    assert_eq!(get("/livez").await.status, StatusCode::OK, "liveness looks at the process alone");
    let pending = get("/readyz").await;
    assert_eq!(pending.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(pending.body, "pending: configuration\n");
    drop(configuration);
    assert_eq!(get("/readyz").await.status, StatusCode::OK, "also while the broker is unreachable");

    let configz = get("/configz").await.body;
    assert_eq!(configz["edge"], "edge");
    assert_eq!(configz["broker"], "away");
    assert_eq!(configz["businesses"]["payments"], edge.state.catalog.get("payments").unwrap().hash);

    edge.get(CALL, &[]).await;
    let metrics = get("/metrics").await;
    let text = metrics.body.as_str().unwrap();
    assert!(text.contains(r#"wirepost_edge_refused_total{kind="unauthorized"} 1"#), "{text}");
    assert!(text.contains("wirepost_broker_published 7"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn the_description_is_for_services_unless_it_is_declared_public() {
    let edge = Edge::start().await;
    let page = ("origin", "https://docs.example");
    assert_eq!(edge.get("/payments/asyncapi.json", &[page]).await.body["result"], 40_101);
    assert_eq!(edge.get("/payments/asyncapi.json", &[("x-api-key", "old-key")]).await.body["result"], 40_103);
    let public = edge.get("/bare/asyncapi.json", &[page, ("x-api-key", "old-key")]).await;
    assert!(public.body["servers"].get("broker").is_none(), "what services do is for services");
    assert_eq!((public.status, &public.body["asyncapi"]), (StatusCode::OK, &json!("3.0.0")));
    assert_eq!(public.headers["access-control-allow-origin"], "*");
    let reply = edge.get("/payments/asyncapi.json", &[page, ("x-api-key", API_KEY)]).await;
    assert_eq!((reply.status, &reply.body["asyncapi"]), (StatusCode::OK, &json!("3.0.0")));
    assert!(!reply.headers.contains_key("access-control-allow-origin"));
    assert_eq!(reply.body["servers"]["edge"]["host"], "edge.example");
    assert_eq!(reply.body["channels"]["push"]["bindings"]["amqp"]["exchange"]["name"], "wirepost.payments.push");
    let text = reply.body.to_string();
    assert!(!text.contains(&digest(API_KEY)), "nothing of auth is in it");
    assert_eq!(edge.get("/nobody/asyncapi.json", &[]).await.body["result"], 40_402);
}

/// A call that is added and not described, or moved, is found here.
#[test]
fn every_call_is_described() {
    let config = serde_json::from_value(payments()).unwrap();
    let document = asyncapi(&config, "https://edge.example", Part::All);
    let described: Vec<(String, String)> = document["operations"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(|operation| {
            let method = operation["bindings"]["http"]["method"].as_str()?;
            let channel = operation["channel"]["$ref"].as_str()?.rsplit('/').next()?;
            Some((method.to_owned(), document["channels"][channel]["address"].as_str()?.to_owned()))
        })
        .collect();
    for operation in Operation::ALL {
        let path = operation.path().replace("{business}", "payments");
        match operation {
            // The document itself, and the socket, which has no method of its own in it.
            Operation::Describe => {}
            Operation::Connect => assert_eq!(document["channels"]["socket"]["address"], "/socket"),
            _ => assert!(described.contains(&(operation.method().to_string(), path.clone())), "{path}"),
        }
    }
}
