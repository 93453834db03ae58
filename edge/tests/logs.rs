//! A process of its own, because it listens to everything that is logged.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wirepost_edge::{app::App, broker::memory::MemoryBroker, config::settings::Settings, identity::keys::KeyRing};
use wirepost_runtime::{readiness::Readiness, tasks::Supervisor};

const API_KEY: &str = "key-of-the-service";
/// SHA-256 of [`API_KEY`].
const DIGEST: &str = "903166d4bfd9bf45b754e382c47225969b069c6f5e63675cd4b0544a68ff917a";

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_holds_a_token_or_key() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let loopback = ([127, 0, 0, 1], 0).into();
    let settings = Settings { listen: loopback, admin: loopback, ..Settings::default() };
    let (keys, broker) = (Arc::new(KeyRing::random()), Arc::new(MemoryBroker::default()));
    let app = App::start(settings, keys, broker, Readiness::default(), Supervisor::default()).await.unwrap();
    let config = json!({
        "format": 1, "businessType": "payments", "owner": "shop/payments", "generation": 1, "clientTypes": ["app"], "routes": [],
        "delivery": "Durable", "retention": {"seconds": 60, "bytes": 1_000_000}, "sessionMaxSeconds": 60, "limits": {},
        "auth": {"allowedOrigins": [], "apiKeys": [{"sha256": DIGEST}]},
    });
    assert!(app.state.catalog.replace(vec![serde_json::from_value(config).unwrap()], &[]).is_empty());
    let send = async |request: String| {
        let mut stream = TcpStream::connect(app.public).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let call = async |method: &str, path: &str, header: &str| {
        send(format!("{method} {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n{header}\r\n\r\n")).await
    };

    let path = "/payments/websocket/token?uniqueId=alice-secret-id&clientType=app";
    let answer = call("GET", path, &format!("x-api-key: {API_KEY}")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let ticket = answer.split("/socket/").nth(1).unwrap().split('"').next().unwrap();
    call("GET", path, "x-api-key: a-wrong-key").await;
    call("GET", path, "authorization: Bearer aaa.bbb.ccc").await;
    call("GET", &format!("/socket/{ticket}"), "").await;
    call("POST", &format!("/socket/{ticket}"), "").await;
    call("GET", &format!("/socket/{ticket}/more"), "").await;
    let (mut socket, _) =
        tokio_tungstenite::connect_async(format!("ws://{}/socket/{ticket}", app.public)).await.unwrap();
    socket.close(None).await.unwrap();
    let altered = format!("ws://{}/socket/{}AA", app.public, &ticket[..ticket.len() - 2]);
    assert!(tokio_tungstenite::connect_async(altered).await.is_err());

    let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("/{business}/websocket/token"), "requests are logged by their template: {logged}");
    let signature = &ticket[ticket.len() - 20..];
    for secret in [ticket, signature, API_KEY, "a-wrong-key", "aaa.bbb.ccc", "secret-id"] {
        assert!(!logged.contains(secret), "{secret} in {logged}");
    }
}
