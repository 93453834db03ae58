//! `wirepost listen` reconnects after every temporary failure, and shows no token, whatever answers.

#![allow(clippy::unwrap_used)] // it is all test

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use crate::support::{Running, folder_with, run, wirepost};

const TOKEN: &str = "/payments/websocket/token";
/// Without the ticket, which is offered as a subprotocol.
const SOCKET: &str = "/socket/";
/// Long enough for the first slow wait.
const SLOWLY: Duration = Duration::from_mins(1);

/// Answers each request with the result of `script` for its number and path; returns the requested paths.
fn server(script: impl Fn(usize, &str, SocketAddr) -> String + Send + 'static) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, paths) = channel();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream: TcpStream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(request) = lines.next() else { continue };
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let _ = stream.write_all(script(number, &path, address).as_bytes());
            if asked.send(path).is_err() {
                return;
            }
        }
    });
    (address, paths)
}

fn answer(status: &str, more: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n{more}content-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn temporary_refusals_are_retried_and_no_token_is_shown() {
    let (address, paths) = server(|number, path, address| match number {
        0 => answer("429 Too Many Requests", "retry-after: 1\r\n", "<html>slow down</html>"),
        1 => answer("408 Request Timeout", "", r#"{"result":40801,"description":"too slow"}"#),
        2 | 5 => answer(
            "200 OK",
            "",
            &format!(r#"{{"result":0,"description":"ok","data":"ws://{address}/socket/the-ticket"}}"#),
        ),
        // Like a proxy: the page repeats the requested path.
        3 => answer("408 Request Timeout", "", &format!("<html>{}{path}</html>", "-".repeat(170))),
        4 => answer("503 Service Unavailable", "", r#"{"result":50304,"description":"not yet"}"#),
        _ => answer("429 Too Many Requests", "", &format!("{path} is asked for too often")),
    });
    let url = format!("http://{address}");
    let who = ["listen", "--url", &url, "--business", "payments", "--id", "alice", "--client-type", "app"];
    let mut listen = Running::start(&who);
    for expected in [TOKEN, TOKEN, TOKEN, SOCKET, TOKEN, TOKEN, SOCKET, TOKEN] {
        let path = paths.recv_timeout(SLOWLY).unwrap_or_else(|_| panic!("it gave up: {:?}", listen.lines()));
        assert!(path.contains(expected), "{path} instead of {expected}: {:?}", listen.lines());
        assert!(!path.contains("the-ticket"), "{path}");
    }
    listen.line("HTTP 429");
    listen.signal("INT");
    assert!(listen.end().success());
    for line in listen.lines() {
        assert!(!line.contains("ticket"), "{line}");
    }
}

#[test]
fn a_typing_error_is_reported_and_ends_listen() {
    let folder = folder_with("payments.yaml");
    let (_dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    for (business, client_type, more) in
        [("paymets", "app", None), ("payments", "tv", None), ("payments", "app", Some("wrong"))]
    {
        let mut line = vec!["listen", "--url", &url, "--business", business, "--id", "a", "--client-type", client_type];
        line.extend(more.iter().flat_map(|key| ["--api-key", key]));
        let (status, _, err) = run(&line);
        assert!(status == 1 && err.contains("no token"), "{err}");
    }
}

#[test]
fn clients_return_to_a_business_that_was_removed_by_mistake() {
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let (mut dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);
    fs::remove_file(&file).unwrap();
    dev.line("payments: removed");
    alice.line("4010");
    fs::write(&file, text).unwrap();
    alice.line_within(r#"{"op":"welcome""#, SLOWLY);
    let push = r#"{"messageType":"payment.completed","toUniqueId":"alice","content":{"n":1}}"#;
    assert_eq!(run(&["push", "payments", push, "--url", &url]).0, 0);
    alice.line(r#""n":1"#);
}

#[test]
fn a_revoked_client_is_out_and_whoever_may_log_in_comes_back() {
    let folder = folder_with("payments.yaml");
    let (_dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    let mut alice = Running::listen(&url, "payments", "alice", "app", &[]);
    let (status, out, err) = run(&["revoke", "payments", "--unique-id", "alice", "--url", &url]);
    assert!(status == 0 && out.starts_with("revoked: "), "{out}{err}");
    alice.line("3003");
    let (status, _, err) = run(&["revoke", "payments", "--url", &url]);
    assert!(status != 0 && err.contains("--unique-id"), "{err}");
    alice.line_within(r#"{"op":"welcome""#, SLOWLY);
}

#[test]
fn neither_frames_nor_logs_show_the_resume_token() {
    let folder = folder_with("payments.yaml");
    let (_dev, url) = Running::dev(&[folder.path().to_str().unwrap()]);
    let mut child =
        wirepost(&["listen", "--url", &url, "--business=payments", "--id=alice", "--client-type=app", "--once=true"])
            .env("WIREPOST_LOG", "trace")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let mut welcome = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut welcome).unwrap();
    assert!(welcome.contains(r#""op":"welcome""#) && welcome.contains(r#""resumeToken":"…""#), "{welcome}");
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!log.contains("resumeToken") && !log.contains("Received message"), "{log}");
}
