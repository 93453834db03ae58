//! A lane: one supervised AMQP connection, which reconnects forever, and the messages that wait for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_amqp::{Error, v091::Pipe};
use wirepost_runtime::backoff::Backoff;

use super::{
    breaker::Breakers,
    queues::Queues,
    session::{End, Moved, Session},
};
use crate::rabbit::{
    counters::Counters,
    dialer::{Dialer, HEARTBEAT},
    health::Status,
};

/// How often deadlines are checked while messages wait.
pub(super) const SWEEP: Duration = Duration::from_millis(50);
/// Longest time for name resolution, TCP, TLS and AMQP's handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest bound of the pauses between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// A connection that has returned to its node and is lost before this time has returned to a node that is not well.
const LASTING: Duration = Duration::from_mins(1);
/// The time to the next return grows to 32 times the first.
const MOST_DOUBLINGS: u32 = 5;

/// See the module.
pub(super) struct Lane {
    /// In the broker's list of connections and in the log.
    pub(super) name: String,
    pub(super) dialer: Arc<Dialer>,
    /// The number of its own node among the addresses: lanes have different ones, so that each node has as many.
    pub(super) home: usize,
    /// See [`Config::return_after`](crate::rabbit::Config::return_after).
    pub(super) return_after: Duration,
    /// Returns to the own node that failed since the last one that lasted: each doubles the time to the next.
    pub(super) failed_returns: AtomicU32,
    /// Connected to another node than its own.
    pub(super) away: AtomicBool,
    pub(super) queues: Arc<Queues>,
    pub(super) status: watch::Sender<Status>,
    /// The alarm that the management API reports.
    pub(super) alarm: watch::Receiver<Option<String>>,
    pub(super) breakers: Arc<Breakers>,
    pub(super) counters: Arc<Counters>,
    /// Ends the lane once no caller waits for an answer.
    pub(super) closing: CancellationToken,
}

impl Lane {
    pub(super) fn set_status(&self, status: Status) {
        self.status.send_replace(status);
    }

    /// Runs until closed. It can be run again after a panic: the outcome of messages in flight is then unknown, and waiting messages are kept.
    pub(super) async fn run(self: Arc<Self>) {
        self.queues.nothing_in_flight();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut pause = Duration::ZERO;
        let mut failures = 0;
        let mut attempt = self.home;
        loop {
            let reason = match self.connect(pause, attempt).await {
                None => break,
                Some(Ok(pipe)) => {
                    self.counters.connects.add(1);
                    if failures > 0 {
                        tracing::info!(link = self.name, failures, "connected to the broker again");
                    }
                    failures = 0;
                    let since = Instant::now();
                    let Some(error) = self.serve(pipe, &mut attempt).await else { break };
                    let reason = error.to_string();
                    self.counters.connections_lost.add(1);
                    backoff.lasted(since.elapsed());
                    // A node that takes connections and answers nothing, such as one that is cut off from the others: the next one may.
                    if matches!(error, Error::Timeout { .. }) {
                        attempt += 1;
                    }
                    tracing::warn!(link = self.name, reason, "lost the connection to the broker");
                    reason
                }
                Some(Err(reason)) => {
                    attempt += 1;
                    failures += 1;
                    self.counters.connect_failures.add(1);
                    // The first failure, then fewer and fewer.
                    if u32::is_power_of_two(failures) {
                        tracing::warn!(
                            link = self.name,
                            failures,
                            reason,
                            "cannot connect to the broker; trying again"
                        );
                    }
                    reason
                }
            };
            self.set_status(Status::Down(reason));
            pause = backoff.next_pause();
        }
        self.away.store(false, Ordering::Relaxed);
        self.set_status(Status::Down("closed".to_owned()));
    }

    /// Serves on a connection, and on those that take its place, until one is lost. `None`: the lane is closed, and nothing waits.
    async fn serve(&self, mut pipe: Pipe, attempt: &mut usize) -> Option<Error> {
        let (mut former, mut returned) = (None, None::<Instant>);
        loop {
            let away = *attempt % self.dialer.addresses.len() != self.home % self.dialer.addresses.len();
            self.away.store(away, Ordering::Relaxed);
            match Session::new(self, pipe, former.take(), away).run().await {
                Ok(End::Closed) => return None,
                Ok(End::Moved(moved)) => {
                    let Moved { to, from } = *moved;
                    tracing::info!(link = self.name, "this connection has returned to its own node");
                    self.counters.connects.add(1);
                    *attempt = self.home;
                    (pipe, former, returned) = (to, Some(from), Some(Instant::now()));
                }
                Err(error) => {
                    match returned.map(|at| at.elapsed() < LASTING) {
                        Some(true) => self.return_failed(),
                        Some(false) => self.failed_returns.store(0, Ordering::Relaxed),
                        None => {}
                    }
                    return Some(error);
                }
            }
        }
    }

    /// The next return is tried later.
    pub(super) fn return_failed(&self) {
        self.failed_returns.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection to the lane's own node, as soon as there is one. One that was away has queues to catch up with first, and all connections
    /// of all edges would come at the same moment.
    pub(super) async fn homeward(&self) -> Pipe {
        loop {
            let after = self.return_after * (1 << self.failed_returns.load(Ordering::Relaxed).min(MOST_DOUBLINGS));
            sleep(after + after.mul_f64(rand::random())).await;
            // Broker in trouble: nothing is moved.
            if self.alarm.borrow().is_some() {
                continue;
            }
            let Ok(endpoint) = self.dialer.endpoint(self.home, &self.name) else { continue };
            if let Ok(Ok(pipe)) = timeout(CONNECT_TIMEOUT, Pipe::open(&endpoint, HEARTBEAT)).await {
                return pipe;
            }
        }
    }

    /// Connects after a pause. Meanwhile waiting messages are answered in time. `None`: the lane is closed, and nothing waits.
    async fn connect(&self, pause: Duration, attempt: usize) -> Option<Result<Pipe, String>> {
        let connecting = async {
            sleep(pause).await;
            let endpoint = self.dialer.endpoint(attempt, &self.name)?;
            match timeout(CONNECT_TIMEOUT, Pipe::open(&endpoint, HEARTBEAT)).await {
                Ok(opened) => opened.map_err(|error| error.to_string()),
                Err(_) => Err(format!(
                    "cannot connect to {}: no answer within {CONNECT_TIMEOUT:?}",
                    endpoint.address().host_and_port()
                )),
            }
        };
        tokio::pin!(connecting);
        let mut sweeps = interval(SWEEP);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                connected = &mut connecting => return Some(connected),
                _ = sweeps.tick() => {
                    let reason = match &*self.status.borrow() {
                        Status::Down(reason) => reason.clone(),
                        Status::Up | Status::Blocked(_) => "not connected to the broker".to_owned(),
                    };
                    self.queues.sweep(Instant::now(), &reason);
                    if self.closing.is_cancelled() && self.queues.close_if_empty() {
                        return None;
                    }
                }
            }
        }
    }
}
