use rstest::rstest;
use serde_json::json;

use super::*;
use crate::{
    clock,
    identity::{
        jwt::tests::signed,
        ticket::{self, Purpose, Ticket},
    },
};

const CALL: &str = "/payments/websocket/token";

/// The ticket in an answer of the token call.
fn ticket(edge: &Edge, reply: &Reply, base: &str) -> Ticket {
    assert_eq!((reply.status, &reply.body["result"]), (StatusCode::OK, &json!(0)), "{}", reply.body);
    let url = reply.body["data"].as_str().unwrap();
    let text = url.strip_prefix(base).unwrap_or_else(|| panic!("{url} does not begin with {base}"));
    ticket::open(&edge.state.keys, text, clock::now_ms()).unwrap()
}

#[tokio::test]
async fn a_service_gets_a_ticket_for_the_identity_it_names() {
    let edge = Edge::start().await;
    let path = format!("{CALL}?uniqueId=a%2Fb%20%F0%9F%A6%80&clientType=pos&tags=vip,eu&tags=eu,%20");
    for header in [("x-api-key", API_KEY.to_owned()), ("authorization", format!("bearer {API_KEY}"))] {
        let before = clock::now_ms();
        let reply = edge.get(&path, &[(header.0, &header.1)]).await;
        assert_eq!(reply.body["description"], "ok");
        assert_eq!(reply.headers["cache-control"], "no-store");
        let ticket = ticket(&edge, &reply, "ws://edge.example/socket/");
        assert_eq!(ticket.purpose, Purpose::Connect);
        assert_eq!((ticket.business.as_str(), ticket.client_type.as_str()), ("payments", "pos"));
        assert_eq!(ticket.unique_id, "a/b 🦀");
        assert_eq!(ticket.tags, ["eu", "vip"]);
        assert!((before + 3_600_000..=clock::now_ms() + 3_600_000).contains(&ticket.session_ends_at));
        assert!((before + 30_000..=clock::now_ms() + 30_000).contains(&ticket.expires_at));
    }
}

#[tokio::test]
async fn a_clients_token_gives_identity_and_the_sessions_end() {
    let edge = Edge::start().await;
    let end = clock::now_ms() / 1000 + 100;
    let bearer = format!("Bearer {}", signed(&json!({"exp": end})));
    let reply = edge.get(CALL, &[("authorization", &bearer)]).await;
    let ticket = ticket(&edge, &reply, "ws://edge.example/socket/");
    assert_eq!((ticket.unique_id.as_str(), ticket.client_type.as_str()), ("alice", "app"));
    assert_eq!(ticket.tags, ["eu", "vip"]);
    assert_eq!(ticket.session_ends_at, end * 1000, "the token ends before the longest session");
}

#[tokio::test]
async fn a_ticket_never_outlives_its_session() {
    let edge = Edge::start().await;
    let end = clock::now_ms() / 1000 + 5;
    let bearer = format!("Bearer {}", signed(&json!({"exp": end})));
    let reply = edge.get(CALL, &[("authorization", &bearer)]).await;
    assert_eq!(ticket(&edge, &reply, "ws://edge.example/socket/").expires_at, end * 1000);
}

#[rstest]
#[case::no_proxy(&[], None, "ws://edge.example/socket/")]
#[case::host_with_port(&[("host", "localhost:8080")], None, "ws://localhost:8080/socket/")]
#[case::ipv6(&[("host", "[::1]:8080")], None, "ws://[::1]:8080/socket/")]
#[case::tls_at_the_proxy(&[("x-forwarded-proto", "https")], None, "wss://edge.example/socket/")]
#[case::first_proxy_counts(&[("x-forwarded-proto", "https, http")], None, "wss://edge.example/socket/")]
#[case::configured(&[("host", "10.0.0.7")], Some("wss://ws.shop.example/"), "wss://ws.shop.example/socket/")]
#[tokio::test]
async fn the_url_is_one_that_the_client_can_reach(
    #[case] headers: &[(&str, &str)],
    #[case] public_url: Option<&str>,
    #[case] base: &str,
) {
    let edge =
        Edge::with(Settings { public_url: public_url.map(|url| url.parse().unwrap()), ..Settings::default() }).await;
    let headers = [headers, &[("x-api-key", API_KEY)]].concat();
    let reply = edge.get(&format!("{CALL}?uniqueId=a&clientType=app"), &headers).await;
    ticket(&edge, &reply, base);
}

