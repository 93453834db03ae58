//! Every order in which threads can take locks, by `loom`.
//!
//! Loom runs the threads of a test one at a time and decides at each of its own mutexes who goes on; it repeats the
//! test until it has seen every order with few interruptions ([`INTERRUPTIONS`]). So each lock is preceded by a mutex of loom while a test explores, and in other
//! tests by nothing. What threads do between two locks is one step.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread::Result,
};

use loom::{
    model::Builder,
    sync::{Mutex, MutexGuard},
    thread,
};

thread_local! {
    // The threads of loom are all on one thread of the system.
    static EXPLORING: Cell<bool> = const { Cell::new(false) };
}

/// How often a thread that could go on has to wait for another one. With three, the tests take minutes; the orders that
/// once lost something need one.
const INTERRUPTIONS: usize = 2;

/// Words; loom's own 32 KiB are too few for an unoptimized build.
const STACK: usize = 512 << 10;

pub(super) struct Order(Option<Mutex<()>>);

pub(super) struct Taken<'l>(#[expect(dead_code, reason = "it is held")] Option<MutexGuard<'l, ()>>);

impl Order {
    pub(super) fn new() -> Self {
        Self(EXPLORING.get().then(|| Mutex::new(())))
    }

    pub(super) fn take(&self) -> Taken<'_> {
        Taken(self.0.as_ref().map(|mutex| mutex.lock().unwrap()))
    }
}

/// Runs `test` again and again, until its threads, three beside its own, have taken their locks in every order with
/// [`INTERRUPTIONS`]. The error is that of the first order in which it panics.
pub(in crate::push) fn every_order(test: impl Fn() + Send + Sync + 'static) -> Result<()> {
    let test = Arc::new(test);
    let run = move || {
        let test = Arc::clone(&test);
        // Loom's first thread has a small stack.
        if let Err(panic) = spawn(move || test()).join() {
            resume_unwind(panic);
        }
    };
    let mut builder = Builder::new();
    builder.preemption_bound = Some(INTERRUPTIONS);
    EXPLORING.set(true);
    let explored = catch_unwind(AssertUnwindSafe(|| builder.check(run)));
    EXPLORING.set(false);
    explored
}

/// The same, for a test that must hold in each.
pub(in crate::push) fn holds_in_every_order(test: impl Fn() + Send + Sync + 'static) {
    if let Err(panic) = every_order(test) {
        resume_unwind(panic);
    }
}

/// A thread of such a test.
pub(in crate::push) fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().stack_size(STACK).spawn(run).unwrap()
}
