//! `wirepost dev` with its built-in broker, used through `listen` and `push`.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::playground::Playground;
use crate::support::{Running, edit, folder_with, run, run_with, wirepost};

fn push(url: &str, business: &str, message: &str) -> (i32, String, String) {
    run(&["push", business, message, "--url", url])
}

/// A push to alice with a number in it.
fn numbered(number: u32) -> String {
    format!(r#"{{"messageType":"payment.completed","toUniqueId":"alice","content":{{"n":{number}}}}}"#)
}

#[test]
fn all_three_kinds_of_message_flow() {
    let folder = folder_with("payments.yaml");
    let (mut dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    let token = dev.line("  token ");
    assert!(
        token.contains(&format!("{url}/payments/websocket/token?")) && token.contains("X-Api-Key: dev-payments"),
        "{token}"
    );
    dev.line("  queues ");

    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);
    let mut bob = Running::listen(&url, "payments", "bob", "h5", &["--plain"]);
    // Server to client.
    let (status, out, err) = push(&url, "payments", &numbered(1));
    assert!(status == 0 && out.starts_with("confirmed "), "{out}{err}");
    let frame: Value = serde_json::from_str(&alice.line(r#""n":1"#)).unwrap();
    assert_eq!(frame["toUniqueId"], "alice");
    assert!(frame["cursor"].is_string());
    // Client to client.
    alice.type_line(r#"{"id":"c1","messageType":"cart.share","toUniqueId":"bob","content":{"cartId":"c-7"}}"#);
    alice.line(r#"{"op":"ack","id":"c1"}"#);
    assert!(bob.line("c-7").contains(r#""fromUniqueId":"alice""#));
    // Client to server.
    bob.type_line(r#"{"messageType":"qr.refresh","content":{"qrId":"q-1"}}"#);
    let shown = dev.line("queue wirepost.payments.q.qr-refresh ← ");
    assert!(shown.contains(r#""qrId":"q-1""#) && shown.contains(r#""fromUniqueId":"bob""#), "{shown}");
    // What is not allowed is refused.
    alice.type_line(r#"{"id":"c2","messageType":"qr.refresh","content":{"qrId":"q-1"}}"#);
    alice.line(r#"{"op":"nack","id":"c2","code":"not_allowed""#);
}

/// Sets it when it is dropped.
struct Sets<'a>(&'a AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_gives_no_receipt_in_time_is_told_and_whoever_does_is_not() {
    let folder = folder_with("payments.yaml");
    edit(&folder.path().join("payments.yaml"), "receipts: true", "receipts: true\n      receiptsWithinSeconds: 5");
    let (dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    let mut page = Playground::of(&dev).notices();
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);
    page.until(&["event", "connected", "alice"]);
    let to = |id: &str, to: &str| {
        let message =
            format!(r#"{{"id":"{id}","messageType":"payment.completed","toUniqueId":"{to}","content":{{}}}}"#);
        let (status, out, err) = push(&url, "payments", &message);
        assert!(status == 0 && out.starts_with("confirmed "), "{out}{err}");
    };
    // The edge takes a few seconds to begin, and follows what is pushed from then on.
    let told = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                to(&format!("early-{n}"), "nobody");
                thread::sleep(Duration::from_secs(1));
            }
        });
        // Also if the event does not come.
        let _end = Sets(&told);
        page.until(&["undelivered", "early-", "nobody"]);
    });
    to("received", "alice");
    to("missing", "bob");
    alice.line(r#""id":"received""#);
    alice.type_line(r#"{"op":"received","ids":["received"]}"#);
    alice.line(r#"{"op":"receipt","ids":["received"]}"#);
    let notice = page.until(&["undelivered", "bob"]);
    assert!(notice.to_string().contains("missing"), "{notice}");
    to("last", "carol");
    let mut between = Vec::new();
    loop {
        let notice = page.until(&["undelivered"]).to_string();
        let last = notice.contains("carol");
        between.push(notice);
        if last {
            break;
        }
    }
    assert!(between.iter().all(|notice| !notice.contains("alice")), "{between:?}");
}

#[test]
fn with_tls_clients_connect_by_wss_and_the_certificate_is_kept() {
    let (folder, cache) = (folder_with("payments.yaml"), tempfile::tempdir().unwrap());
    let start = || Running::dev_tls(&[folder.path().to_str().unwrap()], cache.path());
    let certificate = cache.path().join("wirepost/dev-tls/localhost.crt");
    let trusting = |arguments: &[&str]| {
        let mut command = wirepost(arguments);
        command.env("SSL_CERT_FILE", &certificate);
        command
    };
    let (mut dev, url) = start();
    assert!(url.starts_with("https://"), "{url}");
    assert!(dev.line("certificate: ").contains(certificate.to_str().unwrap()));
    dev.line("  queues ");
    let who = ["listen", "--url", &url, "--business", "payments", "--id", "alice", "--client-type", "app"];
    let mut alice = Running::of(trusting(&who));
    // Which of the two comes first is up to the system: they are on two streams.
    alice.line(r#"{"op":"welcome""#);
    let pushed = trusting(&["push", "payments", &numbered(1), "--url", &url]).output().unwrap();
    assert!(pushed.status.success(), "{pushed:?}");
    alice.line(r#""n":1"#);
    // Who does not trust it is told so.
    let (status, _, err) = run(&["push", "payments", &numbered(2), "--url", &url]);
    assert!(status == 1 && err.to_lowercase().contains("certificate"), "{err}");
    let key = cache.path().join("wirepost/dev-tls/localhost.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read(&certificate).unwrap();
    drop(dev);
    let (_dev, _) = start();
    assert_eq!(fs::read(&certificate).unwrap(), before, "another certificate, which nobody trusts yet");
}

#[test]
fn every_page_of_a_foreign_origin_is_reported() {
    let folder = folder_with("payments.yaml");
    let (mut dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    let address = url.strip_prefix("http://").unwrap();
    dev.line("queues   "); // the business runs
    for origin in ["http://localhost:5173", "http://localhost:5174"] {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        let call = "GET /payments/websocket/token?uniqueId=alice&clientType=h5 HTTP/1.1";
        write!(socket, "{call}\r\nhost: {address}\r\norigin: {origin}\r\nconnection: close\r\n\r\n").unwrap();
        let reported = dev.line(origin);
        assert!(reported.contains("payments") && reported.contains("allowedOrigins"), "{reported}");
    }
}

#[test]
fn a_push_reports_the_result_of_each_message() {
    let folder = folder_with("payments.yaml");
    let (_dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    let (status, out, _) = push(&url, "payments", r#"{"messageType":"payment.completed","tags":[],"content":1}"#);
    assert!(status == 1 && out.starts_with("refused "), "{out}");
    let file = folder.path().join("batch.json");
    fs::write(&file, format!("[{},\n {}]", numbered(1), r#"{"messageType":"nobody.knows","toUniqueId":"alice"}"#))
        .unwrap();
    let (status, out, _) = push(&url, "payments", &format!("@{}", file.display()));
    assert_eq!(status, 1);
    assert!(out.starts_with("confirmed ") && out.lines().nth(1).unwrap().starts_with("refused "), "{out}");
    let (status, out, _) = run_with(&["push", "payments", "-", "--url", &url], &numbered(2));
    assert!(status == 0 && out.starts_with("confirmed "), "{out}");
    let (status, _, err) = run(&["push", "payments", &numbered(3), "--url", &url, "--api-key", "wrong"]);
    assert!(status == 1 && err.contains("API key"), "{err}");
    let (status, _, err) = run(&["push", "payments", "{messageType:x}", "--url", &url]);
    assert!(status == 1 && err.contains("not JSON"), "{err}");
    let (status, _, err) = run(&["push", "payments", &numbered(3), "--url", "http://127.0.0.1:9"]);
    assert!(status == 1 && err.contains("wirepost dev"), "{err}");
}

#[test]
fn a_cursor_continues_where_the_client_was() {
    let folder = folder_with("payments.yaml");
    let (_dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);
    assert_eq!(push(&url, "payments", &numbered(1)).0, 0);
    alice.line(r#""n":1"#);
    let cursor = alice.cursor();
    for number in [2, 3] {
        assert_eq!(push(&url, "payments", &numbered(number)).0, 0);
    }
    let mut again = Running::listen(&url, "payments", "alice", "app", &["--cursor", &cursor]);
    again.line(r#""n":2"#);
    again.line(r#""n":3"#);
    assert!(!again.lines().iter().any(|line| line.contains(r#""n":1"#) || line.contains(r#""op":"gap""#)));
}

#[test]
fn changed_files_are_applied() {
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    let (mut dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    dev.line("  listen ");
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);

    edit(&file, "ttlSeconds: 600", "ttlSeconds: a while");
    let problem = dev.line("payments.yaml:");
    let line = fs::read_to_string(&file).unwrap().lines().position(|l| l.contains("a while")).unwrap() + 1;
    assert!(problem.contains(&format!("payments.yaml:{line}: spec.routes[1].ttlSeconds: ")), "{problem}");
    dev.line("payments: keeps running with its last good configuration");
    assert_eq!(push(&url, "payments", &numbered(1)).0, 0);
    alice.line(r#""n":1"#);

    edit(&file, "ttlSeconds: a while", "ttlSeconds: 60");
    edit(&file, "messageType: payment.completed", "messageType: payment.*");
    dev.line("payments: changed");
    let refunded = numbered(2).replace("payment.completed", "payment.refunded");
    assert_eq!(push(&url, "payments", &refunded).0, 0);
    alice.line("payment.refunded");

    let other = folder.path().join("chat.yaml");
    let chat = fs::read_to_string(&file).unwrap().replace("name: payments", "name: chat");
    fs::write(&other, chat).unwrap();
    dev.line("chat  (");

    fs::remove_file(&file).unwrap();
    dev.line("payments: removed");
    alice.line("4010");
    assert_eq!(push(&url, "chat", &numbered(3)).0, 0, "the other business goes on");
}

#[test]
fn a_signal_drains_and_the_client_reconnects_to_another_edge() {
    let folder = folder_with("payments.yaml");
    let path = folder.path().to_str().unwrap();
    let (mut dev, url) = Running::dev(&[path]);
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);
    dev.signal("TERM");
    alice.line(r#"{"op":"drain""#);
    assert!(dev.end().success());
    // Another edge on the same port, with other keys: the resume token is refused, and the client gets a new token.
    let address = url.strip_prefix("http://").unwrap();
    let mut again = Running::start(&["dev", "--listen", address, "--admin", "127.0.0.1:0", path]);
    again.line("wirepost dev listens on");
    alice.line(r#"{"op":"welcome""#);
    assert_eq!(push(&url, "payments", &numbered(1)).0, 0);
    alice.line(r#""n":1"#);
}

#[test]
fn a_port_in_use_and_a_missing_path_are_errors_with_a_remedy() {
    let folder = folder_with("payments.yaml");
    let path = folder.path().to_str().unwrap();
    let (_dev, url) = Running::dev(&[path]);
    let (status, _, err) =
        run(&["dev", path, "--listen", url.strip_prefix("http://").unwrap(), "--admin", "127.0.0.1:0"]);
    assert!(status == 1 && err.contains("--listen"), "{err}");
    let (status, _, err) = run(&["dev", "/nowhere/at/all"]);
    assert!(status == 2 && err.contains("/nowhere/at/all"), "{err}");
}

#[test]
fn a_task_that_panics_ends_dev_with_its_name() {
    let folder = folder_with("payments.yaml");
    Running::dev_ends_by_panic("queue consumer", &[folder.path().to_str().unwrap()]);
}
