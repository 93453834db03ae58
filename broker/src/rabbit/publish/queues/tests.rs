use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::*;
use crate::Confirm;

const EXCHANGE: &str = "wirepost.pay.receive";

fn queues(messages: usize) -> Queues {
    Queues::new(Bounds { messages, bytes: 1 << 20, events: 2 }, Arc::default())
}

fn push(queues: &Queues, sender: u64, exchange: &str) -> Confirm {
    let (reply, confirm) = oneshot::channel();
    queues.push(sender, Job::new(message(sender, exchange), reply, queues.counters.clone()));
    confirm
}

fn message(sender: u64, exchange: &str) -> Publication {
    sized(sender, exchange, 1)
}

fn sized(sender: u64, exchange: &str, bytes: usize) -> Publication {
    Publication {
        exchange: exchange.into(),
        routing_key: "k".into(),
        queue: None,
        message_id: sender.to_string(),
        body: vec![b'x'; bytes].into(),
        timestamp: 0,
        headers: vec![],
    }
}

fn serve(queues: &Queues, now: Instant, up_to: usize) -> Vec<Job> {
    let mut batch = Vec::new();
    queues.serve(now, |_, _| Room::UpTo(up_to), usize::MAX, &mut batch);
    batch
}

fn report(queues: &Queues, now: Instant, answered: u32, in_flight: usize) {
    queues.report(now, std::iter::once(Progress { target: EXCHANGE.into(), answered, in_flight, bytes_in_flight: 0 }));
}

fn turn(queues: &Queues) -> Option<HeldTurn> {
    queues.turn(&|| [EXCHANGE.to_owned(), "wirepost.pay.push".to_owned()])
}

