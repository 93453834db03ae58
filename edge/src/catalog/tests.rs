//! Changes of the catalog, as the hubs and clients of a business feel them.

use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::{
    broker::memory::MemoryBroker,
    metrics::Metrics,
    push::{catch_up::CatchUp, log::LogBudget},
    settings::Settings,
    socket::{
        backlog::Backlog,
        conn::{Conn, Identity},
        outbound::tests::outbound,
    },
};

fn catalog() -> Catalog {
    let metrics = Arc::new(Metrics::default());
    Catalog::new(Arc::new(Context {
        broker: Arc::new(MemoryBroker::default()),
        budget: Arc::new(LogBudget::new(1 << 20, metrics.log_bytes.clone())),
        backlog: Backlog::new(1 << 20, &metrics),
        catch_up: CatchUp::new(1),
        metrics,
        settings: Settings::default(),
    }))
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

fn conn(number: u64) -> Arc<Conn> {
    let identity = Identity { unique_id: "alice".into(), client_type: "app".into(), tags: vec![] };
    Arc::new(Conn::new(number, &identity, true, outbound()))
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
async fn a_bad_configuration_keeps_the_last_good_one() {
    let catalog = catalog();
    catalog.apply([set("a", 1)]);
    let bad = BusinessConfig { requires: vec!["wings".into()], ..config("a", 2) };
    assert_eq!(catalog.apply([Change::Set(Box::new(bad)), set("b", 1)]).len(), 1);
    assert_eq!(catalog.get("a").unwrap().config.generation, 1);
    assert!(catalog.get("b").is_some(), "others change");
    catalog.stop().await;
}

#[tokio::test]
async fn a_removed_business_closes_its_clients_and_those_on_their_way() {
    let catalog = catalog();
    catalog.apply([set("a", 1)]);
    let (hub, early, late) = (catalog.hub("a").unwrap(), conn(1), conn(2));
    hub.enter(&early, &[]);
    catalog.apply([Change::Remove("a".into())]);
    hub.enter(&late, &[]);
    for conn in [early, late] {
        assert_eq!(conn.outbound.closing(), Some(CloseCode::BusinessRemoved));
    }
    assert!(catalog.hub("a").is_none());
    catalog.stop().await;
}

#[tokio::test]
async fn another_delivery_makes_a_new_hub_which_waits_for_the_old_reader() {
    let catalog = catalog();
    catalog.apply([set("a", 1)]);
    let (hub, conn) = (catalog.hub("a").unwrap(), conn(1));
    hub.enter(&conn, &[]);
    catalog.apply([transient("a")]);
    assert_eq!(conn.outbound.closing(), Some(CloseCode::DeliveryChanged));
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
async fn a_business_that_could_never_be_read_is_absent_until_its_declaration_goes() {
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
    assert_eq!(["a", "c"].map(|name| catalog.why_absent(name)), [Absent::Gone, Absent::Unknown]);
    catalog.stop().await;
}
