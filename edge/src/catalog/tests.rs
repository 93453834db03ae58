//! How changes of the catalog affect hubs and clients.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{FutureExt, future::BoxFuture};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::*;
use crate::{
    broker::{Broker, Confirm, Feed, FeedEvent, Health, Page, Publication, ReadError, Start, memory::MemoryBroker},
    config::settings::Settings,
    metrics::Metrics,
    push::mailbox::{Mailbox, outbound::tests::outbound},
};

fn catalog() -> Catalog {
    catalog_on(Arc::new(MemoryBroker::default()), &Supervisor::default())
}

fn catalog_on(broker: Arc<dyn Broker>, supervisor: &Supervisor) -> Catalog {
    let mut metrics = Metrics::default();
    metrics.include(supervisor);
    Catalog::new(Arc::new(HubContext::new(broker, Arc::new(metrics), Settings::default())), supervisor)
}

fn config(business: &str, generation: i64) -> BusinessConfig {
    serde_json::from_value(json!({
        "format": 1, "businessType": business, "owner": "shop/x", "generation": generation, "clientTypes": ["app"], "routes": [],
        "delivery": "Durable", "retention": {"seconds": 60, "bytes": 1 << 20}, "auth": {"allowedOrigins": []}, "limits": {},
        "sessionMaxSeconds": 60,
    }))
    .unwrap()
}

fn set(business: &str, generation: i64) -> Change {
    Change::Set(Box::new(config(business, generation)))
}

fn transient(business: &str) -> Change {
    Change::Set(Box::new(BusinessConfig { delivery: Delivery::Transient, ..config(business, 1) }))
}

fn mailbox(number: u64) -> Arc<Mailbox> {
    Arc::new(Mailbox::new(number, "alice", "app", true, outbound()))
}

#[tokio::test]
async fn a_change_of_one_business_touches_no_other() {
    let catalog = catalog();
    assert!(catalog.apply([set("a", 1), set("b", 1)]).is_empty());
    let (a, b) = (catalog.hub("a").unwrap(), catalog.get("b").unwrap());
    let mut version = catalog.version();
    assert!(catalog.apply([set("a", 2)]).is_empty());
    assert!(version.has_changed().unwrap());
    version.mark_unchanged();
    assert!(Arc::ptr_eq(&catalog.hub("a").unwrap(), &a), "its clients stay");
    assert_eq!(a.business().config.generation, 2);
    assert!(Arc::ptr_eq(&catalog.get("b").unwrap(), &b));
    assert!(catalog.apply([set("a", 2), Change::Remove("nobody".into())]).is_empty());
    assert!(!version.has_changed().unwrap(), "nothing has changed");
    catalog.stop().await;
}

#[tokio::test]
async fn an_invalid_configuration_keeps_the_last_accepted_one() {
    let catalog = catalog();
    catalog.apply([set("a", 1)]);
    let bad = BusinessConfig { requires: vec!["wings".into()], ..config("a", 2) };
    assert_eq!(catalog.apply([Change::Set(Box::new(bad)), set("b", 1)]).len(), 1);
    assert_eq!(catalog.get("a").unwrap().config.generation, 1);
    assert!(catalog.get("b").is_some(), "others change");
    catalog.stop().await;
}

#[tokio::test]
async fn a_removed_business_closes_its_clients_and_those_that_are_connecting() {
    let catalog = catalog();
    catalog.apply([set("a", 1)]);
    let (hub, early, late) = (catalog.hub("a").unwrap(), mailbox(1), mailbox(2));
    hub.enter(&early, &[]);
    catalog.apply([Change::Remove("a".into())]);
    hub.enter(&late, &[]);
    for mailbox in [early, late] {
        assert_eq!(mailbox.outbound.closing(), Some(CloseCode::BusinessRemoved));
    }
    assert!(catalog.hub("a").is_none());
    catalog.stop().await;
}

