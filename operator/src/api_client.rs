//! How we are connected to the API server. A connection can die without a word: a node goes, a router forgets. What nobody reads from then
//! on would go unnoticed for ever, so that every wait has an end here.

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

use crate::leader::Leadership;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of an answer, or of the next piece of one. Longer than a watch.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// After so many seconds the API server ends a watch, which then goes on where it was. One that does not end five seconds later is dead, and
/// what changed meanwhile is to be seen within the 30 s in which all is to be repaired.
const WATCH_SECONDS: u32 = 15;
/// How long without a failure until pauses are short again.
const CALM: Duration = Duration::from_secs(30);
/// Between two tries of a watch that fails.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

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
    // A connection that was not used for a while has not failed to answer.
    config.reset_reader_on_write = true;
}

/// The same for a leader's writes: whatever drives its connections asks for the leadership each time. A request may lie in this process
/// when it is frozen, past every look at the leadership and not yet on the wire; thawed after another has taken the lease, it must not go.
///
/// # Errors
/// See [`client`].
pub fn leaders_client(mut config: Config, leadership: Leadership) -> kube::Result<Client> {
    bound(&mut config);
    Ok(ClientBuilder::try_from((config, WhileLeading(leadership)))?.build())
}

/// Runs connections until this process does not lead any more.
#[derive(Clone)]
struct WhileLeading(Leadership);

impl Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for WhileLeading {
    fn execute(&self, mut connection: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let leadership = self.0.clone();
        let gated = poll_fn(move |cx| if leadership.holds() { connection.as_mut().poll(cx) } else { Poll::Ready(()) });
        // It ends with the client or the leadership, whichever is first.
        drop(tokio::spawn(gated));
    }
}

/// A watch of what these labels select.
pub fn watch(selector: &str) -> watcher::Config {
    watcher::Config::default().labels(selector).timeout(WATCH_SECONDS)
}

/// What a watch waits after a failure. The watch's own resets count for nothing: it makes one before each try.
pub fn after_failures() -> ResetTimerBackoff<Pause> {
    ResetTimerBackoff::new(Pause::default(), CALM)
}

/// Pauses that are longer each time, but never so long that a server that is back goes unnoticed; with jitter.
#[derive(Debug)]
pub struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE.0)
    }
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE.1);
        Some(pause.mul_f64(0.5 + 0.5 * rand::random::<f64>()))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_again() {
        let mut pause = Pause::default();
        let pauses: Vec<Duration> = pause.by_ref().take(20).collect();
        assert!(pauses[0] <= PAUSE.0 && pauses[19] >= PAUSE.1 / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= PAUSE.1), "{pauses:?}");
        pause.reset();
        assert!(pause.next().unwrap() <= PAUSE.0);
    }
}
