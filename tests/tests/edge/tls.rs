//! The edge ends TLS itself: `wss`, certificates that change while it runs, handshakes that do not end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::KeyPair;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::raw::Raw;
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};
use wirepost_testing::tls::{Authority, frame, send_acked};

/// Writes a new certificate and its key; each file is replaced as a whole.
fn write(authority: &Authority, dir: &Path) -> Result<()> {
    let (certificate, key) = authority.sign()?;
    replace(&dir.join("tls.crt"), &certificate)?;
    replace(&dir.join("tls.key"), &key)
}

fn replace(path: &Path, content: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, content)?;
    Ok(std::fs::rename(new, path)?)
}

async fn start(setup: &Setup) -> Result<Edge> {
    let file = |name: &str| setup.dir().join(name).display().to_string();
    setup
        .edge("secure")
        .flag("tls-certificate", file("tls.crt"))
        .flag("tls-key", file("tls.key"))
        .flag("header-timeout-seconds", 1)
        .start()
        .await
}

async fn token(authority: &Authority, edge: &Edge, setup: &Setup) -> Result<String> {
    authority.token(edge.public, "payments", setup.api_key()).await
}

#[tokio::test]
async fn messages_flow_over_wss() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let authority = Authority::new()?;
    write(&authority, setup.dir())?;
    let edge = start(&setup).await?;
    let url = token(&authority, &edge, &setup).await?;
    assert!(url.starts_with(&format!("wss://localhost:{}/socket/", edge.public.port())), "{url}");
    let mut alice = authority.wss(edge.public, &url).await?;
    let welcome = frame(&mut alice, |frame| frame["op"] == "welcome").await?;
    if welcome["resumed"].is_null() {
        frame(&mut alice, |frame| frame["op"] == "position").await?;
    }
    send_acked(&mut alice, "o1").await?;
    let service = Service::connect(&setup).await?;
    // Larger than a record of TLS, and many.
    let mut large = payment("alice", 0);
    large["content"]["x"] = json!("x".repeat(100_000));
    service.push_all(std::iter::once(large).chain((1..200).map(|n| payment("alice", n)))).await?;
    for n in 0..200 {
        let push = frame(&mut alice, |frame| frame["op"].is_null()).await?;
        assert_eq!(push["content"]["n"], n);
    }
    // Who does not know the authority does not connect, and who speaks no TLS is not served.
    assert!(!Authority::new()?.trusts(edge.public).await);
    let mut plain = Raw::connect(edge.public).await?;
    plain.send("GET /payments/asyncapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let answer = plain.end(PATIENCE).await?;
    assert!(!answer.contains("HTTP/1.1"), "served without TLS: {answer}");
    Ok(())
}

#[tokio::test]
async fn a_new_certificate_is_taken_into_use_and_a_broken_one_is_not() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (old, new) = (Authority::new()?, Authority::new()?);
    write(&old, setup.dir())?;
    let edge = start(&setup).await?;
    let mut alice = old.wss(edge.public, &token(&old, &edge, &setup).await?).await?;
    frame(&mut alice, |frame| frame["op"] == "welcome").await?;
    assert!(!new.trusts(edge.public).await);

    write(&new, setup.dir())?;
    eventually("the new certificate is shown", PATIENCE, || async { Ok(new.trusts(edge.public).await) }).await?;
    assert!(!old.trusts(edge.public).await, "the old one is shown as well");
    // Who is there stays.
    send_acked(&mut alice, "o1").await?;

    // A key that is another certificate's, then half a file: the last good pair stays.
    for (key, certificate) in [(Some(KeyPair::generate()?.serialize_pem()), None), (None, Some("-----BEGIN CERT"))] {
        if let Some(key) = key {
            replace(&setup.dir().join("tls.key"), &key)?;
        }
        if let Some(certificate) = certificate {
            replace(&setup.dir().join("tls.crt"), certificate)?;
        }
        let refusals = edge.log().matches("certificate refused").count();
        eventually("it is refused", PATIENCE, || async {
            Ok(edge.log().matches("certificate refused").count() > refusals)
        })
        .await?;
        assert!(new.trusts(edge.public).await);
    }
    write(&old, setup.dir())?;
    eventually("a good one is taken again", PATIENCE, || async { Ok(old.trusts(edge.public).await) }).await?;
    assert_eq!(edge.readyz().await?.0, 200);
    send_acked(&mut alice, "o2").await
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_in_time() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let authority = Authority::new()?;
    write(&authority, setup.dir())?;
    let edge = start(&setup).await?;
    // Nothing; the beginning of a record; a record that is none.
    for begin in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\xff\xff"] {
        let mut raw = Raw::connect(edge.public).await?;
        raw.send(begin).await?;
        raw.end(Duration::from_secs(10)).await?;
    }
    // After a whole handshake the request has its own time.
    let mut stream = authority.connect(edge.public).await?;
    stream.write_all(b"GET / HTTP/1.1\r\n").await?;
    let mut answer = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
        .await
        .context("a request without end is kept")?
        .ok();
    assert!(authority.trusts(edge.public).await);
    Ok(())
}

