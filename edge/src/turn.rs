//! A task's turn on its thread. What a client has sent already is read without waiting for it, so one that floods would
//! keep the thread from all others until its socket is empty: a hundred large messages, one after the other. So would
//! a page of a stream.

use tokio::{
    task::coop::consume_budget,
    time::{Duration, Instant},
};

/// Tokio gives a task 128 units each time that it runs; a socket takes one for each read. So a turn has about a quarter
/// of a millisecond.
const UNIT: Duration = Duration::from_micros(2);
/// Units at most: then it is the others' turn, whatever it has cost.
const MOST: u128 = 128;

/// Takes from the turn what has been done since `begun`, at least one unit. Waits for the next turn when this one is
/// over.
pub async fn charge(begun: Instant) {
    let units = begun.elapsed().as_nanos() / UNIT.as_nanos();
    for _ in 0..=units.min(MOST) {
        consume_budget().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// How many steps of a busy task, each of which takes so long, another task waits for its turn.
    async fn steps_before_another(step: Duration) -> u32 {
        let steps = Arc::<AtomicU32>::default();
        let of_task = Arc::clone(&steps);
        let busy = tokio::spawn(async move {
            for _ in 0..100_000 {
                let begun = Instant::now();
                while begun.elapsed() < step {
                    std::hint::spin_loop();
                }
                of_task.fetch_add(1, Ordering::Relaxed);
                charge(begun).await;
            }
        });
        tokio::task::yield_now().await;
        busy.abort();
        steps.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_task_that_never_waits_gives_way_after_its_turn() {
        let small = steps_before_another(Duration::ZERO).await;
        assert!((1..=129).contains(&small), "{small} small steps");
        let large = steps_before_another(UNIT * 64).await;
        assert!((1..=3).contains(&large), "{large} steps of half a turn");
    }
}
