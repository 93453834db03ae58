//! Connections that show nothing: they keep nobody out and cost little. And the limits of a client's address.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::{Edge, EdgeBuilder};
use wirepost_testing::raw::{Raw, upgrade};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::usage;

const SUBPROTOCOL: &str = "sec-websocket-protocol: wirepost.v1\r\n";

async fn path(edge: &Edge, unique_id: &str) -> Result<String> {
    let url = edge.token("payments", unique_id, "app", &[]).await?;
    let (_, ticket) = url.split_once("/socket/").context("a URL")?;
    Ok(format!("/socket/{ticket}"))
}

/// A request of alice for a socket that a proxy passes on for this client.
async fn from(edge: &Edge, forwarded: &str) -> Result<(Raw, String)> {
    with(edge, &path(edge, "alice").await?, forwarded).await
}

async fn with(edge: &Edge, path: &str, forwarded: &str) -> Result<(Raw, String)> {
    let mut raw = Raw::connect(edge.public).await?;
    raw.send(upgrade(path, &format!("{SUBPROTOCOL}x-forwarded-for: {forwarded}\r\n"))).await?;
    let head = raw.head().await?;
    Ok((raw, head))
}

#[tokio::test]
async fn silent_connections_and_headers_without_end_keep_nobody_out() -> Result<()> {
    // Places for 266 of them.
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("max-connections", 100).start().await?;
    let mut early = edge.client("early", "app").connect().await?;
    let public = edge.public;
    let mut attack = JoinSet::new();
    for n in 0..400 {
        attack.spawn(async move {
            // Whoever is closed comes back.
            loop {
                let Ok(mut raw) = Raw::connect(public).await else { continue };
                if n % 2 == 0 {
                    let _ = raw.send(format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(31 << 10))).await;
                }
                let _ = raw.end(Duration::from_mins(10)).await;
            }
        });
    }
    edge.await_metric("wirepost_edge_strangers_gone_total{kind=\"places\"}", 1.0).await?;
    for n in 0..3 {
        let mut late = edge.client(&format!("late-{n}"), "app").connect().await?;
        late.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await?;
    }
    early.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await?;
    let strangers = edge.count("wirepost_edge_strangers").await?;
    ensure!(strangers <= 266, "{strangers} places");
    assert_eq!(edge.readyz().await?.0, 200);
    attack.shutdown().await;
    Ok(())
}

/// Strangers have places, and time: nothing but this budget of bytes ends them.
fn roomy(setup: &Setup, budget: u64) -> EdgeBuilder {
    setup.edge("e1").flag("max-connections", 5_000).flag("handshake-bytes", budget).flag("header-timeout-seconds", 600)
}

#[tokio::test]
async fn unfinished_headers_hold_no_more_than_their_budget_once_they_had_their_time() -> Result<()> {
    const BUDGET: u64 = 1 << 20;
    const HEADER: usize = 31 << 10;
    const MANY: usize = 200;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = roomy(&setup, BUDGET).start().await?;
    let mut early = edge.client("early", "app").connect().await?;
    let mut unfinished = Vec::new();
    let begin = async || {
        let mut raw = Raw::connect(edge.public).await?;
        raw.send(format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(HEADER))).await?;
        Ok::<_, anyhow::Error>(raw)
    };
    for _ in 0..MANY {
        unfinished.push(begin().await?);
    }
    // One more is enough to make those before it give way, once they had their time.
    let too_many = MANY as u64 - BUDGET / HEADER as u64;
    eventually("those that are too many are gone", PATIENCE, || async {
        let last = begin().await?;
        let held = edge.count("wirepost_edge_stranger_bytes").await?;
        let gone = edge.count("wirepost_edge_strangers_gone_total{kind=\"bytes\"}").await?;
        drop(last);
        Ok(gone + 5 >= too_many && held <= BUDGET + 2 * HEADER as u64)
    })
    .await?;
    ensure!(edge.count("wirepost_edge_strangers_gone_total{kind=\"places\"}").await? == 0);
    // Enough are left, and nobody else has noticed.
    ensure!(edge.count("wirepost_edge_strangers").await? >= 10);
    edge.client("late", "app").connect().await?.sync().await?;
    early.sync().await
}

