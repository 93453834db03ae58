//! The edge ends TLS itself: `wss`, certificates that change while it runs, handshakes that do not end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};
use wirepost_core::frames::SUBPROTOCOL;
use wirepost_tests::broker::{PATIENCE, eventually};
use wirepost_tests::edge::Edge;
use wirepost_tests::raw::Raw;
use wirepost_tests::service::{Service, payment};
use wirepost_tests::setup::{PAYMENTS, Setup};

/// An authority that signs the edge's certificate, and a client that believes it alone.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Writes a new certificate and its key; each file is replaced as a whole.
    fn write(&self, dir: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &self.issuer)?;
        replace(&dir.join("tls.crt"), &certificate.pem())?;
        replace(&dir.join("tls.key"), &key.serialize_pem())
    }

    fn connector(&self) -> Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.issuer.der().to_vec()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    async fn connect(&self, to: SocketAddr) -> Result<TlsStream<TcpStream>> {
        let handshake = self.connector()?.connect(ServerName::try_from("localhost")?, TcpStream::connect(to).await?);
        Ok(timeout(PATIENCE, handshake).await??)
    }

    async fn trusts(&self, edge: &Edge) -> bool {
        self.connect(edge.public).await.is_ok()
    }
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

/// The token call over TLS: the URL to connect to.
async fn token(authority: &Authority, edge: &Edge, setup: &Setup) -> Result<String> {
    let mut stream = authority.connect(edge.public).await?;
    let request = format!(
        "GET /payments/websocket/token?uniqueId=alice&clientType=app HTTP/1.1\r\nhost: localhost:{}\r\nx-api-key: {}\r\n\
         connection: close\r\n\r\n",
        edge.public.port(),
        setup.api_key()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    let body: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
    Ok(body["data"].as_str().with_context(|| format!("{body}"))?.to_owned())
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn wss(authority: &Authority, edge: &Edge, url: &str) -> Result<Socket> {
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse()?);
    let (socket, _) = timeout(PATIENCE, client_async(request, authority.connect(edge.public).await?)).await??;
    Ok(socket)
}

/// The next frame that `wanted` takes; others are skipped.
async fn frame(socket: &mut Socket, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let reading = async {
        loop {
            match socket.next().await.context("the end")?? {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text)?;
                    if wanted(&frame) {
                        return Ok(frame);
                    }
                }
                Message::Close(frame) => bail!("closed: {frame:?}"),
                _ => {}
            }
        }
    };
    timeout(PATIENCE, reading).await.context("no such frame came")?
}

async fn send_acked(socket: &mut Socket, id: &str) -> Result<()> {
    socket.send(Message::text(json!({"id": id, "messageType": "order.placed"}).to_string())).await?;
    let answer = frame(socket, |frame| frame["id"] == id).await?;
    anyhow::ensure!(answer["op"] == "ack", "{answer}");
    Ok(())
}

#[tokio::test]
async fn messages_flow_over_wss() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let authority = Authority::new()?;
    authority.write(setup.dir())?;
    let edge = start(&setup).await?;
    let url = token(&authority, &edge, &setup).await?;
    assert!(url.starts_with(&format!("wss://localhost:{}/socket/", edge.public.port())), "{url}");
    let mut alice = wss(&authority, &edge, &url).await?;
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
    assert!(!Authority::new()?.trusts(&edge).await);
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
    old.write(setup.dir())?;
    let edge = start(&setup).await?;
    let mut alice = wss(&old, &edge, &token(&old, &edge, &setup).await?).await?;
    frame(&mut alice, |frame| frame["op"] == "welcome").await?;
    assert!(!new.trusts(&edge).await);

    new.write(setup.dir())?;
    eventually("the new certificate is shown", PATIENCE, || async { Ok(new.trusts(&edge).await) }).await?;
    assert!(!old.trusts(&edge).await, "the old one is shown as well");
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
        assert!(new.trusts(&edge).await);
    }
    old.write(setup.dir())?;
    eventually("a good one is taken again", PATIENCE, || async { Ok(old.trusts(&edge).await) }).await?;
    assert_eq!(edge.readyz().await?.0, 200);
    send_acked(&mut alice, "o2").await
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_in_time() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let authority = Authority::new()?;
    authority.write(setup.dir())?;
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
    assert!(authority.trusts(&edge).await);
    Ok(())
}

#[tokio::test]
async fn a_drain_over_wss_ends_with_a_close_frame() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let authority = Authority::new()?;
    authority.write(setup.dir())?;
    let edge = start(&setup).await?;
    let mut sockets = Vec::new();
    for _ in 0..8 {
        let url = token(&authority, &edge, &setup).await?;
        let mut socket = wss(&authority, &edge, &url).await?;
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
