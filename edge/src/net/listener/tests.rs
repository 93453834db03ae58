use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{extract::Request, http::StatusCode, response::IntoResponse, routing::get};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
    task::JoinHandle,
};

use super::*;
use crate::{
    address::{ForwardedHeader, Proxies, limits::Limits},
    config::settings::TlsFiles,
    http::addresses::Peer,
};

struct Running {
    address: SocketAddr,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), TlsError>>,
}

fn settings() -> Settings {
    let loopback = ([127, 0, 0, 1], 0).into();
    Settings { listen: loopback, admin: loopback, ..Settings::default() }
}

async fn serve(settings: &Settings, router: Router) -> Running {
    start(bind(settings).await.unwrap(), router)
}

async fn bind(settings: &Settings) -> Result<Listener, StartError> {
    let metrics = Arc::default();
    Listener::bind(settings, Doors::new(settings, &metrics), metrics).await
}

fn start(listener: Listener, router: Router) -> Running {
    let (address, cancel) = (listener.local_addr(), CancellationToken::new());
    let task =
        tokio::spawn(listener.serve_reloading(router, cancel.clone(), Supervisor::default(), Duration::from_millis(5)));
    Running { address, cancel, task }
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        within(self.task).await.unwrap().unwrap();
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("takes too long")
}

fn hello() -> Router {
    Router::new().route("/", get(async || "hello"))
}

async fn read_all(mut stream: impl AsyncRead + Unpin) -> String {
    let mut text = Vec::new();
    // A reset after the answer counts as its end.
    let _ = within(stream.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

async fn request(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    // It may have been closed already.
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    read_all(stream).await
}

async fn connect(address: SocketAddr) -> TcpStream {
    within(TcpStream::connect(address)).await.unwrap()
}

/// Fails like a process out of file descriptors, until switched.
struct Exhausted {
    tries: AtomicUsize,
    socket: TcpListener,
    recovered: std::sync::atomic::AtomicBool,
}

impl Accept for Exhausted {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.tries.fetch_add(1, Ordering::Relaxed);
        if self.recovered.load(Ordering::Relaxed) {
            return Accept::accept(&self.socket).await;
        }
        Err(io::Error::from_raw_os_error(24))
    }
}

#[tokio::test]
async fn failed_accepts_pause_instead_of_spinning_and_accepting_goes_on() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let from = Arc::new(Exhausted { tries: AtomicUsize::new(0), socket, recovered: false.into() });
    let (metrics, cancel) = (Arc::new(Metrics::default()), CancellationToken::new());
    let (sender, mut accepted) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn({
        let (from, metrics, cancel) = (Arc::clone(&from), Arc::clone(&metrics), cancel.clone());
        let doors = Doors::new(&settings(), &metrics);
        async move { accept(from, &doors, &metrics, &cancel, |stream, _, _| sender.send(stream).unwrap()).await }
    });
    tokio::time::pause();
    tokio::time::sleep(Duration::from_mins(1)).await;
    tokio::time::resume();
    let tries = from.tries.load(Ordering::Relaxed);
    // On average half a second between two.
    assert!((60..200).contains(&tries), "{tries} tries in a minute");
    assert_eq!(metrics.accept_errors.get(), tries as u64);
    from.recovered.store(true, Ordering::Relaxed);
    let _client = connect(address).await;
    within(accepted.recv()).await.unwrap();
    cancel.cancel();
    within(task).await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_an_error_at_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let settings = Settings { listen: taken.local_addr().unwrap(), ..settings() };
    let error = bind(&settings).await.unwrap_err();
    assert!(error.to_string().contains(&settings.listen.to_string()), "{error}");
}

#[tokio::test]
async fn an_idle_or_slow_caller_is_disconnected_at_the_header_timeout() {
    let running = serve(&Settings { header_timeout: Duration::from_millis(100), ..settings() }, hello()).await;
    let silent = connect(running.address).await;
    let mut slow = connect(running.address).await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    let mut idle = connect(running.address).await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_all(silent).await;
    read_all(slow).await;
    assert!(read_all(idle).await.contains("hello"), "answered, then cut while idle");
    running.stop().await;
}

