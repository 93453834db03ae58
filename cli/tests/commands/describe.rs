//! `wirepost describe`: the same document as an edge's, in each form.

use serde_json::Value;

use crate::support::{edit, folder_with, run};

const PAYMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/payments.yaml");
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

#[test]
fn a_declaration_is_described_without_an_edge() {
    let (status, out, err) = run(&["describe", PAYMENTS, "--url", "https://shop.example/ws"]);
    assert_eq!((status, err.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["channels"]["push"]["bindings"]["amqp"]["exchange"]["name"], "wirepost.payments.push");
    assert_eq!(document["servers"]["edge"]["host"], "shop.example");
    assert_eq!(document["servers"]["edge"]["pathname"], "/ws");
    let (status, out, _) = run(&["describe", PAYMENTS, "--for", "clients"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, document["channels"].get("push")), (0, None));
    let (status, out, _) = run(&["describe", PAYMENTS, "--format", "markdown"]);
    assert!(status == 0 && out.starts_with("# payments\n") && out.contains("fanout exchange `wirepost.payments.push`"));
}

#[test]
fn a_time_for_receipts_is_described_with_its_event() {
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    let path = file.to_str().unwrap();
    let described = |form: &str| run(&["describe", path, "--format", form]).1;
    assert!(!described("json").contains("undelivered"), "nobody waits for receipts");
    edit(&file, "receipts: true", "receipts: true\n      receiptsWithinSeconds: 60");
    let (json, text) = (described("json"), described("markdown"));
    let document: Value = serde_json::from_str(&json).unwrap();
    assert!(document.to_string().contains(r#""withinSeconds":60"#), "the event's example: {json}");
    assert!(text.contains("undelivered") && text.contains("answer with received within 60 s"), "{text}");
    let (status, clients, _) = run(&["describe", path, "--for", "clients"]);
    assert!(status == 0 && !clients.contains("undelivered"), "clients get no events");
    assert!(clients.contains("answer with received within 60 s"), "{clients}");
}

#[test]
fn one_business_is_described_and_only_a_valid_one() {
    let (status, _, err) = run(&["describe", EXAMPLES]);
    assert!(
        status == 1 && err.contains("charging-port, chat, payments, qr-login; choose one with --business"),
        "{err}"
    );
    let (status, out, _) = run(&["describe", EXAMPLES, "--business", "qr-login"]);
    assert!(status == 0 && out.contains("wirepost.qr-login.q.scans"));
    let (status, _, err) = run(&["describe", EXAMPLES, "--business", "other"]);
    assert!(status == 1 && err.contains("no business other"), "{err}");
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    edit(&file, "to: [pos]", "to: [till]");
    let (status, out, err) = run(&["describe", file.to_str().unwrap()]);
    assert!((status, out.as_str()) == (1, "") && err.contains("till is not among clientTypes"), "{err}");
}
