//! What several threads do with a hub at the same time, in every order in which they can take its lock.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt;

use super::{waits::BOUNDS, *};
use crate::{
    broker::{Origin, Record},
    push::{
        entry::Entry,
        hub::Advance,
        lock::explored::{every_order, holds_in_every_order, spawn},
    },
};

fn at(offset: u64) -> Position {
    Position { offset, fingerprint: offset }
}

/// What all hubs of a test share.
fn context() -> Arc<HubContext> {
    let settings = Settings { log_bytes: 1 << 20, ..Settings::default() };
    Arc::new(HubContext::new(Arc::new(MemoryBroker::new()), Arc::default(), settings))
}

/// A hub that has a reader at 7, and the connection of a client that is live.
fn read_hub(context: &Arc<HubContext>, delivery: Delivery) -> (Arc<Hub>, Arc<Mailbox>) {
    let business = Business::try_new(declared_with(delivery).0).unwrap();
    let hub = Arc::new(Hub::new(Arc::new(business), Arc::clone(context)));
    hub.attach((delivery == Delivery::Durable).then_some(at(7)));
    let first = mailbox(&hub, 1);
    hub.enter(&first, &[]);
    assert!(hub.join_at_end(&first, None, 0, |_| ()));
    (hub, first)
}

fn mailbox(hub: &Hub, number: u64) -> Arc<Mailbox> {
    let gauge = prometheus_client::metrics::gauge::Gauge::default();
    let outbound = Outbound::new(BOUNDS, gauge, Arc::clone(&hub.backlog));
    Arc::new(Mailbox::new(number, "alice", "app", true, outbound))
}

/// The reader has read the push with this offset.
fn reads(hub: &Hub, offset: u64) {
    let business = hub.business();
    let body = format!(r#"{{"messageType":"n","toUniqueId":"alice","content":{offset}}}"#);
    let record =
        Record { position: at(offset), timestamp: 0, body: body.into(), defect: None, origin: Origin::default() };
    let (entry, rejected) = Entry::read(&business, &record, &hub.backlog);
    assert!(rejected.is_empty());
    assert!(hub.append(&business, vec![Arc::new(entry)], hub.delivery()), "the declaration is as it was");
}

/// Pushes that wait for the client.
fn got(mailbox: &Mailbox) -> Vec<u64> {
    let mut got = Vec::new();
    while let Some(Next::Item(item)) = std::future::poll_fn(|cx| mailbox.outbound.poll_next(cx)).now_or_never() {
        let frame: serde_json::Value = serde_json::from_slice(item.payload()).unwrap();
        got.extend(frame["content"].as_u64());
    }
    got
}

/// The last client leaves while another one comes, and the reader sees that nobody is there. What is pushed then, 8, is
/// read by it or, once it has ended, by nobody. `ends`: whether it ends.
fn leaves_as_another_joins(context: &Arc<HubContext>, delivery: Delivery, ends: fn(&Hub) -> bool) {
    let (hub, first) = read_hub(context, delivery);
    let pushed = Arc::new(AtomicBool::new(false));
    let leaving = spawn({
        let hub = Arc::clone(&hub);
        move || hub.leave(&first)
    });
    let joining = spawn({
        let (hub, pushed) = (Arc::clone(&hub), Arc::clone(&pushed));
        move || {
            let mailbox = mailbox(&hub, 2);
            hub.enter(&mailbox, &[]);
            let mut place = None;
            let live = hub.join_at_end(&mailbox, None, 0, |position| place = position);
            let expects = place == Some(at(7)) || (live && !pushed.load(Ordering::Relaxed));
            (mailbox, expects)
        }
    });
    let reading = spawn(move || {
        let ended = *hub.clients().borrow() == 0 && ends(&hub);
        pushed.store(true, Ordering::Relaxed);
        if ended {
            // Another reader begins with what comes next.
            hub.attach((delivery == Delivery::Durable).then_some(at(8)));
        } else {
            reads(&hub, 8);
        }
    });
    leaving.join().unwrap();
    reading.join().unwrap();
    let (mailbox, expects) = joining.join().unwrap();
    assert!(!expects || got(&mailbox) == [8], "it was live when 8 was pushed");
}

/// As the reader ended once: in two steps.
fn in_two_steps(hub: &Hub) -> bool {
    hub.forget(None);
    true
}

const DELIVERIES: [Delivery; 2] = [Delivery::Durable, Delivery::Transient];

#[test]
fn a_client_that_joins_as_the_last_one_leaves_misses_nothing_in_any_order() {
    for delivery in DELIVERIES {
        let context = context();
        holds_in_every_order(move || leaves_as_another_joins(&context, delivery, Hub::retire));
    }
}

/// What the test above is worth.
#[test]
fn a_reader_that_ends_in_two_steps_is_found() {
    for delivery in DELIVERIES {
        let context = context();
        let found = every_order(move || leaves_as_another_joins(&context, delivery, in_two_steps));
        assert!(found.is_err(), "so pushes were lost once: {delivery:?}");
    }
}

#[test]
fn a_client_that_catches_up_while_pushes_come_gets_each_once_in_every_order() {
    let (context, orders) = (context(), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&orders);
    holds_in_every_order(move || {
        seen.fetch_add(1, Ordering::Relaxed);
        let (hub, first) = read_hub(&context, Delivery::Durable);
        let resuming = spawn({
            let hub = Arc::clone(&hub);
            move || {
                let mailbox = mailbox(&hub, 2);
                hub.enter(&mailbox, &[]);
                assert!(matches!(hub.advance(&mailbox, at(7), || ()), Advance::Live));
                mailbox
            }
        });
        let leaving = spawn({
            let (hub, first) = (Arc::clone(&hub), Arc::clone(&first));
            move || hub.leave(&first)
        });
        let reading = spawn(move || {
            reads(&hub, 8);
            reads(&hub, 9);
        });
        leaving.join().unwrap();
        reading.join().unwrap();
        let mailbox = resuming.join().unwrap();
        assert_eq!(got(&mailbox), [8, 9]);
        let got = got(&first);
        assert!([8, 9].starts_with(&got), "{got:?}: up to when it left");
    });
    assert!(orders.load(Ordering::Relaxed) > 10, "{orders:?}");
}
