//! How we are connected to the API server. A connection can die unnoticed: a node fails, a router forgets it. A watch on it would wait
//! forever, so every wait is bounded here.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use hyper::rt::Executor;
use kube::{
    Client, Config,
    client::ClientBuilder,
    runtime::{
        utils::{Backoff, ResetTimerBackoff},
        watcher,
    },
};
use wirepost_runtime::{backoff as runtime, tasks::Tasks};

use crate::leader::Leadership;

/// Owner of the fields that we set.
pub const MANAGER: &str = "wirepost-operator";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of an answer, or of the next part of one. Longer than a watch.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// After this many seconds the API server ends a watch, which then continues from there. One that has not ended five seconds later is dead,
/// and what changed meanwhile has to be seen within the 30 s in which everything is repaired.
const WATCH_SECONDS: u32 = 15;
/// After this long without a failure pauses are short again.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(30);
/// Pauses between attempts of a watch that fails: the first, and the longest. A server that is back is noticed soon.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// A client with connections of its own.
///
/// # Errors
/// What `config` says can't be used.
pub fn client(mut config: Config) -> kube::Result<Client> {
    bound(&mut config);
    Client::try_from(config)
}

fn bound(config: &mut Config) {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // A connection that was idle for a while has not failed to answer.
    config.reset_reader_on_write = true;
}

/// The same for a leader's writes: whatever drives its connections asks for the leadership each time. A request may be in this process when
/// it is frozen, past every gate and not yet on the wire; thawed after another replica has taken the lease, it must not be sent. `tasks`
/// drives the connections, which end with the client.
///
/// # Errors
/// See [`client`].
pub fn leaders_client(mut config: Config, leadership: Leadership, tasks: Tasks) -> kube::Result<Client> {
    bound(&mut config);
    Ok(ClientBuilder::try_from((config, WhileLeading { leadership, tasks }))?.build())
}

/// Runs connections until this process does not lead any more.
#[derive(Clone)]
struct WhileLeading {
    leadership: Leadership,
    tasks: Tasks,
}

impl Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for WhileLeading {
    fn execute(&self, mut connection: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let leadership = self.leadership.clone();
        let gated =
            poll_fn(move |cx| if leadership.is_leader() { connection.as_mut().poll(cx) } else { Poll::Ready(()) });
        // It ends with the client or the leadership, whichever is first, and its failure is an error of the requests on it.
        self.tasks.contained("api connection", gated);
    }
}

/// A watch of what these labels select.
pub fn watch(selector: &str) -> watcher::Config {
    watcher::Config::default().labels(selector).timeout(WATCH_SECONDS)
}

/// What a watch waits after a failure. The watch's own resets count for nothing: it makes one before each attempt.
pub fn watch_backoff() -> ResetTimerBackoff<WatchBackoff> {
    backoff(BACKOFF.1)
}

/// The same with another longest pause.
pub fn backoff(longest: Duration) -> ResetTimerBackoff<WatchBackoff> {
    let reset_after = BACKOFF_RESET_AFTER.max(longest * 2);
    ResetTimerBackoff::new(WatchBackoff(runtime::Backoff::new(BACKOFF.0, longest)), reset_after)
}

/// The runtime's backoff, as kube takes it.
#[derive(Debug)]
pub struct WatchBackoff(runtime::Backoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}