#[tokio::test]
async fn a_changed_delivery_creates_a_hub_which_waits_for_the_old_reader() {
    let catalog = catalog();
    catalog.apply([set("a", 1)]);
    let (hub, mailbox) = (catalog.hub("a").unwrap(), mailbox(1));
    hub.enter(&mailbox, &[]);
    catalog.apply([transient("a")]);
    assert_eq!(mailbox.outbound.closing(), Some(CloseCode::DeliveryChanged));
    let new = catalog.hub("a").unwrap();
    assert!(!Arc::ptr_eq(&hub, &new) && new.delivery() == Delivery::Transient);
    // Gone and back in one step: clients of the old one are closed, and it runs.
    catalog.apply([Change::Remove("a".into()), transient("a")]);
    assert!(new.is_closed() && catalog.hub("a").is_some_and(|hub| !hub.is_closed()));
    timeout(Duration::from_secs(5), catalog.stop()).await.unwrap();
}

#[tokio::test]
async fn replace_removes_what_is_not_named_and_keeps_what_could_not_be_read() {
    let catalog = catalog();
    catalog.apply([set("a", 1), set("b", 1), set("c", 1)]);
    assert!(catalog.replace(vec![config("a", 2)], &["b".to_owned()]).is_empty());
    assert_eq!(catalog.hashes().into_keys().collect::<Vec<_>>(), ["a", "b"]);
    catalog.stop().await;
}

#[tokio::test]
async fn a_business_that_could_never_be_read_is_absent_until_its_declaration_is_removed() {
    let catalog = catalog();
    let broken = ["a".to_owned(), "b".to_owned()];
    catalog.replace(vec![config("a", 1)], &broken);
    assert!(catalog.hub("a").is_some());
    assert_eq!(catalog.why_absent("b"), Absent::NotYet);
    let unfit = BusinessConfig { requires: vec!["wings".into()], ..config("c", 1) };
    catalog.replace(vec![unfit], &broken);
    assert!(catalog.hub("a").is_some(), "it stays as it is");
    assert_eq!(catalog.why_absent("c"), Absent::NotYet);
    catalog.replace(vec![config("b", 1)], &[]);
    assert!(catalog.hub("b").is_some());
    assert_eq!(["a", "c"].map(|name| catalog.why_absent(name)), [Absent::Removed, Absent::Unknown]);
    catalog.stop().await;
}

/// The broker in the process; its first feed panics.
struct Panicking {
    inner: MemoryBroker,
    panicked: AtomicBool,
}

struct Bad;

impl Feed for Bad {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async { panic!("a message that nobody expected") }.boxed()
    }
}

impl Broker for Panicking {
    fn publish(&self, lane: u64, publication: Publication) -> Confirm {
        self.inner.publish(lane, publication)
    }

    fn emit(&self, publication: Publication) {
        self.inner.emit(publication);
    }

    fn tail(&self, business: &str, delivery: Delivery, start: Start) -> Box<dyn Feed> {
        if self.panicked.swap(true, Ordering::Relaxed) {
            self.inner.tail(business, delivery, start)
        } else {
            Box::new(Bad)
        }
    }

    fn read<'a>(&'a self, business: &'a str, from: u64, max_bytes: usize) -> BoxFuture<'a, Result<Page, ReadError>> {
        self.inner.read(business, from, max_bytes)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.inner.register(registry);
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_panics_disconnects_its_clients_and_is_restarted() {
    let supervisor = Supervisor::default();
    let broker = Arc::new(Panicking { inner: MemoryBroker::default(), panicked: false.into() });
    let catalog = catalog_on(broker, &supervisor);
    let metrics = Arc::clone(&catalog.context.metrics);
    catalog.apply([transient("a"), transient("b")]);
    let (a, before, after) = (catalog.hub("a").unwrap(), mailbox(1), mailbox(2));
    let soon = async |condition: &dyn Fn() -> bool| {
        let polling = async {
            while !condition() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(5), polling).await.expect("it does not come true");
    };
    a.enter(&before, &[]);
    soon(&|| before.outbound.closing() == Some(CloseCode::Interrupted)).await;
    assert_eq!((metrics.readers.get(), a.reading()), (0, Reading::Down));
    a.leave(&before);
    a.enter(&after, &[]);
    soon(&|| metrics.readers.get() == 1).await;
    assert_eq!(after.outbound.closing(), None);
    let text = metrics.encode();
    assert!(text.contains(r#"wirepost_edge_task_restarts_total{task="push reader"} 1"#), "{text}");
    assert_eq!(supervisor.failure(), None, "another business goes on");
    catalog.stop().await;
}
