//! A set of tasks that are awaited together.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Cause, Label, Outcome, Supervisor, caught};
use crate::backoff::Backoff;

/// Tasks that are awaited together, each with a name. Cheap to clone: all clones are the same set.
#[derive(Clone, Debug)]
pub struct Tasks {
    supervisor: Supervisor,
    handle: Option<Handle>,
    tracker: TaskTracker,
    /// Name → how many run.
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// The tasks of a set that did not end by its deadline, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished(pub BTreeMap<&'static str, usize>);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|(name, count)| format!("{count} × {name}"));
        f.write_str(&names.collect::<Vec<_>>().join(", "))
    }
}

impl Tasks {
    pub(super) fn new(supervisor: Supervisor, handle: Option<Handle>) -> Self {
        Self { supervisor, handle, tracker: TaskTracker::new(), running: Arc::default() }
    }

    /// Spawns a task that runs until `stop` is cancelled. It must watch `stop` itself; if it ends earlier, or panics, the process ends.
    pub fn run<F>(&self, name: &'static str, stop: &CancellationToken, work: F)
    where
        F: Future<Output: Outcome> + Send + 'static,
    {
        let (supervisor, stop) = (self.supervisor.clone(), stop.clone());
        let work = caught(name, work).map(move |result| {
            if let Some(cause) = failure(result, &stop) {
                supervisor.fail(name, cause);
            }
        });
        self.spawn(name, work);
    }

    /// Spawns a task without an end, which is dropped when `stop` is cancelled. If it ends earlier, or panics, the process ends.
    pub fn until<F>(&self, name: &'static str, stop: &CancellationToken, work: F)
    where
        F: Future<Output: Outcome> + Send + 'static,
    {
        self.run(name, stop, stop.clone().run_until_cancelled_owned(work));
    }

    /// Spawns a task that ends on its own. If it panics, or returns an error, the process ends.
    pub fn once<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output: Outcome> + Send + 'static,
    {
        let supervisor = self.supervisor.clone();
        let work = caught(name, work).map(move |result| {
            let cause = match result {
                Ok(outcome) => outcome.error().map(Cause::Failed),
                Err(cause) => Some(cause),
            };
            if let Some(cause) = cause {
                supervisor.fail(name, cause);
            }
        });
        self.spawn(name, work);
    }

    /// Spawns a task that runs until `stop` is cancelled. If it ends earlier, or panics, `work` begins again after a pause, which is logged
    /// and counted.
    pub fn restarted<F>(
        &self,
        name: &'static str,
        stop: &CancellationToken,
        mut backoff: Backoff,
        mut work: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output: Outcome> + Send,
    {
        let restarts = self.supervisor.shared.restarts.get_or_create_owned(&Label { task: name });
        let stop = stop.clone();
        self.spawn(name, async move {
            loop {
                let began = Instant::now();
                let result = caught(name, async { work().await }).await;
                let Some(cause) = failure(result, &stop) else { return };
                backoff.lasted(began.elapsed());
                let pause = backoff.next_pause();
                restarts.inc();
                tracing::error!(task = name, %cause, ?pause, "a task failed and is restarted");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(pause) => {}
                }
            }
        });
    }

    /// Spawns a task that serves one client or one request and ends with it. If it panics, that one client suffers; it is logged and
    /// counted.
    pub fn contained<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let panics = self.supervisor.shared.panics.get_or_create_owned(&Label { task: name });
        let work = caught(name, work).map(move |result| {
            if let Err(cause) = result {
                panics.inc();
                tracing::error!(task = name, %cause, "a task failed, and with it what it served");
            }
        });
        self.spawn(name, work);
    }

    /// How many tasks run.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task runs.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until every task has ended. The caller has asked them to end.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Waits until every task has ended, at most until `deadline`.
    ///
    /// # Errors
    /// Some still run; they are not aborted.
    pub async fn finished_by(&self, deadline: Instant) -> Result<(), Unfinished> {
        timeout_at(deadline, self.finished()).await.map_err(|_| Unfinished(self.lock().clone()))
    }

    fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        *self.lock().entry(name).or_default() += 1;
        let registered = Registered { name, tasks: self.clone() };
        // Also if the runtime drops the task unfinished.
        let work = work.map(move |()| drop(registered));
        // Nothing is lost with the handle: the work reports its own failure and the tracker waits for it.
        match &self.handle {
            Some(handle) => drop(self.tracker.spawn_on(work, handle)),
            None => drop(self.tracker.spawn(work)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task in the list of those that run.
struct Registered {
    name: &'static str,
    tasks: Tasks,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut running = self.tasks.lock();
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// Why a task that should run until `stop` is cancelled failed, if it did.
fn failure<T: Outcome>(result: Result<T, Cause>, stop: &CancellationToken) -> Option<Cause> {
    match result {
        Err(cause) => Some(cause),
        Ok(outcome) => match outcome.error() {
            Some(error) => Some(Cause::Failed(error)),
            None => (!stop.is_cancelled()).then_some(Cause::Ended),
        },
    }
}
