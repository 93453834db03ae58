//! Makes a task panic, so that a test of a whole program can see what follows. In debug builds only; a release build has none of it.
//!
//! `WIREPOST_TEST_PANIC=<task>@<file>`: the task of this name panics once `<file>` exists; of several tasks of the name one does, and it
//! does so once in the life of the process. The test starts a program with it, waits until the program is ready, and creates the file. If
//! the file exists before, the task panics as soon as it starts: for tasks that are over before a test can act.

#[cfg(not(debug_assertions))]
pub(super) use disabled::with;
#[cfg(debug_assertions)]
pub(super) use enabled::with;

#[cfg(not(debug_assertions))]
mod disabled {
    pub(crate) fn with<T, F: Future<Output = T>>(_: &'static str, work: F) -> F {
        work
    }
}

#[cfg(debug_assertions)]
mod enabled {
    use std::{
        path::PathBuf,
        sync::{
            LazyLock,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };

    use futures_util::{
        FutureExt,
        future::{Either, select},
    };
    use tokio::time::sleep;

    /// The task and the file.
    static ASKED: LazyLock<Option<(String, PathBuf)>> = LazyLock::new(|| {
        let value = std::env::var("WIREPOST_TEST_PANIC").ok()?;
        let (task, file) = value.split_once('@')?;
        Some((task.to_owned(), file.into()))
    });
    static DONE: AtomicBool = AtomicBool::new(false);
    /// Between two checks for the file.
    const INTERVAL: Duration = Duration::from_millis(20);

    /// `work`, which panics if a test asks for it.
    pub(crate) fn with<T>(task: &'static str, work: impl Future<Output = T>) -> impl Future<Output = T> {
        let Some((_, file)) = ASKED.as_ref().filter(|(asked, _)| asked == task) else { return Either::Left(work) };
        let asked = async {
            loop {
                if file.exists() && !DONE.swap(true, Ordering::Relaxed) {
                    return;
                }
                sleep(INTERVAL).await;
            }
        };
        let either = select(Box::pin(asked), Box::pin(work));
        Either::Right(either.map(|either| match either {
            Either::Left(_) => panic!("a test asked for it"),
            Either::Right((result, _)) => result,
        }))
    }
}
