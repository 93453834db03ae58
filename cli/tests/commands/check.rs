//! `wirepost check`: results and exit status.

use std::fs;

use serde_json::Value;

use crate::support::{edit, folder_with, run};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

#[test]
fn the_examples_are_valid() {
    let (status, out, err) = run(&["check", EXAMPLES]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(out.contains("valid: charging-port, chat, payments, qr-login"), "{out}");
}

#[test]
fn a_time_for_receipts_needs_receipts_and_what_keeps_the_pushes() {
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    let check = || run(&["check", file.to_str().unwrap()]);
    edit(&file, "receipts: true", "receipts: true\n      receiptsWithinSeconds: 60");
    let (status, out, err) = check();
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    edit(&file, "      receipts: true\n", "");
    let (status, out, _) = check();
    assert!(status == 1 && out.contains("receiptsWithinSeconds: ") && out.contains("asks for none"), "{out}");
    edit(&file, "      receiptsWithinSeconds: 60\n", "      receipts: true\n      receiptsWithinSeconds: 60\n");
    edit(&file, "    delivery: Durable\n    retention: {seconds: 86400, bytes: 1Gi}\n", "    delivery: Transient\n");
    let (status, out, _) = check();
    assert!(status == 1 && out.contains("Transient"), "{out}");
}

#[test]
fn every_problem_has_its_line_and_a_remedy_and_the_status_is_1() {
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    edit(&file, "to: [pos]", "to: [till]");
    edit(&file, "      queue: {name: qr-refresh}\n", "");
    let (status, out, _) = run(&["check", file.to_str().unwrap()]);
    assert_eq!(status, 1);
    let lines: Vec<&str> = out.lines().collect();
    let line_of = |text: &str| fs::read_to_string(&file).unwrap().lines().position(|l| l.contains(text)).unwrap() + 1;
    assert!(
        lines.iter().any(|l| l.starts_with(&format!(
            "{}:{}: spec.routes[0].queue: ",
            file.display(),
            line_of("messageType: qr.refresh")
        ))),
        "{out}"
    );
    assert!(
        lines.iter().any(|l| {
            l.starts_with(&format!("{}:{}: spec.routes[2].to: till is not", file.display(), line_of("to: [till]")))
        }),
        "{out}"
    );
    assert!(lines.last().unwrap().ends_with("1 file: 2 problems"), "{out}");
}

#[test]
fn the_json_output_is_machine_readable() {
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    edit(&file, "audience: Everyone", "audience: All");
    let (status, out, _) = run(&["check", "--output", "json", EXAMPLES, file.to_str().unwrap()]);
    assert_eq!(status, 1);
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(result["files"], 5);
    assert_eq!(result["businesses"], serde_json::json!(["charging-port", "chat", "payments", "qr-login"]));
    let problem = &result["problems"][0];
    assert_eq!((&problem["field"], &problem["reason"]), (&"spec.routes[2].audience".into(), &"InvalidRoute".into()));
    assert!(problem["line"].as_u64().unwrap() > 1 && problem["remedy"].as_str().unwrap().contains("Everyone"), "{out}");
}

#[test]
fn unreadable_input_gives_status_2() {
    let empty = tempfile::tempdir().unwrap();
    let missing = empty.path().join("missing.yaml");
    for arguments in
        [vec!["check", missing.to_str().unwrap()], vec!["check", empty.path().to_str().unwrap()], vec!["check"]]
    {
        let (status, out, err) = run(&arguments);
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}");
        assert!(!err.is_empty(), "{arguments:?}");
    }
    assert!(run(&["check", missing.to_str().unwrap()]).2.contains("missing.yaml"));
}

#[test]
fn files_of_other_programs_are_read_like_kubectl_reads_them() {
    let folder = folder_with("payments.yaml");
    let text = fs::read_to_string(folder.path().join("payments.yaml")).unwrap();
    let utf16: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(folder.path().join("payments.yaml"), utf16).unwrap();
    let login =
        fs::read_to_string(format!("{EXAMPLES}/qr-login.yaml")).unwrap().replace("ttlSeconds: 120", "ttlSeconds: 1_20");
    fs::write(folder.path().join("login.yaml"), format!("\u{feff}{login}").replace('\n', "\r\n")).unwrap();
    let charging = fs::read_to_string(format!("{EXAMPLES}/charging-port.yaml")).unwrap();
    let list: String = charging.lines().flat_map(|line| ["    ", line, "\n"]).collect();
    fs::write(folder.path().join("list.yml"), format!("apiVersion: v1\nkind: List\nitems:\n  -\n{list}")).unwrap();
    let (status, out, err) = run(&["check", folder.path().to_str().unwrap()]);
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("valid: charging-port, payments, qr-login"), "{out}");
    assert!(out.starts_with("note: ") && out.contains("the cluster reads 1_20 as 120"), "{out}");
}

const CLASSES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/platform");

#[test]
fn what_a_class_forbids_is_a_problem_with_its_rule_and_line() {
    let (status, out, err) = run(&["check", "--class", CLASSES, EXAMPLES]);
    assert_eq!((status, err.as_str()), (0, ""), "{out}");

    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    edit(&file, "bytes: 1Gi", "bytes: 3Gi");
    let path = file.to_str().unwrap();
    assert_eq!(run(&["check", path]).0, 0, "no class forbids it");
    let (status, out, _) = run(&["check", "--class", CLASSES, path]);
    let line = fs::read_to_string(&file).unwrap().lines().position(|line| line.contains("3Gi")).unwrap() + 1;
    let found = format!(
        "{path}:{line}: spec.push.retention.bytes: 3Gi is more than class standard allows (limits.retention.bytes: 2Gi)"
    );
    assert!(status == 1 && out.contains(&found), "{out}");

    edit(&file, "  clientTypes:", "  className: huge\n  clientTypes:");
    let (status, out, _) = run(&["check", "--class", CLASSES, path]);
    assert!(status == 1 && out.contains("spec.className: there is no class huge"), "{out}");
    // The classes themselves are checked, too.
    assert_eq!(run(&["check", CLASSES]).0, 0);
}