#[tokio::test(start_paused = true)]
async fn callers_are_held_back_by_the_measured_rate_and_let_in_in_turn() {
    let queues = queues(100_000);
    let mut confirms: Vec<Confirm> = (0..1000).map(|n| push(&queues, n, EXCHANGE)).collect();
    // The broker answers ten in each tenth of a second.
    let mut now = Instant::now();
    let jobs = serve(&queues, now, 20);
    assert_eq!(jobs.len(), 20);
    for _ in 0..20 {
        tokio::time::advance(Duration::from_millis(100)).await;
        now = Instant::now();
        report(&queues, now, 10, 10);
        for job in serve(&queues, now, 20) {
            job.answer(Ok(()));
        }
        queues.sweep(now, "slow");
    }
    drop(jobs);
    // Everything has expired by now; the rate is known.
    assert!(!queues.is_waiting());
    report(&queues, now, 0, 0);
    assert!(turn(&queues).is_none());
    confirms.extend((0..40).map(|n| push(&queues, n, EXCHANGE)));
    let mut turns: Vec<HeldTurn> = (0..100).map(|_| turn(&queues).unwrap()).collect();
    assert_eq!(queues.load().held, 100);
    assert!(turns.iter_mut().all(|turn| turn.now_or_never().is_none()));
    for job in serve(&queues, now, 100) {
        job.answer(Ok(()));
    }
    report(&queues, now, 40, 0);
    let admitted = turns.iter_mut().map(|turn| turn.now_or_never().is_some()).collect::<Vec<_>>();
    let first = admitted.iter().take_while(|admitted| **admitted).count();
    assert!((20..60).contains(&first), "{first}");
    assert!(admitted[first..].iter().all(|admitted| !admitted), "the first in the line come first");
    // Still congested: a newcomer waits behind them. When all have left, nobody is held back.
    assert!(turn(&queues).is_some());
    drop(turns);
    queues.sweep(now, "slow");
    assert!(turn(&queues).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_answered_in_time_is_refused_with_the_time_of_a_retry() {
    let queues = queues(100_000);
    let early: Vec<Confirm> = (0..3000).map(|n| push(&queues, n, EXCHANGE)).collect();
    let first = serve(&queues, Instant::now(), 20);
    for _ in 0..6 {
        tokio::time::advance(Duration::from_millis(100)).await;
        report(&queues, Instant::now(), 100, 20);
    }
    // About 1,000 a second, and nearly 3,000 wait.
    let refused = push(&queues, 1, EXCHANGE).now_or_never();
    let Some(Ok(Err(PublishError::Overloaded { retry_after }))) = refused else { panic!("{refused:?}") };
    assert!((RETRY.0..=Duration::from_secs(3)).contains(&retry_after), "{retry_after:?}");
    let other = push(&queues, 1, "wirepost.other.receive").now_or_never();
    assert!(other.is_none(), "another exchange is not concerned: {other:?}");
    drop((early, first));
}

#[tokio::test(start_paused = true)]
async fn exchanges_and_senders_are_served_in_turn_and_one_that_can_not_be_sent_to_stops_no_other() {
    let queues = queues(1000);
    let mut confirms = Vec::new();
    for n in 0..100 {
        confirms.push(push(&queues, n % 3, EXCHANGE));
        confirms.push(push(&queues, n, "stuck"));
        confirms.push(push(&queues, n, "other"));
    }
    let mut batch = Vec::new();
    let room = |target: &Arc<str>, _| Room::UpTo(if &**target == "stuck" { 0 } else { 50 });
    queues.serve(Instant::now(), room, usize::MAX, &mut batch);
    assert_eq!(batch.len(), 100);
    let of = |exchange: &str| batch.iter().filter(|job| &**job.target() == exchange).collect::<Vec<_>>();
    assert_eq!((of(EXCHANGE).len(), of("other").len()), (50, 50));
    let senders: Vec<_> =
        of(EXCHANGE)[..13].iter().step_by(4).map(|job| job.publication().message_id.clone()).collect();
    assert_eq!(senders, ["0", "1", "2", "0"]);
    queues.refuse(&"stuck".into(), &PublishError::Refused("gone".into()));
    assert!(matches!((&mut confirms[1]).now_or_never(), Some(Ok(Err(PublishError::Refused(_))))));
    queues.refuse_all(&unavailable("blocked"));
    assert!(!queues.is_waiting() && queues.close_if_empty());
    assert!(matches!(push(&queues, 1, EXCHANGE).now_or_never(), Some(Ok(Err(PublishError::Unavailable(_))))));
    drop(batch);
    assert_eq!((queues.counters.waiting.get(), queues.counters.in_flight.get()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_batch_waits_as_long_as_its_caller() {
    let queues = queues(100);
    let mut single = push(&queues, 1, EXCHANGE);
    let (reply, mut of_batch) = oneshot::channel();
    let job = Job::new(message(2, EXCHANGE), reply, queues.counters.clone());
    queues.push(2, job.until(Instant::now() + Duration::from_secs(7)));
    tokio::time::advance(Duration::from_secs(2)).await;
    queues.sweep(Instant::now(), "slow");
    assert!(single.try_recv().is_ok() && of_batch.try_recv().is_err());
    tokio::time::advance(Duration::from_secs(5)).await;
    queues.sweep(Instant::now(), "slow");
    assert!(of_batch.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn large_messages_are_in_flight_up_to_a_number_of_bytes_and_one_always() {
    let queues = Queues::new(Bounds { messages: 100, bytes: 64 << 20, events: 2 }, Arc::default());
    let push = |bytes| {
        let (reply, confirm) = oneshot::channel();
        queues.push(1, Job::new(sized(1, EXCHANGE, bytes), reply, queues.counters.clone()));
        confirm
    };
    let now = Instant::now();
    let huge = 2 * WINDOW_BYTES as usize;
    let _confirms: Vec<Confirm> =
        [vec![huge, huge], vec![WINDOW_BYTES as usize / 4; 10]].concat().into_iter().map(push).collect();
    let progress = |answered, in_flight, bytes_in_flight| {
        queues.report(now, std::iter::once(Progress { target: EXCHANGE.into(), answered, in_flight, bytes_in_flight }));
    };
    let mut sent = serve(&queues, now, 200);
    assert_eq!(sent.len(), 1, "alone, however large");
    assert!(serve(&queues, now, 200).is_empty());
    progress(1, 0, 0);
    sent.extend(serve(&queues, now, 200));
    assert_eq!(sent.len(), 2);
    progress(1, 0, 0);
    sent.extend(serve(&queues, now, 200));
    assert_eq!(sent.len(), 6, "four of a quarter");
    progress(1, 3, 3 * WINDOW_BYTES / 4);
    assert_eq!(serve(&queues, now, 200).len(), 1);
    for job in sent {
        job.answer(Ok(()));
    }
}