#[tokio::test]
async fn a_huge_header_is_refused() {
    let running = serve(&settings(), hello()).await;
    let mut client = connect(running.address).await;
    let header = format!("GET / HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", "a".repeat(64_000));
    let _ = client.write_all(header.as_bytes()).await;
    let answer = read_all(client).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn a_place_is_kept_until_the_connection_ends_even_after_an_upgrade() {
    let release = Arc::new(Notify::new());
    let until = Arc::clone(&release);
    let upgrade = move |request: Request| {
        let until = Arc::clone(&until);
        async move {
            tokio::spawn(async move {
                let _socket = hyper::upgrade::on(request).await.unwrap();
                until.notified().await;
            });
            (StatusCode::SWITCHING_PROTOCOLS, [("upgrade", "x"), ("connection", "upgrade")]).into_response()
        }
    };
    let running = serve(&one_place(), hello().route("/up", get(upgrade))).await;
    let mut first = connect(running.address).await;
    first.write_all(b"GET /up HTTP/1.1\r\nhost: x\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    within(first.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    let mut second = Box::pin(request(connect(running.address).await));
    assert!(timeout(Duration::from_millis(200), &mut second).await.is_err(), "waits for the place");
    release.notify_one();
    assert!(within(second).await.contains("hello"));
    running.stop().await;
}

/// One connection that has not been let in.
fn one_place() -> Settings {
    Settings { max_connections: 1, max_tcp_connections: Some(2), ..settings() }
}

#[tokio::test]
async fn who_makes_the_edge_wait_gives_way_to_who_needs_its_place() {
    let running = serve(&one_place(), hello()).await;
    let mut half = connect(running.address).await;
    half.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    assert!(request(connect(running.address).await).await.contains("hello"));
    assert!(read_all(half).await.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_proxy_says_whose_connection_it_is_and_nobody_else_does() {
    let whose = Router::new().route("/", get(async |peer: axum::Extension<Peer>| peer.address.to_string()));
    let of = async |trusted: &str, header: &str| {
        let proxies = Proxies::new(&[trusted.to_owned()], ForwardedHeader::default(), true).unwrap();
        let running = serve(&Settings { proxies, ..settings() }, whose.clone()).await;
        let mut client = connect(running.address).await;
        client.write_all(header.as_bytes()).await.unwrap();
        let answer = request(client).await;
        running.stop().await;
        answer
    };
    let header = "PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n";
    assert!(of("127.0.0.0/8", header).await.ends_with("192.0.2.7"));
    assert!(of("127.0.0.0/8", "").await.is_empty(), "a proxy must say it");
    assert!(of("10.0.0.0/8", header).await.starts_with("HTTP/1.1 400"), "anybody could");
    assert!(of("10.0.0.0/8", "").await.ends_with("127.0.0.1"));
}

#[tokio::test]
async fn an_address_with_too_many_handshakes_gets_no_further_one_before_tls() {
    let proxies = Proxies::new(&["none".to_owned()], ForwardedHeader::default(), false).unwrap();
    let address_limits = Limits { handshakes: 2, ..Limits::default() };
    let running = serve(&Settings { proxies, address_limits, ..settings() }, hello()).await;
    let mut silent = Vec::new();
    within(async {
        while silent.len() < 2 {
            silent.push(connect(running.address).await);
        }
        while request(connect(running.address).await).await.contains("hello") {}
    })
    .await;
    drop(silent);
    within(async { while !request(connect(running.address).await).await.contains("hello") {} }).await;
    running.stop().await;
}

#[tokio::test]
async fn the_end_lets_a_request_finish_and_closes_idle_connections() {
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, until) = (Arc::clone(&entered), Arc::clone(&release));
    let slow = move || {
        let (inside, until) = (Arc::clone(&inside), Arc::clone(&until));
        async move {
            inside.notify_one();
            until.notified().await;
            "done"
        }
    };
    let running = serve(&settings(), hello().route("/slow", get(slow))).await;
    let mut busy = connect(running.address).await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut idle = connect(running.address).await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    within(entered.notified()).await;
    running.cancel.cancel();
    read_all(idle).await;
    assert!(!running.task.is_finished(), "waits for the request");
    release.notify_one();
    assert!(read_all(busy).await.contains("done"));
    running.stop().await;
}

#[tokio::test]
async fn an_endless_request_is_aborted() {
    let forever = async || std::future::pending::<&str>().await;
    let running = serve(
        &Settings { header_timeout: Duration::from_millis(200), ..settings() },
        Router::new().route("/", get(forever)),
    )
    .await;
    let mut client = connect(running.address).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    running.stop().await;
    read_all(client).await;
}

/// Writes a fresh self-signed certificate; its DER.
fn certify(dir: &Path) -> (CertificateDer<'static>, TlsFiles) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles { certificate: dir.join("tls.crt"), key: dir.join("tls.key"), clients: None };
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    (made.cert.der().clone(), files)
}

async fn tls_request(address: SocketAddr, trusted: &CertificateDer<'static>) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = within(connector.connect(name, connect(address).await)).await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    Ok(request(stream).await)
}

#[tokio::test]
async fn a_new_certificate_is_used_and_an_invalid_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (first, files) = certify(dir.path());
    let running = serve(&Settings { tls: Some(files.clone()), ..settings() }, hello()).await;
    assert!(tls_request(running.address, &first).await.unwrap().contains("hello"));

    std::fs::write(&files.certificate, "not a certificate").unwrap();
    std::fs::write(&files.key, "not a key").unwrap();
    assert!(tls_request(running.address, &first).await.unwrap().contains("hello"), "the last valid one stays");

    let (second, _) = certify(dir.path());
    within(async {
        while tls_request(running.address, &second).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(tls_request(running.address, &first).await.is_err());
    running.stop().await;
}

#[tokio::test]
async fn without_a_valid_certificate_it_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_, files) = certify(dir.path());
    let other = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&files.key, other.serialize_pem()).unwrap();
    let bind = async || bind(&Settings { tls: Some(files.clone()), ..settings() }).await;
    let error = bind().await.unwrap_err().to_string();
    assert!(error.contains("certificate and key"), "{error}");
    std::fs::remove_file(&files.key).unwrap();
    let error = bind().await.unwrap_err().to_string();
    assert!(error.contains("tls.key"), "{error}");
}

#[tokio::test]
async fn a_caller_that_does_not_speak_tls_is_disconnected() {
    let dir = tempfile::tempdir().unwrap();
    let (_, files) = certify(dir.path());
    let settings = Settings { tls: Some(files), header_timeout: Duration::from_millis(100), ..settings() };
    let running = serve(&settings, hello()).await;
    let silent = connect(running.address).await;
    assert!(!request(connect(running.address).await).await.contains("hello"));
    assert!(read_all(silent).await.is_empty());
    running.stop().await;
}
