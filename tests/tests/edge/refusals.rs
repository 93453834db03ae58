//! A refusal that a browser can read, and a reconnect that asks nobody (CASES 14).

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::{Client, ClientBuilder, Refused};
use wirepost_testing::raw::{Raw, upgrade};
use wirepost_testing::service::Service;
use wirepost_testing::setup::{PAYMENTS, Setup};

const OTHER: &str = r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: gone, namespace: shop}
spec:
  clientTypes: [app]
  routes: [{messageType: order.placed, sendType: ClientToServer, queue: {name: orders}}]
";

const BROWSERS: &str = r#"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: browsers, namespace: shop}
spec:
  clientTypes: [app]
  routes: [{messageType: order.placed, sendType: ClientToServer, queue: {name: orders}}]
  auth: {allowedOrigins: ["https://shop.example"]}
"#;

/// The ticket of a URL to connect to.
fn ticket(url: &str) -> String {
    url.rsplit('/').next().unwrap_or_default().to_owned()
}

/// As a browser sees it: the upgrade is completed, and a close frame says why.
async fn close_code(client: ClientBuilder<'_>) -> Result<u16> {
    client.upgrade().await.context("a browser must see an upgrade")?.close_code().await
}

/// As a program without the subprotocol sees it.
async fn http(client: ClientBuilder<'_>) -> Result<(u16, Value)> {
    let error = client.plain().upgrade().await.err().context("not refused")?;
    let refused = error.downcast_ref::<Refused>().context("not refused as HTTP")?;
    Ok((refused.status, refused.body.clone()))
}

fn is_refusal(body: &Value) -> bool {
    body["result"].as_u64().is_some_and(|result| result != 0) && body["description"].is_string()
}

#[tokio::test]
async fn a_forged_ticket_is_refused_with_a_code_that_a_browser_sees() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let good = ticket(&edge.token("payments", "alice", "app", &[]).await?);
    let middle = good.len() / 2;
    let flipped = if good.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let altered = format!("{}{flipped}{}", &good[..middle], &good[middle + 1..]);
    for forged in ["forged", "a.b.c", altered.as_str(), &good[..good.len() - 4]] {
        assert_eq!(close_code(edge.client("alice", "app").token(forged)).await?, 3000, "{forged}");
        let (status, body) = http(edge.client("alice", "app").token(forged)).await?;
        assert_eq!(status, 401);
        assert!(is_refusal(&body), "the form of the token call: {body}");
    }
    // It was the alteration.
    edge.client("alice", "app").token(good).connect().await?;
    Ok(())
}

#[tokio::test]
async fn who_already_sends_sees_the_code_too() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    for bytes in [100, 60_000] {
        let mut client = edge.client("alice", "app").token("forged").upgrade().await?;
        client.send(&json!({"id": "o", "messageType": "order.placed", "content": "x".repeat(bytes)})).await?;
        assert_eq!(client.close_code().await?, 3000, "after {bytes} bytes");
    }
    Ok(())
}

#[tokio::test]
async fn a_query_that_cant_be_read_is_refused_as_every_call_is() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    for protocol in ["", "sec-websocket-protocol: wirepost.v1\r\n"] {
        let mut raw = Raw::connect(edge.public).await?;
        raw.send(upgrade("/socket/x?cursor=a&cursor=b", &format!("connection: close\r\n{protocol}"))).await?;
        let answer = raw.end(PATIENCE).await?;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(r#""result":40001"#), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn an_expired_ticket_is_refused_with_a_code_that_a_browser_sees() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("ticket-seconds", 1).start().await?;
    let old = ticket(&edge.token("payments", "alice", "app", &[]).await?);
    eventually("the ticket expires", PATIENCE, || async {
        let mut client = edge.client("alice", "app").token(old.as_str()).upgrade().await?;
        match client.control("welcome").await {
            Ok(_) => Ok(false),
            Err(_) => Ok(client.close_code().await? == 3000),
        }
    })
    .await?;
    let (status, body) = http(edge.client("alice", "app").token(old)).await?;
    assert_eq!(status, 401);
    assert!(is_refusal(&body), "{body}");
    Ok(())
}

#[tokio::test]
async fn a_removed_businesss_clients_are_told_that_it_is_gone() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, OTHER]).await?;
    let edge = setup.edge("e1").start().await?;
    let held = ticket(&edge.token("gone", "alice", "app", &[]).await?);
    let mut there = edge.client("alice", "app").business("gone").connect().await?;
    let mut neighbour = edge.client("alice", "app").connect().await?;
    // What the operator does; the stream stays for as long as it holds messages.
    std::fs::remove_file(setup.dir().join("config/gone.json"))?;
    assert_eq!(there.close_code().await?, 4010);
    assert_eq!(close_code(edge.client("alice", "app").token(held.as_str())).await?, 4010);
    let (status, body) = http(edge.client("alice", "app").token(held)).await?;
    assert_eq!(status, 404);
    assert!(is_refusal(&body), "{body}");
    neighbour.send_acked(&json!({"id": "o1", "messageType": "order.placed"})).await
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_and_a_program_is_not() -> Result<()> {
    let setup = Setup::new(&[BROWSERS]).await?;
    let edge = setup.edge("e1").start().await?;
    let evil = "https://evil.example";
    assert_eq!(close_code(edge.client("alice", "app").origin(evil)).await?, 3003);
    assert_eq!(close_code(edge.client("alice", "app").origin("null")).await?, 3003);
    let (status, body) = http(edge.client("alice", "app").origin(evil)).await?;
    assert_eq!(status, 403);
    assert!(is_refusal(&body), "{body}");
    edge.client("alice", "app").origin("https://shop.example").connect().await?;
    edge.client("alice", "app").connect().await?;
    Ok(())
}