#[rstest]
#[case::no_credential("payments", "uniqueId=a&clientType=app", &[], 401, 40_101)]
#[case::basic("payments", "uniqueId=a&clientType=app", &[("authorization", "Basic YTpi")], 401, 40_101)]
#[case::unknown_key("payments", "uniqueId=a&clientType=app", &[("x-api-key", "other")], 401, 40_103)]
#[case::expired_key("payments", "uniqueId=a&clientType=app", &[("x-api-key", "old-key")], 401, 40_103)]
#[case::empty_key("payments", "uniqueId=a&clientType=app", &[("x-api-key", "")], 401, 40_103)]
#[case::key_of_another_business("bare", "uniqueId=a&clientType=app", &[("x-api-key", API_KEY)], 401, 40_103)]
#[case::bearer_that_is_nothing("payments", "", &[("authorization", "Bearer other")], 401, 40_102)]
#[case::unknown_business("nobody", "uniqueId=a&clientType=app", &[("x-api-key", API_KEY)], 404, 40_402)]
#[case::no_unique_id("payments", "clientType=app", &[("x-api-key", API_KEY)], 400, 40_008)]
#[case::empty_unique_id("payments", "uniqueId=&clientType=app", &[("x-api-key", API_KEY)], 400, 40_008)]
#[case::everyone("payments", "uniqueId=*&clientType=app", &[("x-api-key", API_KEY)], 400, 40_008)]
#[case::control_character("payments", "uniqueId=a%0A&clientType=app", &[("x-api-key", API_KEY)], 400, 40_008)]
#[case::not_utf8("payments", "uniqueId=a%FF&clientType=app", &[("x-api-key", API_KEY)], 400, 40_008)]
#[case::no_client_type("payments", "uniqueId=a", &[("x-api-key", API_KEY)], 400, 40_008)]
#[case::undeclared_client_type("payments", "uniqueId=a&clientType=tv", &[("x-api-key", API_KEY)], 400, 40_008)]
#[case::twice("payments", "uniqueId=a&uniqueId=b&clientType=app", &[("x-api-key", API_KEY)], 400, 40_001)]
#[tokio::test]
async fn a_refusal_has_its_number_and_a_description(
    #[case] business: &str,
    #[case] query: &str,
    #[case] headers: &[(&str, &str)],
    #[case] status: u16,
    #[case] result: u32,
) {
    let edge = Edge::start().await;
    let reply = edge.get(&format!("/{business}/websocket/token?{query}"), headers).await;
    assert_eq!((reply.status.as_u16(), &reply.body["result"]), (status, &json!(result)), "{}", reply.body);
    assert!(reply.body["description"].as_str().unwrap().len() > 10, "{}", reply.body);
    assert_eq!(reply.headers["cache-control"], "no-store");
    assert_eq!(reply.headers.contains_key("www-authenticate"), status == 401);
}

#[tokio::test]
async fn too_long_identities_and_too_many_tags_are_refused_with_a_description() {
    let edge = Edge::start().await;
    let many: Vec<_> = (0..65).map(|i| format!("t{i}")).collect();
    let long: Vec<_> = (0..20).map(|i| format!("{i}{}", "t".repeat(100))).collect();
    for (query, expected) in [
        (format!("uniqueId={}&clientType=app", "a".repeat(257)), "at most 256"),
        (format!("uniqueId=a&clientType=app&tags={}", many.join(",")), "at most 64"),
        (format!("uniqueId=a&clientType=app&tags={}", long.join(",")), "fewer or shorter tags"),
        (format!("uniqueId=a&clientType=app&tags={}", "t".repeat(257)), "at most 256"),
    ] {
        let reply = edge.get(&format!("{CALL}?{query}"), &[("x-api-key", API_KEY)]).await;
        assert_eq!(reply.body["result"], 40_008);
        let description = reply.body["description"].as_str().unwrap();
        assert!(description.contains(expected), "{description}");
    }
}

#[tokio::test]
async fn a_refused_token_names_the_check_that_failed() {
    let edge = Edge::start().await;
    for (changes, expected) in [
        (json!({"exp": 1}), "expired"),
        (json!({"aud": "bank"}), "aud"),
        (json!({"iss": "https://evil.example"}), "iss"),
    ] {
        let token = signed(&changes);
        let reply = edge.get(CALL, &[("authorization", &format!("Bearer {token}"))]).await;
        assert_eq!((reply.status.as_u16(), &reply.body["result"]), (401, &json!(40_102)));
        let description = reply.body["description"].as_str().unwrap();
        assert!(description.contains(expected), "{description}");
        assert!(!description.contains(&token), "{description}");
    }
}

#[tokio::test]
async fn a_client_can_not_ask_for_another_identity_or_more_tags() {
    let edge = Edge::start().await;
    let bearer = format!("Bearer {}", signed(&json!({})));
    for (query, status) in [
        ("", 200),
        ("uniqueId=alice&clientType=app", 200),
        ("uniqueId=ceo", 400),
        ("tags=admin", 400),
        ("clientType=pos", 400),
    ] {
        let reply = edge.get(&format!("{CALL}?{query}"), &[("authorization", &bearer)]).await;
        assert_eq!(reply.status.as_u16(), status, "{query}: {}", reply.body);
    }
}

#[tokio::test]
async fn an_invalid_host_header_is_refused() {
    let edge = Edge::start().await;
    for host in ["", "a b", "user@evil.example"] {
        let reply =
            edge.get(&format!("{CALL}?uniqueId=a&clientType=app"), &[("x-api-key", API_KEY), ("host", host)]).await;
        assert_eq!(reply.body["result"], 40_001, "{host:?}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_token_without_the_tags_claim_is_noted_and_counted() {
    let edge = Edge::start().await;
    for (changes, description) in [
        (json!({}), "ok"),
        (json!({"https://id.example/groups": []}), "ok"),
        (
            json!({"https://id.example/groups": null}),
            "ok; the token has no claim https://id.example/groups, so the session has no tags",
        ),
    ] {
        let reply = edge.get(CALL, &[("authorization", &format!("Bearer {}", signed(&changes)))]).await;
        assert_eq!((reply.status.as_u16(), &reply.body["result"]), (200, &json!(0)));
        assert_eq!(reply.body["description"], description);
    }
    assert_eq!(edge.state.metrics.tokens_without_tags.get(), 1);
}
