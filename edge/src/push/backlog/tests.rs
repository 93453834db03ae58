//! Which connections are closed at the limit.

use wirepost_core::frames::CloseCode;

use super::*;
use crate::push::mailbox::{
    Mailbox,
    outbound::{Bounds, Item, Outbound},
};

fn mailbox(number: u64, backlog: &Arc<Backlog>, bytes: usize) -> Arc<Mailbox> {
    let bounds = Bounds { messages: 10, bytes: 1 << 20 };
    let mailbox = Arc::new(Mailbox::new(
        number,
        "alice",
        "app",
        true,
        Outbound::new(bounds, Gauge::default(), Arc::clone(backlog)),
    ));
    mailbox.outbound.push(Item::Control("x".repeat(bytes).into()));
    mailbox
}

#[tokio::test(start_paused = true)]
async fn control_frames_shed_only_now_and_then() {
    let backlog = Backlog::new(1000, &Metrics::default());
    let (flowing, stalling) = (mailbox(1, &backlog, 500), mailbox(2, &backlog, 400));
    let _stalls = backlog.stalls(stalling.clone(), 0);
    let more = || flowing.outbound.push(Item::Control("x".repeat(200).into()));
    backlog.budget.next_look.store(PAUSE.as_millis() as u64, Ordering::Relaxed);
    more();
    assert_eq!(stalling.outbound.closing(), None, "another frame did it just now");
    tokio::time::advance(PAUSE).await;
    more();
    assert_eq!(stalling.outbound.closing(), Some(CloseCode::TooSlow));
}

#[test]
fn over_the_budget_the_largest_stalled_queue_is_closed_first() {
    let backlog = Backlog::new(1000, &Metrics::default());
    let (flowing, little, much) = (mailbox(1, &backlog, 500), mailbox(2, &backlog, 100), mailbox(3, &backlog, 300));
    let little_stalls = backlog.stalls(little.clone(), 0);
    let _much_stalls = backlog.stalls(much.clone(), 0);
    let more = BacklogShare::new(200, &backlog);
    backlog.shed();
    let closing = [&flowing, &little, &much].map(|mailbox| mailbox.outbound.closing());
    assert_eq!(closing, [None, None, Some(CloseCode::TooSlow)]);
    assert_eq!((backlog.budget.bytes.get(), backlog.budget.closes.get()), (800, 1));
    more.keep(true);
    assert_eq!(backlog.budget.bytes.get(), 600, "a log has a bound of its own");
    more.keep(false);
    drop(little_stalls);
    let _more = BacklogShare::new(400, &backlog);
    backlog.shed();
    assert_eq!(flowing.outbound.closing().or(little.outbound.closing()), None, "no peer is stalled");
    drop((flowing, little, much, more));
    assert_eq!(backlog.budget.bytes.get(), 400);
}

#[test]
fn the_business_that_has_most_gives_back_first_and_one_over_its_limit_alone() {
    let budget = BacklogBudget::new(1000, &Metrics::default());
    let (shop, other) = (budget.of_business(), budget.of_business());
    // The largest queue is of the other one.
    let of_shop = [mailbox(1, &shop, 300), mailbox(2, &shop, 300)];
    let of_other = mailbox(3, &other, 350);
    let _stall = [of_shop[0].clone(), of_shop[1].clone(), of_other.clone()].map(|mailbox| {
        let whose = if mailbox.number == 3 { &other } else { &shop };
        whose.stalls(mailbox, 0)
    });
    let more = BacklogShare::new(100, &other);
    other.shed();
    let closed = of_shop.iter().filter(|mailbox| mailbox.outbound.closing().is_some()).count();
    assert_eq!((closed, of_other.outbound.closing()), (1, None));

    other.limit(Some(400));
    shop.shed();
    assert_eq!(of_other.outbound.closing(), None, "what others do is nothing to it");
    other.shed();
    assert_eq!(of_other.outbound.closing(), Some(CloseCode::TooSlow));
    let closed = of_shop.iter().filter(|mailbox| mailbox.outbound.closing().is_some()).count();
    assert_eq!(closed, 1);
    drop(more);
}
