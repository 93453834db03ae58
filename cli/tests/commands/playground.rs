//! The playground of `wirepost dev`: who may call it, and what it answers.

#![allow(clippy::unwrap_used)] // it is all test

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Instant,
};

use serde_json::Value;

use crate::support::{PATIENCE, Running, folder_with};

/// The playground of a running `dev`.
pub(crate) struct Playground {
    address: String,
}

impl Playground {
    pub(crate) fn of(dev: &Running) -> Self {
        let lines = dev.lines();
        let line = lines.iter().find_map(|line| line.strip_prefix("wirepost dev listens on ")).unwrap();
        let (_, admin) = line.split_once("(admin: http://").unwrap();
        Self { address: admin.trim_end_matches(')').to_owned() }
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let host = ("host", self.address.as_str());
        let host = headers.iter().all(|(name, _)| *name != "host").then_some(&host);
        let headers: Vec<String> =
            headers.iter().chain(host).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let (headers, length) = (headers.concat(), body.len());
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
        .unwrap();
        socket
    }

    /// The status and the whole answer.
    fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let mut answer = String::new();
        self.send(method, path, headers, body).read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    /// Opens a page's stream of notices.
    pub(crate) fn notices(&self) -> Notices {
        let mut lines = BufReader::new(self.send("GET", "/playground/api/notices", &[], ""));
        let mut status = String::new();
        lines.read_line(&mut status).unwrap();
        Notices { status: status.split(' ').nth(1).unwrap().parse().unwrap(), lines }
    }
}

/// An open page's notices.
pub(crate) struct Notices {
    status: u16,
    lines: BufReader<TcpStream>,
}

