//! What a client sends, on its way through two edges: the first one stamps it, the second one adds the cursor. The client's content arrives
//! byte for byte, and none of its words stands where an edge's is expected.

use std::sync::{Arc, LazyLock};

use serde_json::json;
use wirepost_core::{Envelope, compile::compile_one};
use wirepost_edge::{
    broker::{Origin, Position, Record},
    business::Business,
    metrics::Metrics,
    push::{backlog::Backlog, entry::Entry},
    socket::receive::{Sender, prepare},
};

use super::envelope::Fields;

const NOW: i64 = 1_790_000_000_000;

static BUSINESS: LazyLock<Business> = LazyLock::new(|| {
    let declared = json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
        "metadata": {"name": "payments", "namespace": "shop"},
        "spec": {
            "clientTypes": ["app", "h5"],
            "routes": [
                {"messageType": "order.*", "sendType": "ClientToServer", "queue": {"name": "orders"}},
                {"messageType": "chat.#", "sendType": "ClientToClient", "from": ["app"], "to": ["app", "h5"], "audience": "Everyone"},
                {"messageType": "#", "sendType": "ServerToClient", "to": ["app", "h5"], "audience": "Everyone", "receipts": true},
            ],
        },
    });
    let compiled = compile_one(&serde_json::from_value(declared).expect("the form")).expect("the rules");
    Business::try_new(compiled.config).expect("what is compiled can be run")
});

pub(crate) fn run(input: &[u8]) {
    let sender = Sender { unique_id: "alice", client_type: "app" };
    if let Ok(envelope) = Envelope::parse(input) {
        let content = envelope.content.map(str::to_owned);
        if let Ok(prepared) = prepare(&BUSINESS, sender, envelope, NOW) {
            assert!(!prepared.publications.is_empty());
            for publication in prepared.publications {
                let stamped = Fields::of(&publication.body);
                for (name, ours) in [
                    ("fromUniqueId", "alice"),
                    ("fromClientType", "app"),
                    ("businessType", "payments"),
                    ("id", &prepared.id),
                ] {
                    assert_eq!(stamped.text(name).as_deref(), Some(ours), "{name}");
                }
                assert_eq!(stamped.text("cursor"), None);
                let passed = Envelope::parse(&publication.body).expect("what an edge writes, it can read");
                assert_eq!(passed.content, content.as_deref(), "byte for byte");
                delivered(&publication.body);
            }
        }
    }
    // A service may publish any bytes by itself.
    delivered(input);
}

/// As another edge reads it from the broker and gives it to clients.
fn delivered(body: &[u8]) {
    static BACKLOG: LazyLock<Arc<Backlog>> = LazyLock::new(|| Backlog::new(1 << 30, &Metrics::default()));
    let position = Position { offset: 7, fingerprint: 9 };
    let record =
        Record { position, timestamp: NOW, body: body.to_vec().into(), defect: None, origin: Origin::default() };
    let (entry, _) = Entry::read(&BUSINESS, &record, &BACKLOG);
    let Some(push) = entry.push else { return };
    assert!(!push.audience.client_types.is_empty());
    let frame = push.frame.as_bytes();
    let cursor = Fields::of(frame).text("cursor").expect("one");
    let cursor: wirepost_core::Cursor = cursor.parse().expect("ours");
    assert_eq!((cursor.offset, cursor.fingerprint, cursor.business.as_str()), (7, 9, "payments"));
    let (sent, got) = (Envelope::parse(body).expect("read before"), Envelope::parse(frame).expect("ours"));
    assert_eq!(sent.content, got.content, "byte for byte");
    assert_eq!((&sent.from_unique_id, &sent.from_client_type), (&got.from_unique_id, &got.from_client_type));
    assert!(got.id.is_some() && got.op.is_none() && got.has_audience());
}
