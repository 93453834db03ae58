//! Whose connections end at the limit.

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
async fn control_frames_look_at_times_and_then_close() {
    let backlog = Backlog::new(1000, &Metrics::default());
    let (flowing, stalling) = (mailbox(1, &backlog, 500), mailbox(2, &backlog, 400));
    let _stalls = backlog.stalls(stalling.clone(), 0);
    let more = || flowing.outbound.push(Item::Control("x".repeat(200).into()));
    backlog.next_look.store(PAUSE.as_millis() as u64, Ordering::Relaxed);
    more();
    assert_eq!(stalling.outbound.closing(), None, "somebody looked just now");
    tokio::time::advance(PAUSE).await;
    more();
    assert_eq!(stalling.outbound.closing(), Some(CloseCode::TooSlow));
}

#[test]
fn over_the_budget_those_who_take_nothing_go_and_who_holds_most_first() {
    let backlog = Backlog::new(1000, &Metrics::default());
    let (flowing, little, much) = (mailbox(1, &backlog, 500), mailbox(2, &backlog, 100), mailbox(3, &backlog, 300));
    let little_stalls = backlog.stalls(little.clone(), 0);
    let _much_stalls = backlog.stalls(much.clone(), 0);
    let more = BacklogShare::new(200, &backlog);
    backlog.shed();
    let closing = [&flowing, &little, &much].map(|mailbox| mailbox.outbound.closing());
    assert_eq!(closing, [None, None, Some(CloseCode::TooSlow)]);
    assert_eq!((backlog.bytes.get(), backlog.closes.get()), (800, 1));
    more.keep(true);
    assert_eq!(backlog.bytes.get(), 600, "what a log holds is bounded there");
    more.keep(false);
    drop(little_stalls);
    let _more = BacklogShare::new(400, &backlog);
    backlog.shed();
    assert_eq!(flowing.outbound.closing().or(little.outbound.closing()), None, "nobody holds anybody up");
    drop((flowing, little, much, more));
    assert_eq!(backlog.bytes.get(), 400);
}
