use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::backoff::Backoff;

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(10))
}

fn failure(task: &'static str, cause: Cause) -> Failure {
    Failure { task, cause }
}

async fn panics(message: &str) {
    tokio::task::yield_now().await;
    panic!("{message}")
}

fn metrics(supervisor: &Supervisor) -> String {
    let mut registry = Registry::default();
    supervisor.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_unasked_is_a_failure_with_its_name_and_cause() {
    let stop = CancellationToken::new();
    let supervisor = Supervisor::default();
    supervisor.tasks().run("reader", &stop, sleep(Duration::from_secs(1)));
    assert_eq!(supervisor.failed().now_or_never(), None);
    assert_eq!(supervisor.failed().await, failure("reader", Cause::Ended));
    assert_eq!(supervisor.failure().unwrap().to_string(), "task \"reader\" ended unasked");

    let supervisor = Supervisor::default();
    supervisor.tasks().run("lease", &stop, async { Err::<(), _>("lost") });
    assert_eq!(supervisor.failed().await, failure("lease", Cause::Failed("lost".into())));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_also_of_a_task_that_ends_on_its_own_or_is_asked_to_end() {
    let supervisor = Supervisor::default();
    supervisor.tasks().once("first", panics("number 7"));
    assert_eq!(supervisor.failed().await, failure("first", Cause::Panicked("number 7".into())));

    let (supervisor, stop) = (Supervisor::default(), CancellationToken::new());
    let asked = stop.clone();
    supervisor.tasks().run("second", &stop, async move {
        asked.cancelled().await;
        panics("on the way out").await;
    });
    stop.cancel();
    assert_eq!(supervisor.failed().await, failure("second", Cause::Panicked("on the way out".into())));
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_is_kept() {
    let supervisor = Supervisor::default();
    let tasks = supervisor.tasks();
    for (name, second) in [("second", 2), ("first", 1)] {
        tasks.once(name, async move {
            sleep(Duration::from_secs(second)).await;
            panics("x").await;
        });
    }
    tasks.finished().await;
    assert_eq!(supervisor.failure().unwrap().task, "first");
}

#[tokio::test(start_paused = true)]
async fn tasks_that_come_and_go_as_asked_are_no_failure() {
    let supervisor = Supervisor::default();
    let tasks = supervisor.tasks();
    let all = CancellationToken::new();
    for _ in 0..3 {
        let one = all.child_token();
        tasks.run("reader", &one, one.clone().cancelled_owned());
        one.cancel();
    }
    tasks.once("first look", async {});
    tasks.until("poll", &all, std::future::pending::<()>());
    let stays = all.child_token();
    tasks.run("reader", &stays, stays.clone().cancelled_owned());
    sleep(Duration::from_secs(1)).await;
    assert_eq!((tasks.len(), supervisor.failure()), (2, None));
    all.cancel();
    tasks.finished_by(Instant::now() + Duration::from_secs(1)).await.unwrap();
    assert_eq!(supervisor.failure(), None);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_by_the_deadline_is_named() {
    let supervisor = Supervisor::default();
    let (tasks, stop) = (supervisor.tasks(), CancellationToken::new());
    for name in ["lane", "link", "lane"] {
        tasks.run(name, &stop, std::future::pending::<()>());
    }
    tasks.run("events", &stop, stop.clone().cancelled_owned());
    stop.cancel();
    let unfinished = tasks.finished_by(Instant::now() + Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(unfinished.to_string(), "2 × lane, 1 × link");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_task_comes_back_after_a_growing_pause_and_is_counted() {
    let supervisor = Supervisor::default();
    let (tasks, stop) = (supervisor.tasks(), CancellationToken::new());
    let starts = Arc::new(AtomicU32::new(0));
    tasks.restarted("reader", &stop, backoff(), {
        let (starts, stop) = (Arc::clone(&starts), stop.clone());
        move || {
            let (start, stop) = (starts.fetch_add(1, Ordering::Relaxed), stop.clone());
            async move {
                match start {
                    0 => panic!("a message that nobody expected"),
                    1 => Err("not yet"),
                    2 => Ok(()),
                    _ => {
                        stop.cancelled().await;
                        Ok(())
                    }
                }
            }
        }
    });
    assert!(metrics(&supervisor).contains("task_restarts_total{task=\"reader\"} 0"));
    let began = Instant::now();
    while starts.load(Ordering::Relaxed) < 4 {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(began.elapsed() < Duration::from_millis(100 + 200 + 400 + 10), "{:?}", began.elapsed());
    assert!(metrics(&supervisor).contains("task_restarts_total{task=\"reader\"} 3"));
    stop.cancel();
    tasks.finished().await;
    assert_eq!((starts.load(Ordering::Relaxed), supervisor.failure()), (4, None));
}

#[tokio::test(start_paused = true)]
async fn a_task_in_its_pause_ends_when_asked() {
    let supervisor = Supervisor::default();
    let (tasks, stop) = (supervisor.tasks(), CancellationToken::new());
    let day = Duration::from_hours(24);
    tasks.restarted("reader", &stop, Backoff::new(day, day), || panics("x"));
    sleep(Duration::from_millis(1)).await;
    stop.cancel();
    tasks.finished_by(Instant::now() + Duration::from_millis(1)).await.unwrap();
}

#[tokio::test]
async fn a_panic_of_a_contained_task_is_counted_and_ends_nothing_else() {
    let supervisor = Supervisor::default();
    let tasks = supervisor.tasks();
    tasks.contained("connection", async {});
    tasks.contained("connection", panics("x"));
    tasks.finished().await;
    assert_eq!(supervisor.failure(), None);
    assert!(metrics(&supervisor).contains("task_panics_total{task=\"connection\"} 1"));
}

#[tokio::test]
async fn an_attempt_that_panics_is_counted_and_its_owner_goes_on() {
    let supervisor = Supervisor::default();
    assert_eq!(supervisor.attempt("chunk", async { 1 }).await, Ok(1));
    let failed = supervisor.attempt("chunk", panics("odd")).await;
    assert_eq!(failed, Err(Cause::Panicked("odd".into())));
    assert!(metrics(&supervisor).contains("task_restarts_total{task=\"chunk\"} 1"));
    assert_eq!(supervisor.failure(), None);
}

#[test]
fn tasks_of_a_set_run_where_the_set_says_and_a_runtime_that_ends_leaves_none_listed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("apart").build().unwrap();
    let supervisor = Supervisor::default();
    let tasks = supervisor.tasks_on(runtime.handle().clone());
    let (sender, name) = tokio::sync::oneshot::channel();
    tasks.once("name", async move {
        let _ = sender.send(std::thread::current().name().map(str::to_owned));
    });
    assert_eq!(runtime.block_on(name).unwrap().as_deref(), Some("apart"));
    tasks.run("endless", &CancellationToken::new(), std::future::pending::<()>());
    drop(runtime);
    assert!(tasks.is_empty());
    assert_eq!(supervisor.failure(), None, "the runtime's end was asked for");
}
