//! `wirepost diff --cluster`: what `kubectl apply` would change in a real API server.

use std::fs;

use wirepost_testing::{cluster::Cluster, kubectl::Kubectl};

use crate::support::{edit, folder_with, run, run_with, wirepost};

#[tokio::test(flavor = "multi_thread")]
async fn what_an_apply_would_change_is_printed_and_what_destroys_messages_is_marked() {
    let cluster = Cluster::connect().await.unwrap();
    let namespace = cluster.namespace("diff").await.unwrap();
    let kubectl = Kubectl::new(&cluster).unwrap();
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    edit(&file, "namespace: shop", &format!("namespace: {}", namespace.name));
    let path = file.to_str().unwrap().to_owned();
    let diff = |more: &[&str]| {
        let mut command = wirepost(&["diff", &path, "--cluster", "--kubectl", kubectl.program().to_str().unwrap()]);
        let output = command.args(more).env("KUBECONFIG", &cluster.kubeconfig).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let title = format!("payments ({}/payments)", namespace.name);

    let (status, out, err) = diff(&[]);
    assert_eq!((status, err.as_str()), (Some(1), ""));
    assert!(out.starts_with(&format!("{title}:\n  + route ClientToServer qr.refresh\n")), "{out}");
    assert!(out.contains("\n  + stream wirepost.payments.stream\n"), "{out}");

    let applied = kubectl.run(["apply", "--filename", &path]).await.unwrap();
    assert_eq!(applied.status, 0, "{applied:?}");
    assert_eq!(diff(&[]), (Some(0), format!("{title}: as in the cluster\n"), String::new()));

    let text = fs::read_to_string(&file).unwrap();
    edit(&file, "queue: {name: qr-refresh}", "queue: {name: renewals}");
    let (status, out, _) = diff(&[]);
    let lines = [
        "~ route ClientToServer qr.refresh: queue qr-refresh → renewals",
        "- queue wirepost.payments.q.qr-refresh: not filled any more, and deleted once it is empty",
    ];
    assert!(status == Some(1) && lines.iter().all(|line| out.contains(line)), "{out}");
    assert_eq!(diff(&["--fail-on", "destructive"]).0, Some(0), "it destroys nothing");

    fs::write(&file, &text).unwrap();
    edit(&file, "delivery: Durable\n    retention: {seconds: 86400, bytes: 1Gi}", "delivery: Transient");
    let (status, out, err) = diff(&["--fail-on", "destructive"]);
    assert!(out.contains("! destroys messages: stream wirepost.payments.stream is deleted"), "{out}");
    assert!(status == Some(1) && err.contains("waits until somebody allows it"), "{err}");

    // Without a cluster, from what kubectl wrote.
    let get = ["get", "wsb", "--namespace", &namespace.name, "--output", "yaml"];
    let stored = kubectl.run(get).await.unwrap().stdout;
    let (status, from_stdin, _) = run_with(&["diff", &path, "--from", "-"], &stored);
    assert_eq!((status, &from_stdin), (1, &out));
    let saved = kubectl.file("stored.yaml", &stored).unwrap();
    assert_eq!(run(&["diff", &path, "--from", saved.to_str().unwrap()]).1, out);

    edit(&file, "spec:\n", "spec:\n  businessType: other\n");
    let (status, _, err) = diff(&[]);
    assert!(status == Some(2) && err.contains("businessType"), "{err}");
}

/// The operator is not there; its status is written as it writes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_class_shows_which_businesses_it_cuts_before_and_after_it_is_applied() {
    let cluster = Cluster::connect().await.unwrap();
    let namespace = cluster.namespace("classdiff").await.unwrap();
    let (kubectl, class) = (Kubectl::new(&cluster).unwrap(), namespace.name.clone());
    let folder = folder_with("payments.yaml");
    let file = folder.path().join("payments.yaml");
    edit(&file, "namespace: shop", &format!("namespace: {class}"));
    edit(&file, "spec:\n", &format!("spec:\n  className: {class}\n"));
    edit(&file, "delivery: Durable\n    retention: {seconds: 86400, bytes: 1Gi}", "delivery: Durable");
    let class_file = |seconds: u32| {
        let spec = format!("spec: {{limits: {{retention: {{seconds: {seconds}}}}}}}");
        let text =
            format!("apiVersion: wirepost.dev/v1alpha1\nkind: WsBusinessClass\nmetadata: {{name: {class}}}\n{spec}\n");
        kubectl.file(&format!("class-{seconds}.yaml"), text).unwrap().to_str().unwrap().to_owned()
    };
    let (path, smaller) = (file.to_str().unwrap().to_owned(), class_file(3600));
    let apply = async |path: &str| {
        let applied = kubectl.run(["apply", "--filename", path]).await.unwrap();
        assert_eq!(applied.status, 0, "{applied:?}");
    };
    let diff = |path: &str, more: &[&str]| {
        let mut command = wirepost(&["diff", path, "--cluster", "--kubectl", kubectl.program().to_str().unwrap()]);
        let output = command.args(more).env("KUBECONFIG", &cluster.kubeconfig).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    apply(&class_file(7200)).await;
    apply(&path).await;
    let status = format!(
        r#"{{"status": {{"className": "{class}", "terms": {{"defaults": {{"retention": {{"seconds": 7200}}}}}},
            "retention": {{"seconds": 7200, "bytes": "1Gi"}}}}}}"#
    );
    let reported =
        ["patch", "wsb", "payments", "-n", &class, "--subresource", "status", "--type", "merge", "-p", &status];
    assert_eq!(kubectl.run(reported).await.unwrap().status, 0);

    let cut = "destroys messages: wirepost.payments.stream drops messages that it keeps now: max-age 7200s → 3600s";
    let (status, out, err) = diff(&smaller, &["--fail-on", "destructive"]);
    assert!(out.starts_with(&format!("class {class}:\n  ~ limits.retention.seconds 7200 → 3600\n")), "{out}");
    assert!(out.contains(&format!("\n  ! {class}/payments, with its next change: {cut}\n")), "{out}");
    assert!(status == Some(1) && err.contains("changes nothing that runs"), "{err}");

    apply(&smaller).await;
    assert_eq!(diff(&smaller, &[]).0, Some(0));
    let (status, out, err) = diff(&path, &[]);
    assert_eq!((status, out), (Some(0), format!("payments ({class}/payments): as in the cluster\n")));
    assert!(err.contains("with the next change of this declaration") && err.contains("7200s → 3600s"), "{err}");
    edit(&file, "queue: {name: qr-refresh}", "queue: {name: renewals}");
    let (status, out, err) = diff(&path, &["--fail-on", "destructive"]);
    assert!(status == Some(1) && out.contains(&format!("  ! {cut}\n")), "{out}{err}");

    // From a file, with the classes in it.
    let get = ["get", "wsb,wsbc", "--all-namespaces", "--output", "json"];
    let stored = kubectl.run(get).await.unwrap().stdout;
    let (status, out, err) = run_with(&["diff", &class_file(60), "--from", "-"], &stored);
    assert!(status == 1 && out.contains("max-age 7200s → 60s"), "{out}{err}");
    kubectl.run(["delete", "wsbc", &class]).await.unwrap();
}

#[test]
fn what_cannot_be_compared_gives_status_2_and_says_what_to_do() {
    let folder = folder_with("payments.yaml");
    let path = folder.path().to_str().unwrap().to_owned();
    let (status, _, err) = run(&["diff", &path]);
    assert!(status == 2 && err.contains("--cluster, --from FILE or --management URL"), "{err}");
    let (status, _, err) = run(&["diff", &path, "--cluster", "--kubectl", "/nowhere/kubectl"]);
    assert!(status == 2 && err.contains("install kubectl") && err.contains("--from"), "{err}");
    // It says so itself, too.
    let (status, _, err) = run(&["diff", &path, "--cluster", "--kubectl", "false"]);
    assert!(status == 2 && err.contains("false get wsbusinesses.wirepost.dev failed"), "{err}");
}