#[tokio::test]
async fn a_client_that_also_speaks_http_2_gets_http_1_1() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let authority = Authority::new()?;
    write(&authority, setup.dir())?;
    let edge = start(&setup).await?;
    for (offered, chosen) in
        [(&["h2", "http/1.1"][..], Some("http/1.1")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
    {
        let (status, is) = authority.request(edge.public, None, offered).await?.context("not let in")?;
        assert_eq!((status, is.as_deref()), (404, chosen), "{offered:?}");
    }
    // Nothing is served to one that can't do without HTTP/2.
    assert_eq!(authority.request(edge.public, None, &["h2"]).await?, None);
    Ok(())
}

#[tokio::test]
async fn where_clients_must_show_a_certificate_nobody_gets_in_without_a_good_one() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let (authority, clients, others) = (Authority::new()?, Authority::new()?, Authority::new()?);
    write(&authority, setup.dir())?;
    let ca = setup.dir().join("clients.crt");
    replace(&ca, &clients.pem())?;
    let start = async |name: &str, required: bool| {
        let file = |name: &str| setup.dir().join(name).display().to_string();
        let edge = setup.edge(name).flag("tls-certificate", file("tls.crt")).flag("tls-key", file("tls.key"));
        edge.flag("tls-client-ca", ca.display()).flag("tls-client-required", required).start().await
    };
    let (strict, lenient) = (start("strict", true).await?, start("lenient", false).await?);
    let (good, foreign) = (clients.sign_client()?, others.sign_client()?);
    let let_in = async |edge: &Edge, client: Option<&(String, String)>| {
        anyhow::Ok(authority.request(edge.public, client, &["http/1.1"]).await?.is_some())
    };
    for (client, by_strict, by_lenient) in
        [(Some(&good), true, true), (None, false, true), (Some(&foreign), false, false)]
    {
        assert_eq!(let_in(&strict, client).await?, by_strict, "{}", client.is_some());
        assert_eq!(let_in(&lenient, client).await?, by_lenient, "{}", client.is_some());
    }
    let handshakes =
        async |kind: &str| strict.metric(&format!("wirepost_edge_tls_handshakes_total{{kind=\"{kind}\"}}")).await;
    assert!(handshakes("certificate").await? >= 1.0 && handshakes("failed").await? >= 2.0);
    // Another CA is taken into use, for whoever comes from now on.
    replace(&ca, &others.pem())?;
    eventually("the new CA counts", PATIENCE, || let_in(&strict, Some(&foreign))).await?;
    assert!(!let_in(&strict, Some(&good)).await?, "a CA that is not trusted any more lets clients in");
    Ok(())
}

#[tokio::test]
async fn a_drain_over_wss_ends_with_a_close_frame() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let authority = Authority::new()?;
    write(&authority, setup.dir())?;
    let edge = start(&setup).await?;
    let mut sockets = Vec::new();
    for _ in 0..8 {
        let url = token(&authority, &edge, &setup).await?;
        let mut socket = authority.wss(edge.public, &url).await?;
        frame(&mut socket, |frame| frame["op"] == "welcome").await?;
        sockets.push(socket);
    }
    edge.sigterm()?;
    for mut socket in sockets {
        frame(&mut socket, |frame| frame["op"] == "drain").await?;
        let error = frame(&mut socket, |_| false).await.unwrap_err().to_string();
        assert!(error.contains("1012") || error.contains("Restart"), "{error}");
    }
    assert_eq!(edge.exited(PATIENCE).await?.code(), Some(0));
    Ok(())
}