/// Descriptions of a megabyte that strangers ask for and do not read, each by another name of the edge, so that none is like
/// another one.
#[tokio::test]
async fn descriptions_that_nobody_reads_hold_no_more_than_their_budget() -> Result<()> {
    const BUDGET: u64 = 8 << 20;
    const ROUNDS: usize = 20;
    const EACH: usize = 12;
    let large = serde_json::json!({"type": "object", "description": "x".repeat(60_000)});
    let route = |n: usize| json!({"messageType": format!("m.{n}"), "sendType": "ClientToServer", "queue": {"name": "q"}, "schema": large});
    let open = json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "open", "namespace": "shop"},
        "spec": {
            "clientTypes": ["app"], "auth": {"publicDescription": true},
            "routes": (0..12).map(route).collect::<Vec<_>>(),
        },
    });
    let setup = Setup::new(&[PAYMENTS, &open.to_string()]).await?;
    let edge = roomy(&setup, BUDGET).start().await?;
    let get = async |host: &str, more: &str| {
        let mut raw = Raw::connect(edge.public).await?;
        raw.send(format!("GET /open/asyncapi.json HTTP/1.1\r\nhost: {host}\r\n{more}\r\n")).await?;
        Ok::<_, anyhow::Error>(raw)
    };
    let whole = get("edge", "connection: close\r\n").await?.end(PATIENCE).await?;
    ensure!(whole.starts_with("HTTP/1.1 200") && whole.len() > 700_000, "{} bytes", whole.len());
    let before = usage::resident(edge.pid)?.now;
    let mut unread = Vec::new();
    for round in 0..ROUNDS {
        for n in 0..EACH {
            // That of one name is made once for all.
            let host = if n % 2 == 0 { "edge".to_owned() } else { format!("e-{round}-{n}.example") };
            unread.push(get(&host, "").await?);
        }
        edge.client(&format!("client-{round}"), "app").connect().await?.sync().await?;
        ensure!(edge.readyz().await?.0 == 200);
    }
    eventually("those that are too many are gone", PATIENCE, || async {
        drop(get("edge", "connection: close\r\n").await?.end(PATIENCE).await?);
        Ok(edge.count("wirepost_edge_stranger_bytes").await? <= BUDGET + (2 << 20))
    })
    .await?;
    ensure!(edge.count("wirepost_edge_strangers_gone_total{kind=\"bytes\"}").await? >= 20);
    let grown = usage::resident(edge.pid)?.most.saturating_sub(before);
    ensure!(grown < 96 << 20, "{grown} bytes for {} unread descriptions", ROUNDS * EACH);
    drop(unread);
    Ok(())
}

#[tokio::test]
async fn silent_connections_of_an_address_give_way_to_others_of_it() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup
        .edge("e1")
        .flag("trusted-proxies", "none")
        .flag("handshakes-per-address", 8)
        .flag("header-timeout-seconds", 600)
        .start()
        .await?;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(Raw::connect(edge.public).await?);
    }
    edge.await_metric("wirepost_edge_strangers", 8.0).await?;
    // Beside them nobody of this address finds a place before their time is over, and everybody does after it.
    for name in ["alice", "bob", "carol"] {
        eventually(&format!("{name} gets in"), PATIENCE, || async {
            let Ok(mut client) = edge.client(name, "app").connect().await else { return Ok(false) };
            client.sync().await?;
            Ok(true)
        })
        .await?;
    }
    ensure!(edge.count("wirepost_edge_strangers_gone_total{kind=\"address\"}").await? >= 1);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_shows_nothing_takes_four_kilobytes_at_most() -> Result<()> {
    // The first ones fill what the allocator takes at once. Of the others there are many, since it takes 6 MiB at a time;
    // all of them have places where a process may open 20,000 files.
    const BEFORE: usize = 200;
    const SILENT: usize = 1550;
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("max-connections", 20_000).flag("header-timeout-seconds", 60).start().await?;
    edge.client("alice", "app").connect().await?.leave().await?;
    let mut silent = Vec::new();
    let mut before = 0;
    for n in 0..BEFORE + SILENT {
        if n == BEFORE {
            edge.await_metric("wirepost_edge_strangers", BEFORE as f64).await?;
            before = usage::resident(edge.pid)?.now;
        }
        silent.push(TcpStream::connect(edge.public).await?);
    }
    edge.await_metric("wirepost_edge_strangers", (BEFORE + SILENT) as f64).await?;
    let each = usage::resident(edge.pid)?.now.saturating_sub(before) / SILENT as u64;
    ensure!(each <= 4 << 10, "{each} bytes for each");
    Ok(())
}

