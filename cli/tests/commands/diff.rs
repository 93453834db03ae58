//! `wirepost diff`: what would change on a real broker.

use wirepost_testing::broker::Vhost;

use crate::support::{Running, edit, folder_with, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_difference_is_printed_and_nothing_is_changed() {
    let vhost = Vhost::create().await.unwrap();
    let folder = folder_with("payments.yaml");
    let (path, file) = (folder.path().to_str().unwrap().to_owned(), folder.path().join("payments.yaml"));
    let management = vhost.broker.management.clone();
    let diff = || run(&["diff", &path, "--management", &management, "--vhost", &vhost.name]);

    let (status, out, err) = diff();
    assert_eq!((status, err.as_str()), (1, ""));
    assert!(out.contains("  + create exchange wirepost.payments.push"), "{out}");
    assert!(out.contains("+ set policy wirepost.queues: ") && out.contains("delivery-limit 20"), "{out}");
    assert_eq!(diff().1, out, "it was only looked at");

    let stream = vhost.broker.stream.clone();
    let (mut dev, _) =
        Running::dev(&[&path, "--amqp", &vhost.amqp(), "--stream", &stream, "--management", &management]);
    dev.line("broker: payments: topology applied");
    dev.signal("TERM");
    dev.end();
    let (status, out, _) = diff();
    assert_eq!((status, out.as_str()), (0, "payments: as declared\n"));

    edit(&file, "queue: {name: qr-refresh}", "queue: {name: qr-refresh, deliveryLimit: 3}");
    let (status, out, _) = diff();
    assert_eq!(status, 1);
    assert!(
        out.contains("+ set policy wirepost.payments.q.qr-refresh: ") && out.contains("delivery-limit 3,"),
        "{out}"
    );

    edit(&file, "queue: {name: qr-refresh, deliveryLimit: 3}", "queue: {name: renewals}");
    let (_, out, _) = diff();
    assert!(out.contains("+ bind queue wirepost.payments.q.renewals"), "{out}");
    assert!(out.contains("- delete queue wirepost.payments.q.qr-refresh, once it is empty"), "{out}");
}

#[test]
fn a_rejected_declaration_and_an_unavailable_broker_give_status_2() {
    let folder = folder_with("payments.yaml");
    let path = folder.path().to_str().unwrap().to_owned();
    // Nothing listens on the discard port.
    let away = ["diff", &path, "--management", "http://guest:secret@127.0.0.1:9"];
    let (status, _, err) = run(&away);
    assert_eq!(status, 2);
    assert!(err.contains("not reachable") && !err.contains("secret"), "{err}");
    edit(&folder.path().join("payments.yaml"), "queue: {name: qr-refresh}", "queue: {name: QR}");
    let (status, _, err) = run(&away);
    assert_eq!(status, 2);
    assert!(err.contains("not a queue name"), "{err}");
}
