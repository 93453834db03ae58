//! Supervised tasks. Every task has a name and an owner that awaits it. A task that ends or panics unasked ends the process, unless its
//! owner restarts it: a process that looks ready with a dead task inside is the worst state of all.
//!
//! One [`Supervisor`] for each process receives the failures; [`crate::program`] waits for the first one and shuts down. Tasks live in
//! [`Tasks`], sets that are awaited together; the order in which a program awaits its sets is its order of shutdown.
//!
//! | spawned with | may end | a panic |
//! |---|---|---|
//! | [`Tasks::run`], [`Tasks::until`] | once it is asked to | ends the process |
//! | [`Tasks::once`] | at any time | ends the process |
//! | [`Tasks::restarted`] | once it is asked to, else it is restarted | restarts it: `task_restarts_total{task}` |
//! | [`Tasks::contained`] | at any time | ends what it serves, one client or request: `task_panics_total{task}` |
//!
//! No join handle is kept and none can be forgotten: each task catches its own panic and reports it.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::sync::watch;

mod set;
mod test_panic;

pub use set::{Tasks, Unfinished};

/// Receives the failures of a process's tasks. Cheap to clone: all clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Supervisor {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The first one: what follows is often its consequence.
    failure: watch::Sender<Option<Failure>>,
    restarts: Family<Label, Counter>,
    panics: Family<Label, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    task: &'static str,
}

/// A task that failed, for which the process has to end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task \"{task}\" {cause}")]
pub struct Failure {
    /// Its name.
    pub task: &'static str,
    /// What happened.
    pub cause: Cause,
}

/// Why a task does not run any more though it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// It panicked, with this message.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It returned this error.
    #[error("failed: {0}")]
    Failed(String),
    /// It returned unasked.
    #[error("ended unasked")]
    Ended,
}

/// What a task returns: nothing, or a result whose error is a failure of the task. `None`: it was cancelled.
pub trait Outcome: Send {
    /// The error's text, with its causes.
    fn error(self) -> Option<String>;
}

impl Outcome for () {
    fn error(self) -> Option<String> {
        None
    }
}

impl<T: Outcome> Outcome for Option<T> {
    fn error(self) -> Option<String> {
        self?.error()
    }
}

impl<E: std::fmt::Display + Send> Outcome for Result<(), E> {
    fn error(self) -> Option<String> {
        // `anyhow` writes its chain of causes in the alternate form.
        self.err().map(|error| format!("{error:#}"))
    }
}

impl Supervisor {
    /// Adds its metrics: `task_restarts_total` and `task_panics_total`, by task.
    pub fn register(&self, registry: &mut Registry) {
        let Shared { failure: _, restarts, panics } = &*self.shared;
        registry.register("task_restarts", "Tasks that failed and were restarted", restarts.clone());
        let help = "Tasks that panicked and served one client or request only";
        registry.register("task_panics", help, panics.clone());
    }

    /// A new set of tasks, on the runtime of the caller.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(self.clone(), None)
    }

    /// A new set of tasks, on another runtime.
    pub fn tasks_on(&self, handle: tokio::runtime::Handle) -> Tasks {
        Tasks::new(self.clone(), Some(handle))
    }

    /// The first failure; waits for it. Cancel safe.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.shared.failure.subscribe();
        if let Ok(failure) = failure.wait_for(Option::is_some).await
            && let Some(failure) = &*failure
        {
            return failure.clone();
        }
        // The sender is in `self`: the wait does not fail.
        std::future::pending().await
    }

    /// The first failure so far.
    pub fn failure(&self) -> Option<Failure> {
        self.shared.failure.borrow().clone()
    }

    /// Runs a part of a task whose owner continues after a panic of that part: the panic is logged and counted as a restart of `task`.
    ///
    /// # Errors
    /// It panicked. What it borrowed may be half changed.
    pub fn attempt<T>(
        &self,
        task: &'static str,
        work: impl Future<Output = T>,
    ) -> impl Future<Output = Result<T, Cause>> {
        let restarts = self.shared.restarts.get_or_create_owned(&Label { task });
        caught(task, work).inspect(move |result| {
            if let Err(cause) = result {
                restarts.inc();
                tracing::error!(task, %cause, "a task failed and is restarted");
            }
        })
    }

    /// Adds the panics of `task` to the metrics before the first one: Prometheus does not see a counter grow that begins with 1.
    pub fn count_panics_of(&self, task: &'static str) {
        self.shared.panics.get_or_create_owned(&Label { task });
    }

    /// Logs a panic that the owner of a task caught itself, and counts it like one of a task that served one request.
    pub fn panicked(&self, task: &'static str, cause: &str) {
        self.shared.panics.get_or_create_owned(&Label { task }).inc();
        tracing::error!(task, cause, "a task failed, and with it what it served");
    }

    fn fail(&self, task: &'static str, cause: Cause) {
        tracing::error!(task, %cause, "a task failed, so the process has to end");
        self.shared.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                *failure = Some(Failure { task, cause });
            }
            first
        });
    }
}

/// Runs a task's work and catches its panic.
///
/// Combinators, here and in [`Tasks`]: an `async` block stores what it is given and what it awaits, so that each layer would double the
/// future. A connection's was 17 kB instead of 5, and there is one for every client.
fn caught<T>(task: &'static str, work: impl Future<Output = T>) -> impl Future<Output = Result<T, Cause>> {
    let work = AssertUnwindSafe(test_panic::with(task, work)).catch_unwind();
    work.map(|result| result.map_err(|panic| Cause::Panicked(message(&*panic))))
}

/// Calls `work` and returns its panic as a cause. Data that it borrowed may be inconsistent then.
///
/// # Errors
/// It panicked.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Cause> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Cause::Panicked(message(&*panic)))
}

/// What `panic!` was given.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests;
