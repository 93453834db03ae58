//! The upgrade over a real connection, as the public port answers it: directly, or by the HTTP library.

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, timeout},
};
use tokio_rustls::TlsConnector;
use wirepost_core::compile::compile_one;

use super::*;
use crate::{
    broker::memory::MemoryBroker,
    clock,
    config::settings::TlsFiles,
    identity::{
        grant::Grant,
        ticket::{self, Purpose, Ticket},
    },
    metrics::label,
    socket::wire::Io,
};

/// `ping` as a text message, masked with zeros.
const PING: &[u8] = b"\x81\x8d\0\0\0\0{\"op\":\"ping\"}";
/// How the body of a refusal ends.
const BODY_END: &str = "\"}";
const ANOTHER_REQUEST: &str = "GET /none HTTP/1.1\r\nhost: edge\r\n\r\n";

/// An edge whose clients are greeted immediately.
async fn start(settings: Settings) -> App {
    let declared = json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
        "metadata": {"name": "payments", "namespace": "shop"},
        "spec": {
            "clientTypes": ["app"],
            "routes": [{"messageType": "paid", "sendType": "ServerToClient", "to": ["app"]}],
            "auth": {"allowedOrigins": ["https://shop.example"]},
        },
    });
    let compiled = compile_one(&serde_json::from_value(declared).unwrap()).unwrap();
    let broker = MemoryBroker::new();
    broker.apply(&[compiled.topology]);
    let loopback = ([127, 0, 0, 1], 0).into();
    let settings = Settings { listen: loopback, admin: loopback, ..settings };
    let keys = Arc::new(KeyRing::random());
    let app = App::start(settings, keys, Arc::new(broker), Readiness::default(), Supervisor::default()).await.unwrap();
    assert!(app.state.catalog.replace(vec![compiled.config], &[]).is_empty());
    app
}

fn ticket(app: &App, unique_id: &str) -> String {
    let ends = clock::now_ms() + 60_000;
    let ticket = Ticket {
        purpose: Purpose::Connect,
        business: "payments".into(),
        unique_id: unique_id.into(),
        client_type: "app".into(),
        tags: vec![],
        session_ends_at: ends,
        expires_at: ends,
        id: rand::random(),
        grant: Grant::new(clock::now_ms(), 0, 0),
    };
    ticket::seal(&app.state.keys, &ticket)
}

fn request(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: edge\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

fn proper(app: &App, unique_id: &str) -> String {
    request(&format!("/socket/{}", ticket(app, unique_id)), "sec-websocket-protocol: wirepost.v1\r\n")
}

/// A connection, and what came on it.
struct Raw(Box<dyn Io>, Vec<u8>);

impl Raw {
    async fn connect(app: &App) -> Self {
        let stream = TcpStream::connect(app.public).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(Box::new(stream), Vec::new())
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Reads until it has come; all that has come.
    async fn until(&mut self, part: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.1).into_owned();
            if text.contains(part) {
                return text;
            }
            self.1.reserve(4096);
            let read = timeout(Duration::from_secs(20), self.0.read_buf(&mut self.1)).await.expect("nothing comes");
            assert!(read.unwrap() > 0, "it ended after {text:?}");
        }
    }
}