impl Notices {
    /// Waits for a notice in which all of these occur.
    pub(crate) fn until(&mut self, parts: &[&str]) -> Value {
        let end = Instant::now() + PATIENCE;
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            assert!(!line.is_empty() && Instant::now() < end, "no notice with {parts:?}; came:\n{seen}");
            if let Some(data) = line.strip_prefix("data: ")
                && parts.iter().all(|part| data.contains(part))
            {
                return serde_json::from_str(data).unwrap();
            }
            seen += &line;
        }
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");
const PUSH: &str = "/playground/api/push?business=payments";
const MESSAGE: &str = r#"{"messageType":"payment.completed","toUniqueId":"alice","content":{"n":1}}"#;

#[test]
fn no_foreign_page_uses_the_playground() {
    let folder = folder_with("payments.yaml");
    let (mut dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    dev.line("playground: http://127.0.0.1:");
    dev.line("  queues ");
    let playground = Playground::of(&dev);
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);

    let own = format!("http://{}", playground.address);
    let (status, page) = playground.call("GET", "/playground", &[("sec-fetch-site", "none")], "");
    assert_eq!(status, 200);
    let socket = url.replacen("http", "ws", 1);
    for part in [
        "default-src 'none'; script-src 'self'; style-src 'self'",
        &format!("connect-src 'self' {socket};"),
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "cross-origin-resource-policy: same-origin",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    assert!(!page.to_ascii_lowercase().contains("access-control-allow"), "{page}");

    // A page of a stranger, by its name that points to this machine, and from its own address.
    let rebound = [("host", "evil.example:9090"), ("origin", "http://evil.example:9090"), JSON];
    let foreign = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site"), JSON];
    let neighbour = [("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site"), JSON];
    let image = [("sec-fetch-site", "cross-site"), JSON];
    for headers in [&rebound[..], &foreign, &neighbour, &image] {
        for (method, path, body) in [
            ("POST", PUSH, MESSAGE),
            ("POST", "/playground/api/token?business=payments&uniqueId=eve&clientType=app", ""),
            ("GET", "/playground/api/state", ""),
            ("GET", "/playground/api/notices", ""),
        ] {
            let (status, answer) = playground.call(method, path, headers, body);
            assert!(status == 403 && !answer.contains("dev-payments"), "{method} {path} {headers:?}: {answer}");
        }
    }
    let (status, _) = playground.call("OPTIONS", PUSH, &[("origin", "https://evil.example")], "");
    assert_eq!(status, 403);

    // Nor does it use the edge, whose keys it can guess.
    let edge = Playground { address: url.strip_prefix("http://").unwrap().to_owned() };
    let key = ("x-api-key", "dev-payments");
    for (host, origin, expected) in [
        ("evil.example:8080", "http://evil.example:8080", 403),
        ("10.0.2.2:8080", "http://10.0.2.2:8080", 200),
        ("localhost:8080", "http://localhost:8080", 200),
    ] {
        let path = "/payments/websocket/token?uniqueId=eve&clientType=app";
        let (status, answer) = edge.call("GET", path, &[("host", host), ("origin", origin), key], "");
        assert_eq!(status, expected, "{host}: {answer}");
    }

    // The page itself. Only its push arrives.
    let (status, answer) = playground.call("POST", PUSH, &[("origin", &own), JSON], &MESSAGE.replace(":1", ":2"));
    assert!(status == 200 && answer.contains(r#""result":0"#), "{answer}");
    alice.line(r#""n":2"#);
    assert!(!alice.lines().iter().any(|line| line.contains(r#""n":1"#)));
    let (_, answer) =
        playground.call("POST", "/playground/api/token?business=payments&uniqueId=eve&clientType=app", &[JSON], "");
    assert!(answer.contains(&format!(r#""data":"{socket}/socket/"#)), "{answer}");
    let origin = |origin| {
        let path = format!("/playground/api/origin?business=payments&origin={origin}");
        playground.call("POST", &path, &[JSON], "").1
    };
    assert!(origin("https://shop.example").contains(r#""result":0"#));
    assert!(origin("https://evil.example").contains("40301"));
    assert!(origin(&own).contains(r#""result":0"#), "its sockets are let in");
}

#[test]
fn what_happens_is_told_to_few_pages_and_a_connection_is_drained() {
    let folder = folder_with("payments.yaml");
    let (mut dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    dev.line("  queues ");
    let playground = Playground::of(&dev);
    let mut pages: Vec<Notices> = (0..8).map(|_| playground.notices()).collect();
    assert_eq!(playground.notices().status, 503);
    let page = &mut pages[0];
    let mut bob = Running::listen(&url, "payments", "bob", "h5", &[]);
    let connected = page.until(&["event", "connected", "bob"]);
    bob.type_line(r#"{"messageType":"qr.refresh","content":{"qrId":"q-1"}}"#);
    assert_eq!(page.until(&["message", "wirepost.payments.q.qr-refresh", "q-1"])["held"], false);

    let post = |path: &str| playground.call("POST", &format!("/playground/api/{path}"), &[JSON], "").0;
    assert_eq!(post("deciding?on=true"), 200);
    bob.type_line(r#"{"messageType":"qr.refresh","content":{"qrId":"q-2"}}"#);
    for (verdict, again) in [("requeue", false), ("reject", true)] {
        let held = page.until(&["message", "q-2"]);
        assert_eq!((&held["held"], &held["redelivered"]), (&true.into(), &again.into()));
        assert_eq!(post(&format!("verdict?message={}&verdict={verdict}", held["number"])), 200);
    }
    page.until(&["deadLetter", "q-2"]);
    dev.line("dead letter wirepost.payments.dead ← ");

    let event: Value = serde_json::from_str(connected["body"]["text"].as_str().unwrap()).unwrap();
    let connection = event["connectionId"].as_str().unwrap();
    assert_eq!(post(&format!("drain?business=payments&connection={connection}")), 200);
    bob.line(r#"{"op":"drain""#);
    bob.line(r#"{"op":"welcome""#);
    assert_eq!(post(&format!("drain?business=payments&connection={connection}")), 404);
}

#[test]
fn where_other_machines_get_there_is_no_playground() {
    let folder = folder_with("payments.yaml");
    let mut dev =
        Running::start(&["dev", "--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0", folder.path().to_str().unwrap()]);
    dev.line("  queues ");
    assert!(!dev.lines().iter().any(|line| line.contains("playground:")));
    let mut playground = Playground::of(&dev);
    playground.address = playground.address.replace("0.0.0.0", "127.0.0.1");
    let (status, answer) = playground.call("GET", "/playground", &[], "");
    assert!(status == 403 && answer.contains("--admin 127.0.0.1:9090"), "{answer}");
    assert_eq!(playground.call("POST", PUSH, &[JSON], MESSAGE).0, 404);
}