#[tokio::test]
async fn what_one_page_was_given_is_good_for_no_other_page() -> Result<()> {
    let (shop, other) = ("https://shop.example", "https://other.example");
    let setup =
        Setup::new(&[&BROWSERS.replace(r#"["https://shop.example"]"#, &format!(r#"["{shop}", "{other}"]"#))]).await?;
    let edge = setup.edge("e1").start().await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let ticket = async || {
        let url = format!("http://{}/{}/websocket/token?uniqueId=alice&clientType=app", edge.public, setup.business());
        let answer = client.get(url).header("x-api-key", setup.api_key()).header("origin", shop).send().await?;
        let body: serde_json::Value = answer.json().await?;
        let url = body["data"].as_str().context("no ticket")?;
        Ok::<_, anyhow::Error>(url.rsplit('/').next().unwrap_or_default().to_owned())
    };
    // Both pages may connect.
    edge.client("bob", "app").origin(other).connect().await?;
    let alice = edge.client("alice", "app").origin(shop).token(&ticket().await?).connect().await?;
    for stolen in [ticket().await?, alice.resume_token()] {
        let code = edge.client("alice", "app").origin(other).token(&stolen).upgrade().await?.close_code().await?;
        assert_eq!(code, 3003);
    }
    Ok(())
}

#[tokio::test]
async fn an_app_connects_by_its_own_origin_and_by_the_edges_and_a_refusal_leaves_a_trace() -> Result<()> {
    let apps = BROWSERS.replace(
        r#"["https://shop.example"]"#,
        r#"["capacitor://localhost", "tauri://localhost", "app://-", "HTTPS://Shop.Example:443/"]"#,
    );
    let setup = Setup::new(&[&apps]).await?;
    let edge = setup.edge("e1").flag("public-url", "wss://ws.example").start().await?;
    for origin in [
        "capacitor://localhost",
        "tauri://localhost",
        "app://-",
        "https://shop.example",
        // React Native on Android makes it of the address that it connects to.
        "https://ws.example",
        "https://ws.example:443",
    ] {
        edge.client("alice", "app").origin(origin).connect().await.with_context(|| origin.to_owned())?;
    }
    let host = format!("http://{}", edge.public);
    let strangers = [
        "ionic://localhost",
        "https://shop.example:8443",
        "http://ws.example",
        "https://ws.example.evil.example",
        // Any name can be made to lead to this edge.
        &host,
    ];
    for origin in strangers {
        assert_eq!(close_code(edge.client("alice", "app").origin(origin)).await?, 3003, "{origin}");
    }
    assert_eq!(edge.count(r#"wirepost_edge_refused_total{kind="origin"}"#).await?, strangers.len() as u64);
    // One line, which names the first of them and the business: a page can come back as often as it likes.
    let log = edge.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("not in allowedOrigins")).collect();
    assert!(lines.len() == 1 && lines[0].contains("ionic://localhost") && lines[0].contains("browsers"), "{lines:?}");

    let unnamed = setup.edge("e2").start().await?;
    let host = format!("http://{}", unnamed.public);
    unnamed.client("alice", "app").origin(&host).connect().await.context("without a public URL the Host counts")?;
    Ok(())
}

#[tokio::test]
async fn an_edge_that_dies_costs_no_token_call() -> Result<()> {
    const CLIENTS: usize = 200;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (e1, e2) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let notice = |n: u64| json!({"messageType": "till.notice", "toUniqueId": "*", "content": {"n": n}});
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(e1.client(&format!("till-{n}"), "pos").connect().await?);
    }
    service.push(&notice(0)).await?;
    for client in &mut clients {
        assert_eq!(client.numbers(1).await?, [0]);
    }
    e1.kill9()?;
    service.push_all((1..4).map(notice)).await?;
    let come_back = clients.iter_mut().enumerate().map(|(n, client)| {
        let (token, cursor) = (client.resume_token(), client.cursor());
        let back = e2.client(&format!("till-{n}"), "pos").token(token).cursor(cursor);
        async {
            let mut back: Client = back.connect().await?;
            anyhow::ensure!(back.resumed(), "{}", back.welcome);
            back.numbers(3).await
        }
    });
    for numbers in futures_util::future::join_all(come_back).await {
        assert_eq!(numbers?, [1, 2, 3]);
    }
    let (_, metrics) = e2.admin("/metrics").await?;
    assert!(!metrics.contains("wirepost_edge_tokens_total{"), "somebody asked for a token: {metrics}");
    let opened = e2.metric("wirepost_edge_connections_opened_total").await?;
    assert!((opened - CLIENTS as f64).abs() < 0.5, "{opened} connections");
    Ok(())
}

#[tokio::test]
async fn a_handshake_may_list_its_fields_as_http_allows() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for fields in [
        "connection: keep-alive\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
        "connection: keep-alive, Upgrade\r\nupgrade: websocket, foo/2\r\nsec-websocket-version: 13\r\n",
        "connection: upgrade\r\nupgrade: foo/2\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-protocol: a\r\nsec-websocket-protocol: wirepost.v1\r\n",
    ] {
        let path = format!("/socket/{}", ticket(&edge.token("payments", "alice", "app", &[]).await?));
        let mut raw = Raw::connect(edge.public).await?;
        raw.send(format!("GET {path} HTTP/1.1\r\nhost: edge\r\n{fields}{key}\r\n")).await?;
        let head = raw.head().await?;
        assert!(head.starts_with("http/1.1 101") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{fields}: {head}");
        assert_eq!(head.contains("\r\nsec-websocket-protocol: wirepost.v1"), fields.contains("wirepost.v1"), "{head}");
    }
    // A client of another version is told which one is supported, and a request without an upgrade what to ask for.
    for fields in ["connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 8\r\n", ""] {
        let mut raw = Raw::connect(edge.public).await?;
        raw.send(format!("GET /socket/x HTTP/1.1\r\nhost: edge\r\n{fields}{key}\r\n")).await?;
        let head = raw.head().await?;
        assert!(head.starts_with("http/1.1 426"), "{head}");
        for field in ["sec-websocket-version: 13", "upgrade: websocket", "connection: upgrade"] {
            assert!(head.contains(&format!("\r\n{field}")), "no {field}: {head}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_http_itself_refuses_is_answered_in_the_same_form() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let huge = format!("GET / HTTP/1.1\r\nhost: edge\r\ncookie: {}\r\n\r\n", "c".repeat(40_000));
    let huge = huge.replace("host: edge", "host: edge\r\nconnection: close");
    let endless = format!("GET / HTTP/1.1\r\nhost: edge\r\ncookie: {}", "c".repeat(100_000));
    let fine = "GET /none HTTP/1.1\r\nhost: edge\r\n\r\n";
    for (requests, status, result) in [
        (vec![huge.as_str()], 431, 43_101),
        (vec![endless.as_str()], 431, 43_101),
        // On a connection that served another request before.
        (vec![fine, endless.as_str()], 431, 43_101),
        (vec!["GET / HTTP/1.1\r\nno colon\r\n\r\n"], 400, 40_001),
        (vec![fine, "nonsense\r\n\r\n"], 400, 40_001),
    ] {
        let mut raw = Raw::connect(edge.public).await?;
        let (last, before) = requests.split_last().context("a request")?;
        for request in before {
            raw.send(request).await?;
            raw.head().await?;
        }
        // It may answer before it has read all.
        let _ = raw.send(last).await;
        let answer = raw.end(PATIENCE).await?;
        let line = answer.rfind(&format!("HTTP/1.1 {status} ")).with_context(|| answer.clone())?;
        let answer = &answer[line..];
        let (head, body) = answer.split_once("\r\n\r\n").context("a body")?;
        assert!(is_refusal(&serde_json::from_str(body)?) && body.contains(&format!("\"result\":{result}")), "{answer}");
        assert!(head.to_lowercase().contains("\r\ncontent-type: application/json"), "{head}");
    }
    Ok(())
}
