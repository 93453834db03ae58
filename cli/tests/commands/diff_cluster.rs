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
