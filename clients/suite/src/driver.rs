//! A driver as a process: commands to its stdin, events from its stdout. See the README of this crate.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

/// From its start to `ready`.
const START: Duration = Duration::from_secs(30);
/// For its end after the end of its stdin.
const END: Duration = Duration::from_secs(5);
/// Lines of stderr that are kept.
const KEPT_LOG: usize = 200;

/// Something that a client reported.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) at: Instant,
    pub(crate) value: Value,
}

impl Event {
    /// Whether it is of this kind.
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.value["event"] == kind
    }
}

/// All events of one client so far.
pub(crate) type Events = watch::Sender<Vec<Event>>;

/// A running driver.
pub(crate) struct Driver {
    /// Its `ready`.
    name: String,
    supports: Vec<String>,
    commands: mpsc::UnboundedSender<Value>,
    clients: Arc<Mutex<HashMap<String, Arc<Events>>>>,
    /// Events of the driver itself: `stats`, and that it has ended.
    own: Arc<Events>,
    log: Arc<Mutex<VecDeque<String>>>,
    child: tokio::sync::Mutex<Child>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({})", self.name)
    }
}

impl Driver {
    /// Starts it by a shell command, and waits until it is ready.
    pub(crate) async fn start(command: &str) -> Result<Arc<Self>> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting the driver: {command}"))?;
        let mut stdin = child.stdin.take().context("piped")?;
        let stdout = child.stdout.take().context("piped")?;
        let stderr = child.stderr.take().context("piped")?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut log = lock(&kept);
                if log.len() == KEPT_LOG {
                    log.pop_front();
                }
                log.push_back(line);
            }
        });
        let (commands, mut queue) = mpsc::unbounded_channel::<Value>();
        tokio::spawn(async move {
            while let Some(command) = queue.recv().await {
                let line = format!("{command}\n");
                if stdin.write_all(line.as_bytes()).await.is_err() || stdin.flush().await.is_err() {
                    return;
                }
            }
        });
        let mut lines = BufReader::new(stdout).lines();
        let first = match timeout(START, lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            other => bail!("the driver said nothing within {START:?}: {other:?}\n{}", tail(&log)),
        };
        let ready: Value = serde_json::from_str(&first).with_context(|| format!("the driver's first line: {first}"))?;
        ensure!(
            ready["event"] == "ready" && ready["protocol"] == 1,
            "the first event is not `ready` of protocol 1: {ready}"
        );
        let supports = ready["supports"].as_array().context("`ready` without `supports`")?;
        let supports = supports.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
        let clients: Arc<Mutex<HashMap<String, Arc<Events>>>> = Arc::default();
        let own: Arc<Events> = Arc::new(watch::Sender::new(Vec::new()));
        let (sorted, others) = (Arc::clone(&clients), Arc::clone(&own));
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let at = Instant::now();
                let value = serde_json::from_str(&line).unwrap_or_else(|_| json!({"event": "not JSON", "line": line}));
                let client = value["client"].as_str().and_then(|name| lock(&sorted).get(name).cloned());
                client.as_ref().unwrap_or(&others).send_modify(|events| events.push(Event { at, value }));
            }
            let end = Event { at: Instant::now(), value: json!({"event": "the driver has ended"}) };
            for events in lock(&sorted).values().chain([&others]) {
                events.send_modify(|events| events.push(end.clone()));
            }
        });
        Ok(Arc::new(Self {
            name: ready["name"].as_str().unwrap_or("unnamed").to_owned(),
            supports,
            commands,
            clients,
            own,
            log,
            child: tokio::sync::Mutex::new(child),
        }))
    }

    /// What it calls itself.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What it can't do of this.
    pub(crate) fn lacks<'n>(&self, needs: &[&'n str]) -> Vec<&'n str> {
        needs.iter().copied().filter(|need| self.supports.iter().all(|one| one != need)).collect()
    }

    /// Tells it something.
    pub(crate) fn tell(&self, command: Value) -> Result<()> {
        self.commands.send(command).ok().context("the driver has ended")
    }

    /// Where the events of a client of this name arrive.
    pub(crate) fn register(&self, client: &str) -> Arc<Events> {
        let events = Arc::new(watch::Sender::new(Vec::new()));
        lock(&self.clients).insert(client.to_owned(), Arc::clone(&events));
        events
    }

    /// Forgets a client's events.
    pub(crate) fn forget(&self, client: &str) {
        lock(&self.clients).remove(client);
    }

    /// Memory of its live objects.
    pub(crate) async fn heap(&self) -> Result<f64> {
        let seen = self.own.borrow().len();
        self.tell(json!({"do": "stats"}))?;
        let mut events = self.own.subscribe();
        let found = events.wait_for(|events| events.len() > seen);
        let events = timeout(Duration::from_secs(30), found).await.context("no `stats` within 30 s")??;
        events[seen].value["heapBytes"].as_f64().context("`stats` without heapBytes")
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        tail(&self.log)
    }

    /// Ends it as the protocol says.
    pub(crate) async fn end(self: Arc<Self>) -> Result<()> {
        let driver = Arc::into_inner(self).context("a scenario still holds the driver")?;
        let Self { commands, child, .. } = driver;
        drop(commands);
        let mut child = child.into_inner();
        if timeout(END, child.wait()).await.is_ok() {
            return Ok(());
        }
        child.kill().await?;
        bail!("the driver did not end within {END:?} of the end of its stdin")
    }
}

fn tail(log: &Mutex<VecDeque<String>>) -> String {
    lock(log).iter().flat_map(|line| ["  ", line, "\n"]).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
