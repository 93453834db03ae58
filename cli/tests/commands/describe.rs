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