#[tokio::test]
async fn the_answer_and_the_welcome_come_in_one_write() {
    let app = start(Settings::default()).await;
    // The first one waits for the reader to attach.
    let mut first = Raw::connect(&app).await;
    first.send(proper(&app, "alice")).await;
    first.until("welcome").await;
    let mut second = Raw::connect(&app).await;
    second.send(proper(&app, "alice")).await;
    let answer = second.until("HTTP/1.1 101").await;
    assert!(answer.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
    assert!(
        answer.contains("\r\nsec-websocket-protocol: wirepost.v1\r\n\r\n") && answer.contains("welcome"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_request_may_come_in_any_pieces_with_frames_behind_it_and_after_another_request() {
    let app = start(Settings::default()).await;
    for before in ["", "\r\n", ANOTHER_REQUEST] {
        let mut raw = Raw::connect(&app).await;
        raw.send([before.as_bytes(), proper(&app, "alice").as_bytes(), PING].concat()).await;
        raw.until("welcome").await;
        raw.until("pong").await;
    }
    let mut slow = Raw::connect(&app).await;
    let request = proper(&app, "bob");
    for piece in request.as_bytes().chunks(1).chain(PING.chunks(3)) {
        slow.send(piece).await;
        tokio::task::yield_now().await;
    }
    slow.until("welcome").await;
    slow.until("pong").await;
}

#[tokio::test]
async fn over_tls_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key"), clients: None };
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    let app = start(Settings { tls: Some(files), ..Settings::default() }).await;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    for (request, end) in [
        ([proper(&app, "alice").as_bytes(), PING].concat(), "pong"),
        (request("/socket/forged", "").into_bytes(), "HTTP/1.1 401"),
        ([ANOTHER_REQUEST.as_bytes(), proper(&app, "alice").as_bytes(), PING].concat(), "pong"),
    ] {
        let name = ServerName::try_from("localhost").unwrap();
        let stream = connector.connect(name, TcpStream::connect(app.public).await.unwrap()).await.unwrap();
        let mut raw = Raw(Box::new(stream), Vec::new());
        raw.send(request).await;
        raw.until(end).await;
    }
}

#[tokio::test]
async fn a_refusal_is_the_same_for_the_first_request_of_a_connection_and_for_a_later_one() {
    let app = start(Settings { max_connections: 1, ..Settings::default() }).await;
    let good = ticket(&app, "alice");
    let mut there = Raw::connect(&app).await;
    there.send(request(&format!("/socket/{good}"), "")).await;
    there.until("101").await;
    let (path, forged) = (format!("/socket/{}", ticket(&app, "alice")), "/socket/forged".to_owned());
    let refused = |kind: &'static str| app.state.metrics.refused.get_or_create(&label(kind)).get();
    for (request, status, kind) in [
        (request(&path, ""), 503, "connection_limit"),
        (request(&path, "origin: https://evil.example\r\n"), 403, "origin"),
        (request(&forged, ""), 401, "socket"),
        (request(&forged, "sec-websocket-protocol: wirepost.v1\r\n"), 101, "socket"),
        (request(&format!("{path}?cursor=a&cursor=b"), ""), 400, ""),
        (request(&path, "").replace("sec-websocket-version: 13", "sec-websocket-version: 8"), 426, ""),
        (request(&format!("{path}/more"), ""), 404, "not_found"),
        (request(&path, "content-length: nonsense\r\n"), 400, "bad_request"),
    ] {
        let mut answers = Vec::new();
        for before in ["", ANOTHER_REQUEST] {
            let mut raw = Raw::connect(&app).await;
            if !before.is_empty() {
                raw.send(before).await;
                raw.until("40401").await;
                raw.until(BODY_END).await;
                raw.1.clear();
            }
            let counted = refused(kind);
            raw.send(&request).await;
            // An answer has a body, a refusal by the protocol a close frame.
            let end = if status == 101 { "\r\n\r\n\u{fffd}" } else { BODY_END };
            let answer = raw.until(end).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            if !kind.is_empty() {
                assert_eq!(refused(kind), counted + 1, "counted once: {request}");
            }
            answers.push(answer.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n"));
        }
        assert_eq!(answers[0], answers[1]);
    }
}

#[tokio::test]
async fn connecting_is_charged_once() {
    let app = start(Settings { max_connections: 1, ..Settings::default() }).await;
    let mut there = Raw::connect(&app).await;
    there.send(proper(&app, "alice")).await;
    there.until("welcome").await;
    // Four times `connectionsPerId` and 100 more in a burst, see `FloodLimiter`.
    let mut refused = 0;
    while app.state.metrics.refused.get_or_create(&label("connect_rate")).get() == 0 {
        let mut raw = Raw::connect(&app).await;
        raw.send(proper(&app, "alice")).await;
        raw.until("503").await;
        refused += 1;
    }
    // It drains a little meanwhile.
    assert!((132..200).contains(&refused), "{refused}");
}

#[tokio::test]
async fn a_request_that_is_under_way_when_the_edge_ends_is_told_to_go_elsewhere() {
    let quick = Settings { endpoint_lag: Duration::ZERO, drain_window: Duration::ZERO, ..Settings::default() };
    let app = start(quick).await;
    let under_protocol = proper(&app, "alice");
    let plain = request(&format!("/socket/{}", ticket(&app, "alice")), "");
    // Nothing has come of it, or a part.
    let (mut silent, mut begun, mut without) =
        (Raw::connect(&app).await, Raw::connect(&app).await, Raw::connect(&app).await);
    begun.send(&under_protocol[..40]).await;
    without.send(&plain[..40]).await;
    let state = Arc::clone(&app.state);
    let ending = tokio::spawn(app.shutdown());
    state.sockets.drain.subscribe().share().await;
    silent.send(&under_protocol).await;
    begun.send(&under_protocol[40..]).await;
    without.send(&plain[40..]).await;
    for told in [&mut silent, &mut begun] {
        told.until("HTTP/1.1 101").await;
        while !told.1.windows(2).any(|two| two == 1012_u16.to_be_bytes()) {
            assert!(told.0.read_buf(&mut told.1).await.unwrap() > 0, "closed without a code");
        }
    }
    without.until("HTTP/1.1 503").await;
    let answer = without.until("\r\n\r\n").await;
    assert!(answer.contains("retry-after: "), "{answer}");
    // The peers have to answer the close frame, or time passes.
    drop((silent, begun, without));
    timeout(Duration::from_secs(20), ending).await.expect("it ends").unwrap();
}
