//! What a push costs inside the edge: read, encoded once, handed to the connections that it addresses, with 10,000
//! registered.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};
use futures_util::FutureExt;
use wirepost_core::edge_config::{
    Audience, AuthConfig, BusinessConfig, Delivery, FORMAT, Limits, Retention, RouteConfig, Validate,
};
use wirepost_edge::{
    broker::{Origin, Position, Record, memory::MemoryBroker},
    business::Business,
    compression::{self, Compression},
    config::settings::Settings,
    metrics::Metrics,
    push::{
        context::HubContext,
        entry::Entry,
        hub::Hub,
        mailbox::{
            Mailbox,
            outbound::{Bounds, Outbound},
        },
    },
};

const CONNECTIONS: u64 = 10_000;

fn main() {
    divan::main();
}

fn config() -> BusinessConfig {
    BusinessConfig {
        format: FORMAT,
        requires: vec![],
        business_type: "bench".into(),
        owner: "bench/bench".into(),
        generation: 1,
        client_types: vec!["app".into()],
        routes: vec![RouteConfig {
            queue: None,
            message_type: "n".into(),
            send_type: wirepost_core::SendType::ServerToClient,
            from: vec![],
            to: vec!["app".into()],
            ttl_seconds: None,
            audience: Audience::Everyone,
            receipts: false,
            receipts_within_seconds: None,
            validate: Validate::default(),
            schema: None,
        }],
        delivery: Delivery::Durable,
        retention: Retention { seconds: 86_400, bytes: 1 << 30 },
        auth: AuthConfig::default(),
        limits: Limits::default(),
        session_max_seconds: 86_400,
        accepts: vec![],
        accepted_by: vec![],
    }
}

struct Fixture {
    hub: Hub,
    business: Arc<Business>,
    _connections: Vec<Arc<Mailbox>>,
}

/// A hub whose queues are so large that none overflows; a bench takes nothing out of them, so its entries are small in
/// number.
fn fixture(compression: Compression) -> Fixture {
    let metrics = Arc::new(Metrics::default());
    #[expect(clippy::expect_used)]
    let business = Arc::new(Business::try_new(config()).expect("the configuration above is good"));
    let settings = Settings { log_bytes: 1 << 20, backlog_bytes: 1 << 40, ..Settings::default() };
    let context = HubContext::new(Arc::new(MemoryBroker::new()), Arc::clone(&metrics), settings);
    let hub = Hub::new(Arc::clone(&business), Arc::new(context));
    hub.attach(Some(Position { offset: 0, fingerprint: 0 }));
    let connections = (1..=CONNECTIONS)
        .map(|number| {
            let (unique_id, tags) = (format!("user-{number}"), [format!("group-{}", number % 100)]);
            let bounds = Bounds { messages: 1 << 30, bytes: 1 << 40 };
            let outbound = Outbound::new(bounds, metrics.outbound_bytes.clone(), Arc::clone(&hub.backlog));
            let mut mailbox = Mailbox::new(number, &unique_id, "app", true, outbound);
            mailbox.compression = compression;
            let mailbox = Arc::new(mailbox);
            hub.enter(&mailbox, &tags);
            assert!(hub.join_at_end(&mailbox, None, 0, |_| {}));
            mailbox
        })
        .collect();
    Fixture { hub, business, _connections: connections }
}

fn dispatch(bencher: divan::Bencher<'_, '_>, audience: &str, compression: Compression) {
    let fixture = fixture(compression);
    let content = "x".repeat(200);
    let mut offset = 0;
    bencher.bench_local(|| {
        offset += 1;
        let audience = audience.replace("{}", &(offset % CONNECTIONS + 1).to_string());
        let record = Record {
            position: Position { offset, fingerprint: offset },
            timestamp: 1,
            body: format!(r#"{{"messageType":"n",{audience},"content":"{content}"}}"#).into(),
            defect: None,
            origin: Origin::default(),
        };
        let (entry, rejected) = Entry::read(&fixture.business, &record, &fixture.hub.backlog);
        assert!(rejected.is_empty());
        let mut entries = vec![Arc::new(entry)];
        // One push is too little for a pause.
        assert!(fixture.hub.compress(&mut entries).now_or_never().is_some());
        assert!(fixture.hub.append(&fixture.business, entries, Delivery::Durable));
    });
}

#[divan::bench]
fn to_one_identity(bencher: divan::Bencher<'_, '_>) {
    dispatch(bencher, r#""toUniqueId":"user-{}""#, Compression::default());
}

#[divan::bench]
fn to_a_tag_of_100(bencher: divan::Bencher<'_, '_>) {
    dispatch(bencher, r#""tags":["group-7"]"#, Compression::default());
}

#[divan::bench(sample_count = 20)]
fn to_everyone(bencher: divan::Bencher<'_, '_>) {
    dispatch(bencher, r#""toUniqueId":"*""#, Compression::default());
}

#[divan::bench(sample_count = 20)]
fn to_everyone_compressed(bencher: divan::Bencher<'_, '_>) {
    let offer = HeaderMap::from_iter([(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static("permessage-deflate"))]);
    let compression = compression::accept(&offer).map(|(compression, _)| compression).unwrap_or_default();
    dispatch(bencher, r#""toUniqueId":"*""#, compression);
}