#[tokio::test]
async fn an_address_that_a_proxy_names_has_no_more_connections_than_it_may() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup
        .edge("e1")
        .flag("trusted-proxies", "127.0.0.0/8,10.0.0.0/8")
        .flag("connections-per-address", 2)
        .flag("failures-per-address", 5)
        .start()
        .await?;
    let mut open = Vec::new();
    // What a client writes itself stands in front, and counts for nothing.
    for forwarded in ["192.0.2.1", "198.51.100.7, 192.0.2.1, 10.1.1.1"] {
        let (raw, head) = from(&edge, forwarded).await?;
        ensure!(head.starts_with("http/1.1 101"), "{head}");
        open.push(raw);
    }
    let (_, head) = from(&edge, "203.0.113.9, 192.0.2.1").await?;
    ensure!(head.starts_with("http/1.1 503") && head.contains("\r\nretry-after: "), "{head}");
    let (_, head) = from(&edge, "192.0.2.2").await?;
    ensure!(head.starts_with("http/1.1 101"), "another address: {head}");
    assert_eq!(edge.count("wirepost_edge_refused_total{kind=\"address_connections\"}").await?, 1);
    // It fails until its refusals come late; who has a token still gets in.
    drop(open);
    for _ in 0..8 {
        let (mut raw, head) = with(&edge, "/socket/forged", "192.0.2.1").await?;
        ensure!(head.starts_with("http/1.1 101"), "refused with a close code: {head}");
        ensure!(raw.end(Duration::from_secs(20)).await.is_ok());
    }
    ensure!(edge.count("wirepost_edge_slowed_total{kind=\"failures\"}").await? >= 1);
    eventually("it gets in", Duration::from_secs(20), || async {
        Ok(from(&edge, "192.0.2.1").await?.1.starts_with("http/1.1 101"))
    })
    .await
}

/// The header of the PROXY protocol, version 2, for a connection of this IPv4 address.
fn proxy_v2(client: [u8; 4]) -> Vec<u8> {
    let fields = [&client[..], &[10, 0, 0, 1], &4711_u16.to_be_bytes(), &443_u16.to_be_bytes()].concat();
    [b"\r\n\r\n\0\r\nQUIT\n", &[0x21, 0x11, 0, 12][..], &fields].concat()
}

#[tokio::test]
async fn who_a_client_is_says_the_proxy_in_its_own_way_alone() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let limited =
        |edge: &str| setup.edge(edge).flag("trusted-proxies", "127.0.0.0/8").flag("connections-per-address", 1);
    let by_protocol = limited("e1").flag("proxy-protocol", true).start().await?;
    let by_header = limited("e2").flag("forwarded-header", "forwarded").start().await?;
    let open = async |edge: &Edge, before: &[u8], fields: &str| {
        let mut raw = Raw::connect(edge.public).await?;
        // Whoever calls it without the protocol is not served, and a ticket is good at each.
        let request = upgrade(&path(&by_header, "alice").await?, &format!("{SUBPROTOCOL}{fields}"));
        raw.send([before, request.as_bytes()].concat()).await?;
        let head = raw.head().await?;
        Ok::<_, anyhow::Error>((head.starts_with("http/1.1 101"), raw))
    };
    let (v1, v2) = (b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\n".as_slice(), proxy_v2([192, 0, 2, 1]));
    let (first, _kept) = open(&by_protocol, v1, "").await?;
    ensure!(first, "the first one of an address");
    // Neither the other version nor what the client writes makes another one of it.
    for (before, fields) in
        [(v1, ""), (&v2, ""), (&v2, "x-forwarded-for: 203.0.113.1\r\nforwarded: for=203.0.113.1\r\n")]
    {
        ensure!(!open(&by_protocol, before, fields).await?.0, "a second one of the same address: {fields}");
    }
    ensure!(open(&by_protocol, &proxy_v2([192, 0, 2, 2]), "").await?.0, "another address");

    let (first, _kept) = open(&by_header, b"", "forwarded: for=198.51.100.9, for=\"192.0.2.1:4711\"\r\n").await?;
    ensure!(first, "the first one of an address");
    // The header that this proxy passes on as the client wrote it counts for nothing.
    let again = open(&by_header, b"", "x-forwarded-for: 203.0.113.1\r\nforwarded: for=192.0.2.1\r\n").await?;
    ensure!(!again.0, "a second one of the same address");
    ensure!(open(&by_header, b"", "forwarded: for=\"[2001:db8::1]:443\"\r\n").await?.0, "another address");
    Ok(())
}
